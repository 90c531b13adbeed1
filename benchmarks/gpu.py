"""Try a machine with a GPU, in one command: is it right, does it resume, how fast is it. One Markdown table.

Needs a folder of photos; takes some minutes. What fails is said in the table, and by the exit code.

examples:
  python benchmarks/gpu.py data/train > gpu.md
  python benchmarks/gpu.py data/train --device cpu --sizes 128 --set batch_size=4
"""

import argparse
import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.train import matrix_rate, overrides, per_second
from data import Batch, make_pairs
from data.sources import build_loader, first_batch, open_folder
from models import Corrector, build_generator
from models.losses import reconstruction_loss
from utils.config import Config, load_config
from utils.device import Arithmetic, describe, measure
from utils.photos.predictor import Predictor
from utils.training.checkpoint import load_checkpoint

TOLERANCE = 1e-3
"""Largest difference of loss and gradients between the CPU and the GPU, in float32, of the largest gradient."""
SIZES = (128, 256, 512)
Row = tuple[str, str, bool]
"""What was tried, what came of it, and whether it may pass."""


def main(argv: list[str] | None = None) -> int:
    """Print the table; return 1 if something that has to hold does not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", help="folder of normally exposed photos")
    parser.add_argument("--device", default="cuda", help='"cuda", or "cpu" to try this script')
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="of views, in pixels")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of conf.json")
    arguments = parser.parse_args(argv)
    if arguments.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    options = ["hdri_dir=", "scene_share=0", f"train_data_dir={arguments.photos}", *arguments.set]
    config = load_config(ROOT / "conf.json", options)
    try:
        arithmetic = Arithmetic(config.precision, arguments.device)
    except ValueError as error:
        parser.error(str(error))
    rows: list[Row] = []
    print(
        f"{describe(arithmetic.device)}, PyTorch {torch.__version__}, {os.cpu_count()} cores: `{' '.join(sys.argv)}`\n"
    )
    print("| | | |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trials: list[Callable[[], list[Row]]] = [
            lambda: equality(config, arguments.device),
            lambda: resume(options, folder),
            lambda: memory(arithmetic),
            lambda: speed(config, arithmetic, arguments.sizes),
            lambda: loading(config, arithmetic, max(arguments.sizes)),
            lambda: two_processes(options, folder),
        ]
        for trial in trials:
            for row in trial():
                rows.append(row)
                print(f"| {row[0]} | {row[1]} | {'' if row[2] else '**fails**'} |", flush=True)
    return 0 if all(row[2] for row in rows) else 1


def a_batch(config: Config, size: int, count: int) -> Batch:
    """Return the first batch of training views of a size."""
    photos = open_folder(config, config.train_data_dir, training=True).with_image_size((size, size))
    return first_batch(photos, min(count, len(photos)))


def gradients(config: Config, batch: Batch, arithmetic: Arithmetic) -> tuple[float, Tensor]:
    """Return the loss of a batch and its gradient, flat, from the same weights on every device."""
    torch.manual_seed(config.seed)
    network = build_generator(config)
    for parameter in network.parameters():  # away from the identity, where a network has almost no gradient
        torch.nn.init.normal_(parameter, std=0.02)
    corrector = arithmetic.place(Corrector(network, config.working_size))
    inputs, targets = make_pairs(batch, arithmetic, config.normalise_targets)
    loss = reconstruction_loss(corrector.correct(inputs).photo, targets)
    loss.backward()
    found = [parameter.grad.flatten().cpu() for parameter in network.parameters() if parameter.grad is not None]
    return loss.item(), torch.cat(found)


def equality(config: Config, device: str) -> list[Row]:
    """Compare the CPU with the device: synthesis, correction, loss and gradient, in float32."""
    batch = a_batch(config, config.image_size[0], 4)
    allowed, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    (loss, gradient), (other_loss, other) = (
        gradients(config, batch, Arithmetic("float32", d)) for d in ("cpu", device)
    )
    torch.backends.cudnn.allow_tf32 = allowed
    difference = max(abs(loss / other_loss - 1), ((gradient - other).abs().max() / gradient.abs().max()).item())
    holds = difference <= TOLERANCE
    return [("CPU and device: loss and gradient", f"differ by {difference:.1e} (at most {TOLERANCE:.0e})", holds)]


def train(words: list[str], until: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run train.py to its end, or stop it by SIGTERM once a file is there."""
    command = [sys.executable, str(ROOT / "train.py"), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while until is not None and process.poll() is None and not until.exists():
            time.sleep(0.05)
        if until is not None:
            process.send_signal(signal.SIGTERM)
        output, errors = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def resume(options: list[str], folder: Path) -> list[Row]:
    """Compare a run that was stopped in between with one that was not."""
    short = [*options, "epochs=2", "deterministic=true", "checkpoint_every_steps=1", f"photo_cache_dir={folder}/cache"]
    runs = []
    for name, stops in (("whole", False), ("stopped", True)):
        words = overrides([*short, f"model_save_dir={folder / name}"])
        if stops:
            train(words, folder / name / "last.pt")
        done = train(words)
        if done.returncode:
            return [("a run that is stopped and resumed", done.stderr.strip().splitlines()[-1], False)]
        runs.append(load_checkpoint(folder / name / "last.pt")["generator"])
    worst = max((runs[0][key] - runs[1][key]).abs().max().item() for key in runs[0])
    return [("weights of a run that was stopped, and of one that was not", f"differ by {worst:.1e}", worst <= 1e-5)]


def remaining(size: int) -> Iterator[Tensor]:
    """Take all of the GPU's memory that PyTorch may have, in pieces of a size in bytes."""
    with contextlib.suppress(torch.OutOfMemoryError):
        while True:
            yield torch.empty(size, dtype=torch.uint8, device="cuda")


def memory(arithmetic: Arithmetic) -> list[Row]:
    """Correct a photo on a GPU without memory."""
    name = "predict.py without memory on the GPU"
    if arithmetic.device.type != "cuda":
        return [(name, "no GPU", True)]
    predictor = Predictor.from_weights(ROOT / "weights" / "msec.safetensors", device="cuda")
    photo = np.random.default_rng(0).integers(0, 256, (600, 800, 3), dtype=np.uint8)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-6)
    held = [rest for size in (2**20, 2**9) for rest in remaining(size)]  # what PyTorch has left of its blocks, too
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        predictor.predict(photo)
    torch.cuda.set_per_process_memory_fraction(1.0)
    held.clear()
    has_said = any("out of memory" in str(warning.message) for warning in said)
    return [(name, "goes on with the CPU and says so" if has_said else "says nothing", has_said)]


def speed(config: Config, arithmetic: Arithmetic, sizes: list[int]) -> list[Row]:
    """Return views per second of synthesis, correction and gradient, and the share of a matrix product's rate."""
    peak = matrix_rate(arithmetic, 4096 if arithmetic.device.type == "cuda" else 1024)
    rows = []
    for size in sizes:
        count = max(config.batch_size * config.image_size[0] ** 2 // size**2, 1)
        batch = a_batch(config, size, count)
        corrector = arithmetic.place(Corrector(build_generator(config), size))

        def step(batch: Batch = batch, corrector: Corrector = corrector) -> float:
            inputs, targets = make_pairs(batch, arithmetic, config.normalise_targets)
            with arithmetic.autocast():
                photo = corrector.correct(inputs).photo
            loss = reconstruction_loss(photo, targets)
            loss.backward()
            return loss.item()  # waits

        with FlopCounterMode(display=False) as counter:
            step()
        seconds, held = measure(step, arithmetic.device)
        share = counter.get_total_flops() / seconds / peak
        text = (
            f"{len(batch.names) / seconds:.1f} views/s, {share:.0%} of a matrix product's rate, {held / 2**20:,.0f} MiB"
        )
        rows.append(
            (f"step at {size} px, the network too, batch of {len(batch.names)}, {arithmetic.dtype}", text, True)
        )
    return rows


def loading(config: Config, arithmetic: Arithmetic, size: int) -> list[Row]:
    """Return views per second of the loader, decoding every photo and from the cache."""
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        tried = dataclasses.replace(config, num_workers=os.cpu_count() or 1, photo_cache_dir=cache)
        photos = open_folder(tried, tried.train_data_dir, training=True).with_image_size((size, size))
        loader, batches = build_loader(tried, photos, tried.batch_size, arithmetic)
        for epoch, name in enumerate(("decoding and storing", "from the cache"), start=1):
            batches.epoch = epoch
            rate = per_second(lambda: sum(len(batch.names) for batch in loader))
            rows.append((f"loader at {size} px, {name}", f"{rate:.1f} views/s with {os.cpu_count()} workers", True))
    return rows


def two_processes(options: list[str], folder: Path) -> list[Row]:
    """Compare an epoch of two processes with one of one process: on two GPUs, or else on the CPU with gloo."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} | ({} if gpus > 1 else {"CUDA_VISIBLE_DEVICES": ""})
    where = "two GPUs, NCCL" if gpus > 1 else "the CPU, gloo"
    losses = []
    for count in (1, 2):
        words = overrides([*options, "epochs=1", "precision=float32", f"model_save_dir={folder}/of{count}"])
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", str(ROOT / "train.py")]
        done = subprocess.run([sys.executable, *launch, *words], capture_output=True, text=True, env=environment)
        found = re.search(r"loss ([\d.e+-]+)", done.stdout)
        if done.returncode or found is None:
            return [(f"two processes on {where}", done.stderr.strip().splitlines()[-1], False)]
        losses.append(float(found[1]))
    holds = abs(losses[0] / losses[1] - 1) < TOLERANCE
    return [(f"loss of an epoch of one process and of two on {where}", f"{losses[0]:.4g} and {losses[1]:.4g}", holds)]


if __name__ == "__main__":
    sys.exit(main())
