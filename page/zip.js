// A ZIP archive of stored files: photos are compressed already.

const LARGEST = 0xffffffff;

const header = (fields, name) => {
  const length = fields.reduce((sum, [size]) => sum + size, 0), bytes = new Uint8Array(length + name.length);
  const data = new DataView(bytes.buffer);
  let place = 0;
  for (const [size, value] of fields) {
    size === 2 ? data.setUint16(place, value, true) : data.setUint32(place, value, true);
    place += size;
  }
  bytes.set(name, length);
  return bytes;
};

// entries: [{name, blob, crc, date}], at most 65535 of 4 GB in all. Returns a Blob.
export const zipOf = entries => {
  const parts = [], directory = [];
  let place = 0, size = 0;
  if (entries.length > 0xffff) throw new Error("more than 65535 photos do not go into one ZIP: save into a folder");
  for (const {name, blob, crc, date} of entries) {
    const bytes = new TextEncoder().encode(name);
    const time = date.getHours() << 11 | date.getMinutes() << 5 | date.getSeconds() >> 1;
    const day = Math.max(date.getFullYear() - 1980, 0) << 9 | date.getMonth() + 1 << 5 | date.getDate();
    const common = [[2, 20], [2, 0x800], [2, 0], [2, time], [2, day], [4, crc], [4, blob.size], [4, blob.size], [2, bytes.length], [2, 0]];
    const local = header([[4, 0x04034b50], ...common], bytes);
    directory.push(header([[4, 0x02014b50], [2, 20], ...common, [2, 0], [2, 0], [2, 0], [4, 0], [4, place]], bytes));
    parts.push(local, blob);
    place += local.length + blob.size;
    size += directory.at(-1).length;
    if (place + size > LARGEST - 64) throw new Error("more than 4 GB do not go into one ZIP: save into a folder, or fewer at a time");
  }
  const count = entries.length;
  const end = header([[4, 0x06054b50], [2, 0], [2, 0], [2, count], [2, count], [4, size], [4, place], [2, 0]], new Uint8Array());
  return new Blob([...parts, ...directory, end], {type: "application/zip"});
};
