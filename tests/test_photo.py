import importlib
import io
import resource
import struct
from types import SimpleNamespace

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from conftest import picture
from PIL import ExifTags, Image, ImageCms, JpegImagePlugin, PngImagePlugin

from utils.colour import from_linear, to_linear
from utils.photos.reading import PhotoError, load_photo, read_photo, to_8_bits
from utils.photos.writing import _png_chunk, save_photo

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6" dc:rights="mine"/></x:xmpmeta>'


def deep(height=30, width=40, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 65536, shape).astype(np.uint16)


def write_deep(path, pixels, **options):
    if path.suffix == ".png":
        path.write_bytes(imagecodecs.png_encode(pixels))
    else:
        channels = pixels.shape[2] if pixels.ndim == 3 else 1
        tifffile.imwrite(
            path,
            pixels,
            photometric="rgb" if channels > 2 else "minisblack",
            extrasamples=["unassalpha"] if channels in (2, 4) else None,
            **options,
        )


def read_deep(path):
    return imagecodecs.png_decode(path.read_bytes()) if path.suffix == ".png" else tifffile.imread(path)


@pytest.mark.parametrize(
    ("suffix", "channels"), [(".png", 1), (".png", 2), (".png", 3), (".png", 4), (".tif", 1), (".tif", 3), (".tif", 4)]
)
def test_16_bits_go_through_unchanged(tmp_path, suffix, channels):
    pixels = deep(channels=channels)
    write_deep(tmp_path / f"a{suffix}", pixels)
    photo = load_photo(tmp_path / f"a{suffix}")
    assert photo.pixels.dtype == np.uint16 and photo.pixels.shape == (30, 40, 1 if channels < 3 else 3)
    save_photo(tmp_path / f"b{suffix}", photo)
    assert np.array_equal(read_deep(tmp_path / f"b{suffix}"), pixels)
    other = {".png": ".tif", ".tif": ".png"}[suffix]
    save_photo(tmp_path / f"c{other}", photo, format={".png": "PNG", ".tif": "TIFF"}[other])
    assert np.array_equal(read_deep(tmp_path / f"c{other}"), pixels)


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "lzw", "predictor": True},
        {"compression": "zlib"},
        {"planarconfig": "separate"},
        {"byteorder": ">"},
        {"tile": (16, 16)},
        {"bigtiff": True},
    ],
)
def test_16_bit_tiffs_of_every_layout_are_read(tmp_path, options):
    pixels = deep()
    layout = pixels.transpose(2, 0, 1) if "planarconfig" in options else pixels
    tifffile.imwrite(tmp_path / "a.tif", layout, photometric="rgb", **options)
    assert np.array_equal(load_photo(tmp_path / "a.tif").pixels, pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_16_bit_photos_are_turned_like_8_bit_ones(tmp_path, orientation):
    pixels = deep()
    tags = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "deep.tif", pixels, photometric="rgb", extratags=tags)
    tifffile.imwrite(tmp_path / "flat.tif", (pixels >> 8).astype(np.uint8), photometric="rgb", extratags=tags)
    upright = load_photo(tmp_path / "deep.tif")
    expected = load_photo(tmp_path / "flat.tif").pixels
    assert np.array_equal(upright.pixels >> 8, np.array(expected)) and upright.size == expected.size
    save_photo(tmp_path / "out.tif", upright)
    with Image.open(tmp_path / "out.tif") as out:
        assert out.getexif().get(274, 1) == 1


def test_training_sees_16_bit_photos_in_8_bits(tmp_path):
    pixels = deep()
    write_deep(tmp_path / "a.png", pixels)
    assert np.array_equal(
        np.array(read_photo(tmp_path / "a.png")), ((pixels.astype(int) + 128) // 257).astype(np.uint8)
    )


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.zeros((9, 9), np.float32), "floating-point pixels"),
        (np.zeros((9, 9), np.int32), "32-bit pixels"),
        (np.zeros((9, 9, 4), np.uint16), "SEPARATED"),
    ],
)
def test_depths_and_colours_that_cannot_be_kept_are_refused(tmp_path, pixels, words):
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="separated" if pixels.ndim == 3 else "minisblack")
    with pytest.raises(PhotoError, match=words):
        load_photo(tmp_path / "a.tif")


def exif():
    tags = Image.Exif()
    tags[ExifTags.Base.Make] = "Maker"
    tags[ExifTags.Base.Orientation] = 6
    details = tags.get_ifd(ExifTags.IFD.Exif)
    details[ExifTags.Base.DateTimeOriginal] = "2024:01:02 03:04:05"
    details[ExifTags.Base.ExposureTime] = 0.25
    details[40962], details[40963] = 40, 30
    tags.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    return tags


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_metadata_is_kept_in_every_format(tmp_path, kind, depth):
    picture(40, 30).save(tmp_path / "a.jpg", exif=exif(), icc_profile=SRGB, xmp=XMP, dpi=(300, 200))
    photo = load_photo(tmp_path / "a.jpg")
    if depth == 16:
        photo.pixels = deep(40, 30)
    save_photo(tmp_path / "b", photo, format=kind)
    with Image.open(tmp_path / "b") as after:
        assert after.size == (30, 40) and after.info["icc_profile"] == SRGB
        tags = after.getexif()
        assert tags[ExifTags.Base.Make] == "Maker" and tags.get(ExifTags.Base.Orientation, 1) == 1
        details = tags.get_ifd(ExifTags.IFD.Exif)
        assert details[ExifTags.Base.DateTimeOriginal] == "2024:01:02 03:04:05"
        assert float(details[ExifTags.Base.ExposureTime]) == 0.25 and (details[40962], details[40963]) == (30, 40)
        assert tags.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] == "N"
        xmp = after.info.get("xmp") or after.info["XML:com.adobe.xmp"].encode()
        assert b'dc:rights="mine"' in xmp and b"Orientation" not in xmp
        if kind in ("JPEG", "TIFF"):
            assert [round(float(value)) for value in after.info["dpi"]] == [200, 300]  # turned as well
        after.load()
    save_photo(tmp_path / "c", photo, format=kind, keep_metadata=False)
    with Image.open(tmp_path / "c") as after:
        assert not after.getexif().get(ExifTags.Base.Make) and not after.info.get("xmp")
        assert after.info["icc_profile"] == SRGB


def test_the_stale_thumbnail_is_dropped(tmp_path):
    thumbnail = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(thumbnail, "JPEG")
    tags = Image.Exif()
    tags[ExifTags.Base.Make] = "Maker"
    data = tags.tobytes()
    # EXIF as cameras write it: IFD0 points to IFD1, which points to a JPEG
    head, body = data[:6], bytearray(data[6:])
    start = len(body)
    entry_count = int.from_bytes(body[8:10], "big" if body[:2] == b"MM" else "little")
    order = "big" if body[:2] == b"MM" else "little"
    link = 10 + 12 * entry_count
    body[link : link + 4] = start.to_bytes(4, order)
    place = start + 2 + 24 + 4
    entries = b"".join(
        tag.to_bytes(2, order) + (4).to_bytes(2, order) + (1).to_bytes(4, order) + value.to_bytes(4, order)
        for tag, value in ((513, place), (514, len(thumbnail.getvalue())))
    )
    body += (2).to_bytes(2, order) + entries + bytes(4) + thumbnail.getvalue()
    picture(40, 30).save(tmp_path / "a.jpg", exif=head + bytes(body))
    with Image.open(tmp_path / "a.jpg") as before:
        assert before.getexif().get_ifd(ExifTags.IFD.IFD1)
    photo = load_photo(tmp_path / "a.jpg")
    save_photo(tmp_path / "b.jpg", photo)
    with Image.open(tmp_path / "b.jpg") as after:
        assert after.getexif()[ExifTags.Base.Make] == "Maker"
        assert not after.getexif().get_ifd(ExifTags.IFD.IFD1)
    assert thumbnail.getvalue() not in (tmp_path / "b.jpg").read_bytes()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_exif_stays_where_it_stands_as_makers_notes_count_from_its_start(tmp_path, order, suffix):
    note, first, details = b"Canon-like note, whose numbers are places in the whole block", 8, 8 + 2 + 5 * 12 + 4
    place = details + 2 + 3 * 12 + 4

    def folder(*entries, end):
        rows = b"".join(struct.pack(f"{order}HHII", tag, kind, count, value) for tag, kind, count, value in entries)
        return struct.pack(f"{order}H", len(entries)) + rows + struct.pack(f"{order}I", end)

    one = 1 << 16 if order == ">" else 1  # a number of 16 bits in a field of 32
    block = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", first)
    block += folder(
        (256, 4, 1, 40), (257, 4, 1, 30), (271, 2, 2, 0x41000041), (274, 3, 1, 6 * one), (34665, 4, 1, details), end=0
    )
    block += folder((37500, 7, len(note), place), (40962, 3, 1, 40 * one), (40963, 4, 1, 30), end=0) + note
    picture(40, 30).save(tmp_path / f"a{suffix}", exif=b"Exif\0\0" + block)
    photo = load_photo(tmp_path / f"a{suffix}")
    save_photo(tmp_path / f"b{suffix}", photo)
    with Image.open(tmp_path / f"b{suffix}") as after:
        kept, tags = after.info["exif"].removeprefix(b"Exif\0\0"), after.getexif()
        assert after.size == (30, 40) and len(kept) == len(block) and kept[place:] == note
        assert tags[ExifTags.Base.Make] == "A" and ExifTags.Base.Orientation not in tags
        assert (tags[256], tags[257]) == (30, 40)
        inner = tags.get_ifd(ExifTags.IFD.Exif)
        assert (inner[40962], inner[40963], inner[37500]) == (30, 40, note)


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_thumbnail_before_what_points_to_it_is_dropped(tmp_path, order):
    thumbnail, first = b"\xff\xd8 a thumbnail  \xff\xd9", 8 + 18
    second = first + 2 + 12 + 4
    block = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", first) + thumbnail
    block += struct.pack(f"{order}HHHIII", 1, 271, 2, 2, 0x41000041, second)
    block += struct.pack(f"{order}HHHIIHHIII", 2, 513, 4, 1, 8, 514, 4, 1, len(thumbnail), 0)
    picture(40, 30).save(tmp_path / "a.jpg", exif=b"Exif\0\0" + block)
    save_photo(tmp_path / "b.jpg", load_photo(tmp_path / "a.jpg"))
    assert thumbnail not in (tmp_path / "b.jpg").read_bytes()
    with Image.open(tmp_path / "b.jpg") as after:
        assert dict(after.getexif()) == {ExifTags.Base.Make: "A"}


def test_damaged_exif_never_costs_a_photo(tmp_path):
    block = exif().tobytes()
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(block)
        for place in rng.integers(6, len(block), rng.integers(1, 4)):
            damaged[place] = rng.integers(256)
        picture(8, 6).save(tmp_path / "a.jpg", exif=bytes(damaged[: rng.integers(8, len(block))]))
        for name, kind in (("b.jpg", "JPEG"), ("b.tif", "TIFF")):
            save_photo(tmp_path / name, load_photo(tmp_path / "a.jpg"), format=kind)
            with Image.open(tmp_path / name) as after:
                after.load()


@pytest.mark.parametrize("depth", [8, 16])
def test_texts_of_a_png_are_kept_or_stripped(tmp_path, depth):
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Author", "Jürgen")
    texts.add_text("Copyright", "mine", zip=True)
    texts.add_itxt("Title", "日本")
    texts.add_text("Raw profile type iptc", "\niptc\n       2\n1c02\n", zip=True)
    texts.add_text("Raw profile type xmp", f"\nxmp\n  {len(XMP)}\n{XMP.hex()[:60]}\n{XMP.hex()[60:]}\n", zip=True)
    picture(40, 30).save(tmp_path / "a.png", pnginfo=texts)
    photo = load_photo(tmp_path / "a.png")
    if depth == 16:
        photo.pixels = deep(30, 40)
    save_photo(tmp_path / "b.png", photo)
    save_photo(tmp_path / "c.png", photo, keep_metadata=False)
    save_photo(tmp_path / "d.jpg", photo, format="JPEG")
    with Image.open(tmp_path / "b.png") as after:
        after.load()
        assert (after.text["Author"], after.text["Copyright"], after.text["Title"]) == ("Jürgen", "mine", "日本")
        assert after.text["Raw profile type iptc"] and "Raw profile type xmp" not in after.text
        assert 'dc:rights="mine"' in after.text["XML:com.adobe.xmp"]
        assert "Orientation" not in after.text["XML:com.adobe.xmp"]
    with Image.open(tmp_path / "c.png") as after:
        after.load()
        assert not after.text


def test_xmp_goes_on_in_further_segments_and_promises_no_gain_map(tmp_path):
    more = b"http://ns.adobe.com/xmp/extension/\0" + bytes(range(200))
    marker = b"\xff\xe1" + (len(more) + 2).to_bytes(2, "big") + more
    map_ = b'<Container:Directory><rdf:Seq><li Item:Semantic="GainMap"/></rdf:Seq></Container:Directory>'
    map_ += b"<hdrgm:Version>1.0</hdrgm:Version><GCamera:MotionPhoto>1</GCamera:MotionPhoto>"
    xmp = b'<x:xmpmeta><a hdrgm:Version="1.0" GCamera:MotionPhoto="1" dc:rights="mine">%s</a></x:xmpmeta>'
    picture(40, 30).save(tmp_path / "a.jpg", xmp=xmp % map_, extra=marker)
    save_photo(tmp_path / "b.jpg", load_photo(tmp_path / "a.jpg"))
    assert more in (tmp_path / "b.jpg").read_bytes()
    with Image.open(tmp_path / "b.jpg") as after:
        assert after.info["xmp"] == b'<x:xmpmeta><a dc:rights="mine"></a></x:xmpmeta>'


def test_iptc_of_tiffs_is_kept_or_stripped(tmp_path):
    iptc = b"\x1c\x02\x78\0\x05title\0\0"
    numbers = (33723, "I", 3, struct.unpack("<3I", iptc), True)  # as Photoshop declares it
    tags = [numbers, (34377, "B", 12, iptc, True)]
    tifffile.imwrite(tmp_path / "a.tif", np.array(picture(64, 48)), photometric="rgb", extratags=tags, byteorder="<")
    photo = load_photo(tmp_path / "a.tif")
    save_photo(tmp_path / "b.tif", photo)
    save_photo(tmp_path / "c.tif", photo, keep_metadata=False)
    for name, kept in (("b.tif", True), ("c.tif", False)):
        with tifffile.TiffFile(tmp_path / name) as file:
            found = [bytes(file.pages.first.tags[tag].value) for tag in (33723, 34377) if tag in file.pages.first.tags]
            assert found == ([iptc, iptc] if kept else [])


def test_what_is_not_seen_in_lossless_webp_stays(tmp_path):
    clear = picture(40, 30).convert("RGBA")
    clear.putalpha(0)
    clear.save(tmp_path / "a.webp", lossless=True, exact=True)
    save_photo(tmp_path / "b.webp", load_photo(tmp_path / "a.webp"))
    with Image.open(tmp_path / "b.webp") as after:
        assert np.array_equal(np.array(after), np.array(clear))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [True, False])
def test_a_jpeg_keeps_its_quantisation_subsampling_and_scans(tmp_path, subsampling, progressive):
    picture(64, 48).save(tmp_path / "a.jpg", quality=67, subsampling=subsampling, progressive=progressive)
    save_photo(tmp_path / "b.jpg", load_photo(tmp_path / "a.jpg"))
    with Image.open(tmp_path / "a.jpg") as before, Image.open(tmp_path / "b.jpg") as after:
        assert before.quantization == after.quantization
        assert JpegImagePlugin.get_sampling(after) == subsampling
        assert bool(after.info.get("progressive")) == progressive
    save_photo(tmp_path / "c.jpg", load_photo(tmp_path / "a.jpg"), quality=20)
    with Image.open(tmp_path / "a.jpg") as before, Image.open(tmp_path / "c.jpg") as after:
        assert max(after.quantization[0]) > max(before.quantization[0])
        assert JpegImagePlugin.get_sampling(after) == subsampling


def test_lossless_webp_stays_lossless(tmp_path):
    picture(64, 48).save(tmp_path / "a.webp", lossless=True)
    save_photo(tmp_path / "b.webp", load_photo(tmp_path / "a.webp"))
    with Image.open(tmp_path / "a.webp") as before, Image.open(tmp_path / "b.webp") as after:
        assert np.array_equal(np.array(before), np.array(after))


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_tiff_compression_is_kept(tmp_path, compression):
    picture(64, 48).save(tmp_path / "a.tif", compression=compression)
    save_photo(tmp_path / "b.tif", load_photo(tmp_path / "a.tif"))
    with Image.open(tmp_path / "b.tif") as after:
        assert after.info["compression"] == compression
        assert np.array_equal(np.array(after), np.array(picture(64, 48)))


def test_metadata_that_is_too_long_for_the_format_does_not_cost_the_photo(tmp_path):
    picture(40, 30).save(tmp_path / "a.png", exif=exif())
    photo = load_photo(tmp_path / "a.png")
    photo.xmp = b"x" * 70_000  # more than a JPEG's segment holds
    save_photo(tmp_path / "b.jpg", photo, format="JPEG")
    with Image.open(tmp_path / "b.jpg") as after:
        assert after.getexif()[ExifTags.Base.Make] == "Maker"


@pytest.mark.parametrize(("name", "package"), [("a.heic", "pillow-heif"), ("a.CR2", "rawpy"), ("a.dng", "rawpy")])
def test_optional_formats_say_what_to_install(tmp_path, monkeypatch, name, package):
    def missing(module):
        raise ImportError(module)

    monkeypatch.setattr(importlib, "import_module", missing)
    (tmp_path / name).write_bytes(b"\0\0\0\x10ftypheic\0\0\0\0" if name == "a.heic" else b"anything")
    with pytest.raises(PhotoError, match=f"need the package {package}: pip install {package}"):
        load_photo(tmp_path / name)


def test_heic_is_read_and_written_where_the_package_is_there(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    picture(64, 48).save(tmp_path / "a.heic", quality=95)
    photo = load_photo(tmp_path / "a.heic")
    assert photo.size == (64, 48) and photo.format == "HEIF"
    save_photo(tmp_path / "b.heic", photo)
    assert np.abs(np.array(load_photo(tmp_path / "b.heic").pixels).astype(int) - np.array(picture(64, 48))).mean() < 8


def test_raw_is_developed_by_the_package_and_written_as_jpeg(tmp_path, monkeypatch):
    class Raw:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def postprocess(self, **options):
            assert options["use_camera_wb"] and options["output_bps"] == 8
            return np.array(picture(64, 48))

    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(imread=lambda path: Raw()))
    picture(64, 48).save(tmp_path / "a.jpg", exif=exif())
    save_photo(tmp_path / "a.nef", load_photo(tmp_path / "a.jpg"), format="TIFF")  # raw files are TIFF inside
    (tmp_path / "b.cr3").write_bytes(b"raw")  # or not
    for name in ("a.nef", "b.cr3"):
        photo = load_photo(tmp_path / name)
        save_photo(tmp_path / "a.jpg", photo)
        with Image.open(tmp_path / "a.jpg") as after:
            assert after.format == "JPEG" and after.size == (64, 48) and after.getexif().get(274, 1) == 1
            details = after.getexif().get_ifd(ExifTags.IFD.Exif)
            assert (details.get(ExifTags.Base.DateTimeOriginal) == "2024:01:02 03:04:05") == (name == "a.nef")


def test_associated_alpha_of_16_bits_is_divided_out_and_unknown_channels_refused(tmp_path):
    straight, alpha = deep(), deep(channels=1) // 2 + 30_000
    premultiplied = (straight.astype(float) * alpha[..., None] / 65535).round().astype(np.uint16)
    pixels = np.dstack((premultiplied, alpha))
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["assocalpha"])
    photo = load_photo(tmp_path / "a.tif")
    assert np.array_equal(photo.alpha, alpha) and np.abs(photo.pixels.astype(int) - straight).max() <= 3
    tifffile.imwrite(tmp_path / "b.tif", pixels, photometric="rgb", extrasamples=["unspecified"])
    with pytest.raises(PhotoError, match="unknown meaning"):
        load_photo(tmp_path / "b.tif")


def test_a_progressive_jpeg_of_noise_is_written(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1500, 1500, 3)).astype(np.uint8))
    noise.save(tmp_path / "a.jpg", quality=100, subsampling=0)
    photo = load_photo(tmp_path / "a.jpg")
    photo.options["progressive"] = True
    save_photo(tmp_path / "b.jpg", photo)
    with Image.open(tmp_path / "b.jpg") as after:
        assert np.abs(np.array(after).astype(int) - np.array(noise)).mean() < 3


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_iptc_and_comment_of_a_jpeg_are_kept_or_stripped(tmp_path, mode):
    segment = b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0\0\0\0\x0a\x1c\x02\x78\0\x05title"
    marker = b"\xff\xed" + (len(segment) + 2).to_bytes(2, "big") + segment
    picture(40, 30).convert(mode).save(tmp_path / "a.jpg", comment=b"a comment", extra=marker)
    photo = load_photo(tmp_path / "a.jpg")
    save_photo(tmp_path / "b.jpg", photo)
    save_photo(tmp_path / "c.jpg", photo, keep_metadata=False)
    for name, kept in (("b.jpg", True), ("c.jpg", False)):
        data = (tmp_path / name).read_bytes()
        assert (segment in data) == kept and (b"a comment" in data) == kept


def test_a_tiffs_layout_does_not_get_into_the_exif_of_a_jpeg(tmp_path):
    tags = [(271, "s", 0, "Maker", True), (34377, "B", 70_000, bytes(70_000), True)]  # a large Photoshop block
    options = {"extratags": tags, "software": False, "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", np.array(picture(64, 48)), photometric="rgb", **options)
    save_photo(tmp_path / "b.jpg", load_photo(tmp_path / "a.tif"), format="JPEG")
    with Image.open(tmp_path / "b.jpg") as after:
        assert dict(after.getexif()) == {271: "Maker"}


def test_a_grey_profile_does_not_stay_on_colours(tmp_path):
    profile = bytearray(SRGB)
    grey = picture(40, 30).convert("L")
    grey.save(tmp_path / "a.png")
    photo = load_photo(tmp_path / "a.png")
    photo.profile = bytes(profile)
    save_photo(tmp_path / "b.webp", photo, format="WEBP")
    with Image.open(tmp_path / "b.webp") as after:
        assert "icc_profile" not in after.info


def test_avif_of_more_than_8_bits_is_refused(tmp_path):
    picture(64, 48).save(tmp_path / "a.avif")
    (tmp_path / "b.avif").write_bytes(imagecodecs.avif_encode(deep(48, 64) >> 6, bitspersample=10))
    assert load_photo(tmp_path / "a.avif").size == (64, 48)
    with pytest.raises(PhotoError, match="more than 8 bits"):
        load_photo(tmp_path / "b.avif")


@pytest.mark.parametrize("size", [(64, 48), (65, 49), (1, 1)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpegs_are_decoded_and_encoded_to_the_bit_as_pillow_does(tmp_path, monkeypatch, size, mode, progressive):
    path = tmp_path / "a.jpg"
    kept = {"exif": exif(), "icc_profile": SRGB if mode == "RGB" else None, "comment": b"mine", "dpi": (300, 200)}
    kept["exif"].pop(ExifTags.Base.Orientation)
    for subsampling, quality in ((0, 100), (1, 49), (2, 75), (2, "web_high")):
        options = {"quality": quality, "progressive": progressive, **kept}
        picture(*size).convert(mode).save(path, subsampling=subsampling, **options)
        photo = load_photo(path)
        assert isinstance(photo.pixels, np.ndarray)
        with Image.open(path) as image:
            assert np.array_equal(photo.pixels.reshape(np.array(image).shape), np.array(image))
            decoded = photo.pixels
            for options in ({}, {"quality": 33}, {"keep_metadata": False}):
                results = []
                for pixels in (decoded, to_8_bits(decoded)):
                    photo.pixels = pixels
                    save_photo(tmp_path / "b.jpg", photo, **options)
                    results.append((tmp_path / "b.jpg").read_bytes())
                assert results[0] == results[1]
        if mode == "RGB" and not progressive and quality != "web_high":
            photo.pixels = decoded
            with monkeypatch.context() as patch:
                patch.setattr("utils.photos.writing.to_8_bits", lambda pixels: pytest.fail("needs a copy"))
                save_photo(tmp_path / "b.jpg", photo)


def test_one_flipped_byte_in_a_jpeg_gives_what_pillow_gives(tmp_path):
    path = tmp_path / "a.jpg"
    picture(64, 48).save(path, quality=90)
    whole = path.read_bytes()
    for place in range(2, len(whole), 7):
        path.write_bytes(whole[:place] + bytes((whole[place] ^ 0x55,)) + whole[place + 1 :])
        try:
            with Image.open(path) as image:
                expected = np.array(image)
        except Exception:
            with pytest.raises(PhotoError):
                load_photo(path)
        else:
            if expected.ndim == 3 and expected.shape[2] == 3:
                assert np.array_equal(np.array(load_photo(path).pixels), expected)


def test_a_jpeg_that_is_cut_short_is_refused_though_its_thumbnail_is_whole(tmp_path):
    thumbnail = io.BytesIO()
    picture(16, 16).save(thumbnail, "JPEG")
    picture(64, 48).save(
        tmp_path / "a.jpg", extra=b"\xff\xe5" + (thumbnail.tell() + 2).to_bytes(2, "big") + thumbnail.getvalue()
    )
    whole = (tmp_path / "a.jpg").read_bytes()
    load_photo(tmp_path / "a.jpg")
    for length in (len(whole) - 1, len(whole) - 2, len(whole) - 100):
        (tmp_path / "b.jpg").write_bytes(whole[:length])
        with pytest.raises(PhotoError, match="cut short"):
            load_photo(tmp_path / "b.jpg")


def png_with(path, image, *chunks, **options):
    """Write a PNG with chunks of one's own after its header."""
    image.save(path, "PNG", **options)
    data = path.read_bytes()
    inserted = b"".join(_png_chunk(kind, content) for kind, content in chunks)
    path.write_bytes(data[:33] + inserted + data[33:])


def cicp(*codes):
    return b"cICP", bytes(codes)


def chrm(white, primaries):
    return b"cHRM", struct.pack(">8I", *(round(1e5 * value) for value in (*white, *primaries)))


P3 = (0.68, 0.32, 0.265, 0.69, 0.15, 0.06)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize(
    "chunks",
    [[cicp(12, 13, 0, 1)], [chrm((0.3127, 0.329), P3)], [chrm((0.3127, 0.329), P3), (b"gAMA", b"\0\0\xb1\x8f")]],
)
def test_colours_named_by_a_pngs_chunks_are_honoured_and_written(tmp_path, chunks, depth):
    image = picture(40, 30)
    if depth == 16:
        image = np.array(image).astype(np.uint16) * 257
        (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(image))
        data = (tmp_path / "a.png").read_bytes()
        added = b"".join(_png_chunk(*chunk) for chunk in chunks)
        (tmp_path / "a.png").write_bytes(data[:33] + added + data[33:])
    else:
        png_with(tmp_path / "a.png", image, *chunks)
    # Display P3 by its matrix, with the transfer function of sRGB
    light = to_linear(torch.from_numpy(np.array(picture(40, 30)) / 255).permute(2, 0, 1))
    matrix = torch.tensor([[1.2249, -0.2249, 0], [-0.0421, 1.0421, 0], [-0.0196, -0.0786, 1.0983]], dtype=torch.float64)
    expected = 255 * from_linear(torch.einsum("ij,jhw->ihw", matrix, light).clamp(0, 1)).permute(1, 2, 0).numpy()
    assert np.abs(np.array(read_photo(tmp_path / "a.png")) - expected).max() <= 2.5
    photo = load_photo(tmp_path / "a.png")
    save_photo(tmp_path / "b.png", photo)
    assert np.abs(np.array(read_photo(tmp_path / "b.png")) - expected).max() <= 2.5
    with Image.open(tmp_path / "b.png") as after:
        assert after.info["icc_profile"] == photo.profile and "gamma" not in after.info


@pytest.mark.parametrize("grey", [False, True])
def test_transfer_functions_of_a_png_are_honoured(tmp_path, grey):
    image = Image.new("L" if grey else "RGB", (8, 8), 120 if grey else (120, 120, 120))
    for chunk, expected in (
        (cicp(1, 8, 0, 1), 182),  # linear light
        ((b"gAMA", struct.pack(">I", 100_000)), 182),
        (cicp(1, 1, 0, 1), 132),  # BT.709
        (cicp(1, 13, 0, 1), 120),
        (cicp(2, 2, 0, 1), 120),
        ((b"gAMA", struct.pack(">I", 45455)), 120),
    ):
        png_with(tmp_path / "a.png", image, chunk)
        assert np.abs(np.array(read_photo(tmp_path / "a.png")).astype(int) - expected).max() <= 1, chunk
        assert (load_photo(tmp_path / "a.png").profile is None) == (expected == 120)


def test_which_of_a_pngs_chunks_counts(tmp_path):
    p3 = chrm((0.3127, 0.329), P3)
    png_with(tmp_path / "a.png", picture(40, 30), p3, (b"sRGB", b"\0"))
    assert load_photo(tmp_path / "a.png").profile is None  # sRGB before cHRM
    png_with(tmp_path / "a.png", picture(40, 30), p3, icc_profile=SRGB)
    assert load_photo(tmp_path / "a.png").profile == SRGB  # a profile before both
    png_with(tmp_path / "a.png", picture(40, 30), cicp(9, 13, 0, 1), icc_profile=SRGB)
    assert load_photo(tmp_path / "a.png").profile not in (None, SRGB)  # cICP before all
    png_with(tmp_path / "a.png", picture(40, 30), (b"cHRM", bytes(32)))
    assert load_photo(tmp_path / "a.png").profile is None  # damaged


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        ((9, 16, 0, 1), "HDR colours \\(PQ, cICP\\): save it as sRGB"),
        ((9, 18, 0, 1), "HLG"),
        ((3, 13, 0, 1), "unknown colours \\(cICP 3, 13\\)"),
        ((1, 13, 0, 0), "not full-range RGB"),
    ],
)
def test_a_png_whose_colours_cannot_be_honoured_is_refused(tmp_path, codes, words):
    png_with(tmp_path / "a.png", picture(40, 30), cicp(*codes))
    for read in (load_photo, read_photo):
        with pytest.raises(PhotoError, match=words):
            read(tmp_path / "a.png")


def test_colours_named_by_an_avif_are_honoured_or_refused(tmp_path):
    path, pixels = tmp_path / "a.avif", np.array(Image.new("RGB", (16, 16), (120, 60, 200)))
    for codes in ((1, 13), (12, 13), (9, 16), (1, 8)):
        data = bytearray(imagecodecs.avif_encode(pixels, level=100, pixelformat="444", codec="aom"))
        place = data.find(b"colrnclx") + 8
        data[place : place + 4] = struct.pack(">HH", *codes)
        path.write_bytes(data)
        if codes[1] == 16:
            with pytest.raises(PhotoError, match="HDR colours \\(PQ, nclx\\)"):
                load_photo(path)
            continue
        photo = load_photo(path)
        assert (photo.profile is None) == (codes == (1, 13))
        red = {(1, 13): 120, (12, 13): 128, (1, 8): 182}[codes]
        assert int(np.array(read_photo(path))[8, 8, 0]) == pytest.approx(red, abs=3)
        save_photo(tmp_path / "b.avif", photo)
        assert int(np.array(read_photo(tmp_path / "b.avif"))[8, 8, 0]) == pytest.approx(red, abs=4)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_texts_of_exif_keep_their_bytes(tmp_path, kind):
    class Utf8(str):
        def encode(self, *given):  # Pillow writes ASCII
            return "© Jürgen Müller".encode()

    exif = Image.Exif()
    for tag in (ExifTags.Base.Copyright, ExifTags.Base.Artist, ExifTags.Base.HostComputer):
        exif[tag] = Utf8("-")
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.LensModel] = Utf8("-")
    picture(40, 30).save(tmp_path / "a.jpg", exif=exif)
    save_photo(tmp_path / "b", load_photo(tmp_path / "a.jpg"), format=kind)
    save_photo(tmp_path / "c", load_photo(tmp_path / "b"))  # as it is read again
    for name in ("a.jpg", "b", "c"):
        assert (tmp_path / name).read_bytes().count("© Jürgen Müller".encode()) == 4


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF"])
def test_a_full_disk_is_an_error_and_leaves_the_old_file(tmp_path, kind, options):
    noise = np.random.default_rng(0).integers(0, 256, (90, 400, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg", quality=95, **options)
    photo = load_photo(tmp_path / "a.jpg")
    (tmp_path / "b").write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12000, before[1]))
    try:
        with pytest.raises(OSError, match=r".+"):
            save_photo(tmp_path / "b", photo, format=kind)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "b").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(("kind", "side"), [("JPEG", 65501), ("WEBP", 16384), ("AVIF", 32769)])
def test_what_a_format_cannot_hold_is_said(tmp_path, kind, side):
    Image.new("L", (side, 1)).save(tmp_path / "a.png")
    with pytest.raises(PhotoError, match=f"as {kind}, with more than {side - 1} pixels a side"):
        save_photo(tmp_path / "b", load_photo(tmp_path / "a.png"), format=kind)


def test_a_kind_of_tiff_that_is_not_read_is_said_to_be_one(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((20, 30, 3), np.float32), photometric="rgb")
    with pytest.raises(PhotoError, match="a kind of TIFF that is not read: save it with 8 or 16 bits"):
        load_photo(tmp_path / "a.tif")


@pytest.mark.parametrize("kind", ["TIFF", "JPEG", "PNG", "WEBP"])
def test_the_metadata_of_a_big_tiff_are_kept(tmp_path, kind):
    tifffile.imwrite(tmp_path / "a.tif", deep(), photometric="rgb", bigtiff=True, description="a boat", metadata=None)
    save_photo(tmp_path / "b", load_photo(tmp_path / "a.tif"), format=kind)
    with Image.open(tmp_path / "b") as image:
        assert image.getexif()[270] == "a boat"
