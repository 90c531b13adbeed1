// Applies curves to the picture on the screen where there is no WebGL2.

import {applyCurves} from "./curves.js";

let photo = null, space = "srgb";

onmessage = async ({data}) => {
  if (data.photo) {
    ({photo, space} = data);
    return;
  }
  const pixels = photo.data.slice();
  applyCurves(pixels, photo.width, photo.height, data.maps, data.strength, data.exposure);
  const bitmap = await createImageBitmap(new ImageData(pixels, photo.width, photo.height, {colorSpace: space}));
  postMessage({bitmap, number: data.number}, [bitmap]);
};
