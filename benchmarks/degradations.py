"""Show what the network is trained on: photos, views of scenes, and random draws of their mis-exposures by conf.json.

Each photo has two rows: itself and draws of the colour jitter, itself and draws of the camera. Each scene has one: a
view, developed well, and draws of the camera.

example:
  python benchmarks/degradations.py PHOTO.jpg OTHER.jpg --scenes data/hdri --views 4 -o docs/degradations.jpg
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

sys.path.insert(0, str(Path(__file__).parent.parent))

from data import camera, color_jitter, draw_camera, draw_jitter
from data.camera import scene_camera
from data.scenes import develop, draw_view, find_scenes
from data.sources import camera_range
from utils.config import load_config
from utils.evaluation.metrics import quantise
from utils.photos.reading import read_photo

COLUMNS, GAP = 7, 4


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="*")
    parser.add_argument("--scenes", type=Path, metavar="FOLDER", help="of scenes in linear light")
    parser.add_argument("--views", type=int, default=4, help="scenes to show, spread over the folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    config, rng = load_config("conf.json"), np.random.default_rng(arguments.seed)
    height, width = config.image_size
    rows = []
    for path in arguments.photos:
        view = np.array(ImageOps.fit(read_photo(path), (width, height), Image.Resampling.BOX))
        photos = (torch.from_numpy(view).permute(2, 0, 1) / 255).repeat(COLUMNS, 1, 1, 1)
        factors, orders = zip(*(draw_jitter(rng, config.color_jitter) for _ in photos), strict=True)
        draws = [draw_camera(rng, camera_range(config)) for _ in photos]
        jittered = color_jitter(photos, torch.stack(factors), torch.stack(orders))
        developed = camera(photos, torch.stack(draws))
        rows += [torch.cat((photos[:1], quantise(inputs))) for inputs in (jittered, developed)]
    scenes = find_scenes(arguments.scenes) if arguments.scenes else []
    for index in np.linspace(0, len(scenes) - 1, min(arguments.views, len(scenes))).round().astype(int):
        view = draw_view(scenes[index], (height, width), rng)
        light = torch.from_numpy(view).permute(2, 0, 1).repeat(COLUMNS, 1, 1, 1)
        draws = [draw_camera(rng, camera_range(config)) for _ in light]
        rows.append(torch.cat((develop(light[:1]), quantise(scene_camera(light, torch.stack(draws))))))
        print(scenes[index].name)
    sheet = Image.new("RGB", ((COLUMNS + 1) * (width + GAP) - GAP, len(rows) * (height + GAP) - GAP), "white")
    for row, tiles in enumerate(rows):
        for column, tile in enumerate(tiles):
            pixels = (tile * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
            sheet.paste(Image.fromarray(pixels), (column * (width + GAP), row * (height + GAP)))
    sheet.save(arguments.output, quality=85)


if __name__ == "__main__":
    main()
