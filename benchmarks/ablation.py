"""Compare recipes of training: conf.json's and single changes of it, with equal views but for `longer`, over seeds.

Every candidate is a run of `python train.py` from nothing; what evaluate.py makes of all of them follows, with paired
differences to the first and their intervals. Runs that are finished are not repeated, stopped ones go on.

examples:
  python benchmarks/ablation.py --seeds 3 --pairs PAIRS --good GOOD
  python benchmarks/ablation.py --epochs 2 --candidate conf.json --candidate daconv --pairs PAIRS
"""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

CANDIDATES: dict[str, list[str]] = {
    "conf.json": [],
    "no_scenes": ["scene_share=0"],
    "more_scenes": ["scene_share=0.4"],
    "mild_errors": ["camera_mild_share=0.15"],
    "no_stretch": ["camera_stretch=0"],
    "more_stretch": ["camera_stretch=2", "camera_stretch_share=0.4"],
    "more_untouched": ["identity_share=0.3"],
    "targets_of_any_brightness": ["normalise_targets=0"],
    "targets_of_one_brightness": ["normalise_targets=1"],
    "no_loss_behind_the_curves": ["corrected_weight=0", "reconstruction_weight=1", "pyramid_weight=1"],
    "loss_behind_the_curves_alone": ["reconstruction_weight=0", "pyramid_weight=0"],
    "no_ssim": ["ssim_weight=0"],
    "more_ssim": ["ssim_weight=0.6"],
    "one_working_size": ["working_size_spread=0"],
    "fewer_working_sizes": ["working_size_spread=0.25"],
    "many_working_sizes": ["working_size_spread=1"],
    "working_size_48": ["working_size=48"],
    "working_size_64": ["working_size=64"],
    "working_size_96": ["working_size=96"],
    "longer": ["epochs=13"],
    "views_of_96": ["image_size=[96,96]"],
    "views_of_256": ["image_size=[256,256]"],
    "wide_views": ["image_size=[104,156]"],
    "closer_views": ["crop_min_area=0.5"],
    "shown_as_it_is": ["shown_brighter=0"],
    "discriminator": ["begin_use_adv_loss_epoch=1", "discriminator_init_lr=1e-4"],
    "discriminator_at_the_end": ["begin_use_adv_loss_epoch=5", "discriminator_init_lr=1e-4"],
    "daconv": ["conv=daconv"],
}
"""How each candidate differs from conf.json."""


def main() -> None:
    """Train what is not trained yet, and let evaluate.py compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidate", action="append", choices=CANDIDATES, help="repeatable (default: all)")
    parser.add_argument("--epochs", type=int, help="of each run, but `longer` (default: conf.json's)")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each candidate")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key for all")
    parser.add_argument("--pairs", type=Path, help="folder of sets of real pairs, SET/input and SET/gt")
    parser.add_argument("--good", type=Path, help="folder of good photos, which are to stay as they are")
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"), help="folder of the runs")
    arguments = parser.parse_args()
    names = arguments.candidate or list(CANDIDATES)
    for seed in range(arguments.seeds):
        weights: list[str] = []
        for name in names:
            folder = arguments.output / f"{name}_{seed}"
            epochs = [f"epochs={arguments.epochs}"] if arguments.epochs else []
            command = [*epochs, f"seed={seed}", *arguments.set, *CANDIDATES[name], f"model_save_dir={folder}"]
            run("train.py", *(word for override in command for word in ("--set", override)))
            weights += ["-w", str(folder / "best.safetensors")]
        for dataset, root, more in (
            ("sets", arguments.pairs, ("--metric", "psnr_matched")),
            ("looks", arguments.good, ()),
        ):
            if root is not None:
                print(f"\nseed {seed}, {dataset} {root}", flush=True)
                run("evaluate.py", dataset, str(root), *weights, "--longest", "512", *more)


def run(script: str, *words: str) -> None:
    """Run one of the project's commands; end with its exit code if it fails."""
    code = subprocess.run([sys.executable, str(ROOT / script), *words]).returncode
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    main()
