"""Cost of DAConv: a plain convolution, DAConv, and the paper's four convolutions, side by side in one run.

Times are medians over rounds in which every variant takes its turn. Memory is counted in tensors: what a training step
holds at its peak, and the parameters with Adam's two moments that stay between steps.

example:
  python benchmarks/daconv.py
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from models import NETWORKS, build_generator
from models.daconv import DAConv, merge_daconv, to_daconv
from tests.literal_daconv import literal_copy
from utils.config import load_config
from utils.device import choose_device, describe

LAYERS = [  # batch, channels in and out, side, kernel: the generator's at 128x128, DCE-Net's, and others
    (16, 24, 24, 128, 3),
    (16, 48, 48, 64, 3),
    (16, 96, 96, 32, 3),
    (16, 192, 192, 16, 3),
    (16, 384, 384, 8, 3),
    (8, 32, 32, 128, 3),
    (4, 64, 64, 64, 5),
    (1, 64, 64, 64, 3),
]
BATCHES = {"msec": 16, "zero_dce": 8, "prenet": 2}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
VARIANTS = ("plain", "daconv", "literal")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    device = choose_device()
    print(f"{describe(device)}, torch {torch.__version__}, {arguments.rounds} rounds\n")

    print("forward + backward | precision | plain, ms | DAConv : plain | literal : plain | literal : DAConv")
    for precision, dtype in PRECISIONS.items():
        for batch, before, after, side, kernel in LAYERS:
            conv = nn.Conv2d(before, after, kernel, padding=kernel // 2)
            x = torch.rand(batch, before, side, side, device=device)
            steps = [training_step(network, x, dtype) for network in variants(conv, device, dtype)]
            name = f"{batch}x{before}x{side}x{side}, {kernel}x{kernel} to {after}"
            print_ratios(name, precision, rounds(steps, arguments.rounds))
        for model in NETWORKS:
            x = torch.rand(BATCHES.get(model, 4), 3, 128, 128, device=device)
            steps = [training_step(network, x, dtype) for network in variants(build(model), device, dtype)]
            print_ratios(
                f"{model}, {BATCHES.get(model, 4)}x3x128x128", precision, rounds(steps, max(arguments.rounds // 2, 1))
            )

    print("\ninference | precision | plain, ms | merged : plain | DAConv, kernel kept : plain")
    for precision, dtype in PRECISIONS.items():
        for model in NETWORKS:
            plain, decoupled, _ = variants(build(model), device, dtype)
            networks = [plain.eval(), merge_daconv(decoupled).eval(), decoupled.eval()]
            x = torch.rand(1, 3, 256, 256, device=device)
            times = rounds([inference(network, x, dtype) for network in networks], 2 * arguments.rounds)
            ratios = [statistics.median(a / b for a, b in zip(time, times[0], strict=True)) for time in times[1:]]
            print_row(f"{model}, 1x3x256x256", precision, f"{1e3 * statistics.median(times[0]):.1f}", ratios)

    print("\nmemory | precision | a step's own, plain, MB | DAConv : plain | with parameters and Adam : plain")
    for precision, dtype in PRECISIONS.items():
        for model, side in (("msec", 128), ("msec", 256), ("zero_dce", 128), ("prenet", 128)):
            x = torch.rand(BATCHES.get(model, 4), 3, side, side, device=device)
            memories = [step_memory(network, x, dtype) for network in variants(build(model), device, dtype)[:2]]
            (step, kept), (decoupled_step, decoupled_kept) = memories
            ratios = [decoupled_step / step, (decoupled_step + decoupled_kept) / (step + kept)]
            print_row(f"{model}, {BATCHES.get(model, 4)}x3x{side}x{side}", precision, f"{step / 1e6:.0f}", ratios)


def build(model: str) -> nn.Module:
    """Return an untrained network, plain, as conf.json describes it."""
    return build_generator(load_config("conf.json", [f"model={model}", "conv=plain"]))


def variants(plain: nn.Module, device: torch.device, dtype: torch.dtype) -> list[nn.Module]:
    """Return a network with plain convolutions, with DAConv and with the paper's four convolutions."""
    decoupled, _ = to_daconv(plain, keep_function=True)
    literal, _ = to_daconv(plain, keep_function=True)
    if isinstance(literal, DAConv):
        literal = literal_copy(literal)
    for name, layer in list(literal.named_modules()):
        if name and isinstance(layer, DAConv):
            literal.set_submodule(name, literal_copy(layer))
    memory_format = torch.channels_last if dtype == torch.bfloat16 else torch.contiguous_format
    return [network.to(device).to(memory_format=memory_format) for network in (plain, decoupled, literal)]


def training_step(network: nn.Module, x: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """Return a forward and backward pass with gradients to the input and to every parameter."""
    x = to_format(x, dtype).requires_grad_()

    def step() -> None:
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            output = network(x)
        (output[0] if isinstance(output, list) else output).float().square().mean().backward()
        network.zero_grad()
        x.grad = None

    return step


def inference(network: nn.Module, x: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """Return a forward pass without gradients."""
    x = to_format(x, dtype)

    def step() -> None:
        with torch.no_grad(), torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            network(x)

    return step


def to_format(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the batch in the memory format that is used with a precision."""
    return x.contiguous(memory_format=torch.channels_last if dtype == torch.bfloat16 else torch.contiguous_format)


def rounds(steps: list[Callable[[], None]], count: int) -> list[list[float]]:
    """Return the seconds of every step, the steps taking turns; the first two rounds warm up."""
    times: list[list[float]] = [[] for _ in steps]
    for turn in range(count + 2):
        for step, seconds in zip(steps, times, strict=True):
            started = time.perf_counter()
            step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= 2:
                seconds.append(time.perf_counter() - started)
    return times


def print_ratios(name: str, precision: str, times: list[list[float]]) -> None:
    """Print a row: the plain median and the medians of the rounds' ratios."""
    plain, decoupled, literal = times
    ratios = [
        statistics.median(a / b for a, b in zip(first, second, strict=True))
        for first, second in ((decoupled, plain), (literal, plain), (literal, decoupled))
    ]
    print_row(name, precision, f"{1e3 * statistics.median(plain):.1f}", ratios)


def print_row(name: str, precision: str, plain: str, ratios: list[float]) -> None:
    """Print a row of a table."""
    print(" | ".join([name, precision, plain, *(f"{ratio:.2f}" for ratio in ratios)]), flush=True)


def step_memory(network: nn.Module, x: Tensor, dtype: torch.dtype) -> tuple[float, float]:
    """Return the bytes that a training step holds at its peak, and those of parameters and Adam's state before it."""
    optimizer = torch.optim.Adam(network.parameters())
    x = to_format(x, dtype)

    def step() -> None:
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            output = network(x)[0]
        output.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    kept = 3.0 * sum(parameter.nbytes for parameter in network.parameters())
    if x.device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before, kept
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    assert profile.profiler is not None and profile.profiler.kineto_results is not None
    changes = (event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]")
    return float(max(itertools.accumulate(changes))), kept


if __name__ == "__main__":
    main()
