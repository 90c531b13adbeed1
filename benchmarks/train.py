"""Measure training: the step alone, the real loader, the loader alone, arithmetic against the device's, memory.

The step and the run are those of train.py, which is started as a command; the first epoch of a run is not counted.

examples:
  python benchmarks/train.py data/train
  python benchmarks/train.py data/train --set "image_size=[512,512]" --set batch_size=8 --set num_workers=16
  python benchmarks/train.py data/train --set "image_size=[256,256]" --set batch_size=4 --earlier
  git worktree add ../before 3ad8a84 && python benchmarks/train.py data/train --against ../before
  python benchmarks/train.py data/train --parts       of a step alone
"""

import argparse
import csv
import itertools
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.earlier_design import EarlierTraining
from data import make_pairs
from data.sources import build_loader, first_batch, open_folder
from models import Corrector, build_generator
from utils.config import Config, load_config
from utils.device import Arithmetic
from utils.training.objective import update, weighted_losses
from utils.training.processes import ALONE
from utils.training.start import new_state

EARLIER = "earlier design, loader included"


def main() -> None:
    """Print what was measured, in alternating rounds, with ratios of the same round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", help="folder of normally exposed photos")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of conf.json")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30, help="of every round of the loader and the earlier design")
    parser.add_argument("--earlier", action="store_true", help="also the loop of benchmarks/earlier_design.py")
    parser.add_argument("--against", type=Path, help="only runs of conf.json and of another checkout's, at 128 px")
    parser.add_argument("--parts", action="store_true", help="only the parts of a step")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options = [
            f"photo_cache_dir={folder}/cache",
            f"train_data_dir={Path(arguments.photos).resolve()}",
            "hdri_dir=",
            "scene_share=0",
        ]
        if arguments.against:
            compare([*options[:2], *arguments.set], Path(folder), arguments.against.resolve(), arguments.rounds)
        elif arguments.parts:
            print_parts(load_config(ROOT / "conf.json", [*options, *arguments.set]), arguments.photos)
        else:
            measure([*options, *arguments.set], Path(folder), arguments)


def measure(options: list[str], folder: Path, arguments: argparse.Namespace) -> None:
    """Print all figures of one configuration."""
    config = load_config(ROOT / "conf.json", options)
    arithmetic = Arithmetic(config.precision)
    corrector = arithmetic.place(Corrector(build_generator(config), config.working_size))
    photos = open_folder(config, arguments.photos, training=True)
    loader, batches = build_loader(config, photos, config.batch_size, arithmetic)
    steps = min(arguments.steps, len(batches))
    earlier = EarlierTraining(
        [path for path in photos.paths if isinstance(path, Path)],
        size=config.image_size[0],
        batch_size=config.batch_size,
        workers=config.num_workers,
    )
    speeds: dict[str, list[float]] = {}
    for _ in range(arguments.rounds):
        step_seconds, memory = dry_run(options)
        row: dict[str, float] = {"the step alone": config.batch_size / step_seconds}
        row["train.py"] = trained([*options, "views_per_photo=1"], folder / "run")
        row["loader alone"] = per_second(lambda: sum(len(b.names) for b in itertools.islice(loader, steps)))
        if arguments.earlier:
            row[EARLIER] = per_second(lambda: earlier.run(steps))
        for name, speed in row.items():
            speeds.setdefault(name, []).append(speed)
    print(f"{arithmetic}; {config.image_size} px, batch {config.batch_size}, network at {config.working_size} px")
    print("\n| | images/s | of the step alone |\n|---|---|---|")
    for name, values in speeds.items():
        ratios = [value / other for value, other in zip(values, speeds["the step alone"], strict=True)]
        print(f"| {name} | {statistics.median(values):.1f} | {statistics.median(ratios):.0%} |")
    print(f"\npeak memory of a step: {memory} MiB")
    print_arithmetic(corrector, arithmetic, config, statistics.median(speeds["the step alone"]))


def compare(options: list[str], folder: Path, other: Path, rounds: int) -> None:
    """Print the images per second of runs, loader included, of conf.json and of another checkout's, by turns."""
    view = [*options, "image_size=[128,128]"]
    speeds: dict[str, list[float]] = {}
    for _ in range(rounds):
        row = {
            "conf.json": trained([*view, "views_per_photo=1"], folder / "run"),
            "network at 128 px": trained(
                [*view, "views_per_photo=1", "working_size=128", "working_size_spread=0"], folder / "run"
            ),
            f"conf.json of {other.name}": trained(view, folder / "run", other),
        }
        for name, speed in row.items():
            speeds.setdefault(name, []).append(speed)
    print("| views of 128 px | images/s | ratio |\n|---|---|---|")
    for name, values in speeds.items():
        ratios = [value / before for value, before in zip(values, list(speeds.values())[-1], strict=True)]
        print(f"| {name} | {statistics.median(values):.1f} | {statistics.median(ratios):.2f} |")


def print_parts(config: Config, folder: str, repeats: int = 5) -> None:
    """Print which shares of a step's processor time, at `config.working_size`, its parts take."""
    arithmetic = Arithmetic(config.precision)
    state = new_state(config, arithmetic)
    batch = first_batch(open_folder(config, folder, training=True), config.batch_size)

    def step() -> None:
        with record_function("part: synthesis"):
            inputs, targets = make_pairs(batch, arithmetic, config.normalise_targets)
        with arithmetic.autocast():
            done = state.corrector.correct(inputs)
        torch.stack(list(weighted_losses(state, inputs, done, targets).values())).sum().backward()
        with record_function("part: optimiser, average of the weights"):
            update(state.generator_optimizer, ALONE, config.clip_gradient_norm)
            state.update_average()
            state.generator_optimizer.zero_grad(set_to_none=True)

    step()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(repeats):
            step()
    found = profiler.key_averages()
    whole = sum(event.self_cpu_time_total for event in found)
    of_parts = [event for event in found if event.key.startswith("part: ")]
    parts = {event.key.removeprefix("part: "): float(event.cpu_time_total) for event in of_parts}
    for name, word in (("convolutions", "convolution"), ("activations", "relu")):
        parts[name] = sum(event.self_cpu_time_total for event in found if word in event.key)
    parts["losses, curves, pyramid, copies"] = whole - sum(parts.values())
    print(f"{arithmetic}; network at {config.working_size} px\n\n| part of a step | |\n|---|---|")
    for name, time_taken in sorted(parts.items(), key=lambda part: -part[1]):
        print(f"| {name} | {time_taken / whole:.0%} |")


def command(*words: str, root: Path = ROOT) -> str:
    """Return what train.py of a checkout prints, run in its folder with its conf.json."""
    program = [sys.executable, "train.py", *words]
    done = subprocess.run(program, capture_output=True, text=True, cwd=root)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def overrides(options: list[str]) -> list[str]:
    """Return options as words of a command line."""
    return [word for option in options for word in ("--set", option)]


def dry_run(options: list[str]) -> tuple[float, str]:
    """Return the seconds of a step on data that is there, and its peak memory in MiB."""
    found = re.search(r"stage 1: ([\d.]+) s and ([\d,]+) MiB", command("--dry-run", *overrides(options)))
    assert found is not None
    return float(found[1]), found[2]


def trained(options: list[str], folder: Path, root: Path = ROOT) -> float:
    """Return the images per second of the second epoch of a checkout's run, loader included."""
    words = overrides([*options, "epochs=2", f"model_save_dir={folder}{time.monotonic_ns()}"])
    command(*words, root=root)
    newest = max(folder.parent.glob("run*/metrics.csv"), key=lambda path: path.stat().st_mtime)
    with newest.open(encoding="utf-8") as file:
        return float(list(csv.DictReader(file))[-1]["images_per_second"])


def per_second(function: Callable[[], int]) -> float:
    """Return how many photos a second a call, which returns their number, gets through."""
    started = time.perf_counter()
    return function() / (time.perf_counter() - started)


def print_arithmetic(corrector: Corrector, arithmetic: Arithmetic, config: Config, speed: float) -> None:
    """Print the FLOP/s of the step at `speed` photos per second beside the device's, and the U-Nets' shares of it."""
    photos = torch.rand(config.batch_size, 3, *config.image_size, device=arithmetic.device)
    counter = FlopCounterMode(display=False)
    with counter:
        with arithmetic.autocast():
            corrected = corrector.correct(photos).photo
        corrected.mean().backward()
    work = counter.get_total_flops() / len(photos)
    product, convolution = matrix_rate(arithmetic), convolution_rate(arithmetic, config)
    print(f"\n{work / 1e9:.1f} GFLOP for each image (forward and backward)")
    print("| | TFLOP/s | the step's share of it |\n|---|---|---|")
    print(f"| the step | {work * speed / 1e12:.3f} | |")
    print(f"| matrix product, 4096x4096 | {product / 1e12:.3f} | {work * speed / product:.0%} |")
    print(f"| 3x3 convolution, 64 to 64 channels | {convolution / 1e12:.3f} | {work * speed / convolution:.0%} |")
    print("\n| share of the step | |\n|---|---|")
    for name, value in unet_shares(corrector.network, arithmetic, config, len(photos) / speed).items():
        print(f"| {name} | {value:.0%} |")


def seconds(function: Callable[[], Any], arithmetic: Arithmetic, repeats: int = 10) -> float:
    """Return the median time of a call."""
    times = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        function()
        if arithmetic.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])


def matrix_rate(arithmetic: Arithmetic, size: int = 4096) -> float:
    """Return the FLOP/s of a square matrix product in the training's precision."""
    a, b = (torch.randn(size, size, device=arithmetic.device, dtype=arithmetic.dtype) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b, arithmetic)


def convolution_rate(arithmetic: Arithmetic, config: Config, channels: int = 64) -> float:
    """Return the FLOP/s of a 3x3 convolution of a batch at half its size, forward and backward."""
    height = width = config.working_size // 2
    layer = arithmetic.place(nn.Conv2d(channels, channels, 3, padding=1)).to(arithmetic.dtype)
    x = torch.randn(config.batch_size, channels, height, width, device=arithmetic.device, dtype=arithmetic.dtype)
    x = x.contiguous(memory_format=arithmetic.memory_format).requires_grad_()
    gradient = torch.ones_like(x)
    work = 3 * 2 * config.batch_size * height * width * channels * channels * 9
    return work / seconds(lambda: layer(x).backward(gradient), arithmetic)


def unet_shares(network: nn.Module, arithmetic: Arithmetic, config: Config, step_seconds: float) -> dict[str, float]:
    """Return the share of a step that each U-Net takes, forward and backward, measured alone."""
    unets = getattr(network, "unets", None)
    if unets is None:
        return {}
    shares = {}
    for position, unet in enumerate(unets):
        scale = 2 ** (len(unets) - 1 - position)
        size = [-(-config.working_size // scale)] * 2
        x = torch.rand(config.batch_size, 3, *size, device=arithmetic.device)
        x = x.contiguous(memory_format=arithmetic.memory_format).requires_grad_()

        def both(unet: nn.Module = unet, x: torch.Tensor = x) -> None:
            with arithmetic.autocast():
                y = unet(x)
            y.float().sum().backward()

        shares[f"U-Net of {size[1]}x{size[0]} px"] = seconds(both, arithmetic) / step_seconds
    shares["the rest: pyramid, curves, losses, synthesis, optimiser"] = 1 - sum(shares.values())
    return shares


if __name__ == "__main__":
    main()
