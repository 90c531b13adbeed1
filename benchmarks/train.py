"""Measure training: the step alone, the real loader, the loader alone, arithmetic against the device's, memory.

examples:
  python benchmarks/train.py data/train
  python benchmarks/train.py data/train --set "image_size=[512,512]" --set batch_size=8 --set num_workers=16
  python benchmarks/train.py data/train --set "image_size=[256,256]" --set batch_size=4 --earlier
"""

import argparse
import dataclasses
import functools
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.earlier_design import EarlierTraining
from data import Batch
from data.sources import build_loader, open_folder
from train import train_step
from utils.config import Config, load_config
from utils.device import Arithmetic, peak_memory
from utils.training.progress import parameter_count
from utils.training.start import new_state
from utils.training.state import TrainingState

CEILING, EARLIER = "data on the device (the ceiling)", "earlier design, loader included"


def main() -> None:
    """Print what was measured, in alternating rounds, with ratios of the same round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", help="folder of normally exposed photos")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of conf.json")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30, help="of every round, at most an epoch's")
    parser.add_argument("--earlier", action="store_true", help="also the loop of benchmarks/earlier_design.py")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        config = load_config("conf.json", [f"photo_cache_dir={cache}", *arguments.set])
        measure(config, arguments)


def measure(config: Config, arguments: argparse.Namespace) -> None:
    """Print all figures of one configuration."""
    arithmetic = Arithmetic(config.precision)
    state = new_state(config, arithmetic)
    height, width = config.image_size
    shape = f"{width}x{height} px, batch {config.batch_size}"
    print(f"{arithmetic}; {parameter_count(state.generator)} parameters; {shape}")
    photos = open_folder(config, arguments.photos, training=True)
    loader, batches = build_loader(config, photos, config.batch_size, arithmetic)
    undecoded = open_folder(dataclasses.replace(config, photo_cache_gigabytes=0.0), arguments.photos, training=True)
    uncached, _ = build_loader(config, undecoded, config.batch_size, arithmetic)
    steps = min(arguments.steps, len(batches))
    batch = next(iter(loader))
    batch = dataclasses.replace(batch, photos=batch.photos.to(arithmetic.device))

    def step(one: Batch) -> Tensor:
        return train_step(state, one, arithmetic, adversarial=False)["loss"]

    runs: dict[str, Callable[[], int]] = {
        CEILING: functools.partial(run, itertools.repeat(batch), steps, step),
        "real loader": functools.partial(run, loader, steps, step),
        "real loader, without the cache": functools.partial(run, uncached, steps, step),
        "loader alone": functools.partial(run, loader, steps, None),
        "loader alone, without the cache": functools.partial(run, uncached, steps, None),
    }
    if arguments.earlier:
        earlier = EarlierTraining(photos.paths, size=height, batch_size=config.batch_size, workers=config.num_workers)
        print(f"earlier design: {parameter_count(earlier.network)} parameters, float32")
        runs[EARLIER] = functools.partial(earlier.run, steps)
    for _ in loader:  # fill the cache
        pass
    runs[CEILING]()
    speeds = alternate(runs, arguments.rounds)
    print_speeds(speeds, config.batch_size)
    print_arithmetic(state, batch, arithmetic, config, statistics.median(speeds[CEILING]))
    on_gpu = arithmetic.device.type == "cuda"
    memory = torch.cuda.max_memory_allocated() if on_gpu else peak_memory()
    print(f"\npeak memory {'of the GPU' if on_gpu else 'of the process'}: {memory / 2**20:,.0f} MiB")


def run(batches: Iterable[Batch], steps: int, step: Callable[[Batch], Tensor] | None) -> int:
    """Go through `steps` batches, training on each if there is a `step`; return the number of photos."""
    count, loss = 0, torch.zeros(())
    for batch in itertools.islice(batches, steps):
        if step is not None:
            loss = step(batch)
        count += len(batch.names)
    float(loss)  # wait for the device
    return count


def alternate(runs: dict[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
    """Return the photos per second of every run in every round."""
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, one in runs.items():
            started = time.perf_counter()
            count = one()
            speeds[name].append(count / (time.perf_counter() - started))
    return speeds


def print_speeds(speeds: dict[str, list[float]], batch_size: int) -> None:
    """Print medians, and medians of the ratios of one round."""
    print("\n| | images/s | steps/s | of the ceiling |\n|---|---|---|---|")
    for name, values in speeds.items():
        speed = statistics.median(values)
        share = statistics.median(value / other for value, other in zip(values, speeds[CEILING], strict=True))
        print(f"| {name} | {speed:.1f} | {speed / batch_size:.2f} | {share:.0%} |")
    if EARLIER in speeds:
        pairs = zip(speeds["real loader"], speeds[EARLIER], strict=True)
        print(f"\nreal loader : earlier design = {statistics.median(a / b for a, b in pairs):.2f}")


def print_arithmetic(state: TrainingState, batch: Batch, arithmetic: Arithmetic, config: Config, speed: float) -> None:
    """Print the FLOP/s of the step at `speed` photos per second beside the device's, and the U-Nets' shares of it."""
    counter = FlopCounterMode(display=False)
    with counter:
        train_step(state, batch, arithmetic, adversarial=False)
    work = counter.get_total_flops() / len(batch.names)
    product, convolution = matrix_rate(arithmetic), convolution_rate(arithmetic, config)
    print(f"\n{work / 1e9:.1f} GFLOP for each image (forward and backward)")
    print("| | TFLOP/s | the step's share of it |\n|---|---|---|")
    print(f"| the step | {work * speed / 1e12:.3f} | |")
    print(f"| matrix product, 4096x4096 | {product / 1e12:.3f} | {work * speed / product:.0%} |")
    print(f"| 3x3 convolution, 64 to 64 channels | {convolution / 1e12:.3f} | {work * speed / convolution:.0%} |")
    shares = unet_shares(state.generator, arithmetic, config, len(batch.names) / speed)
    if shares:
        print("\n| share of the step | |\n|---|---|")
        for name, value in shares.items():
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
    height, width = (side // 2 for side in config.image_size)
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
        size = [-(-side // scale) for side in config.image_size]
        x = torch.rand(config.batch_size, 3, *size, device=arithmetic.device)
        x = x.contiguous(memory_format=arithmetic.memory_format).requires_grad_()

        def both(unet: nn.Module = unet, x: torch.Tensor = x) -> None:
            with arithmetic.autocast():
                y = unet(x)
            y.float().sum().backward()

        shares[f"U-Net of {size[1]}x{size[0]} px"] = seconds(both, arithmetic) / step_seconds
    shares["the rest: pyramid, losses, synthesis, optimiser"] = 1 - sum(shares.values())
    return shares


if __name__ == "__main__":
    main()
