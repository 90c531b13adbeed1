"""Choose where and in which arithmetic the networks run."""

import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

Network = TypeVar("Network", bound=nn.Module)


class Arithmetic:
    """The device, precision and memory format that the networks run in: one path for all of them.

    Args:
        precision: "float32", in which photos are corrected: alike on all machines (on a GPU with TF32, to one
            level of 8 bits), and the quicker one at the size of small copies; "bfloat16"; or "auto" for bfloat16 where
            the hardware is fast with it.
        device: "auto" for what `choose_device` finds, or a name such as "cpu" and "cuda:1".

    Raises:
        ValueError: there is no such device.
    """

    def __init__(self, precision: str = "float32", device: str = "auto") -> None:
        self.device = choose_device() if device == "auto" else named_device(device)
        wanted = precision == "bfloat16" or (precision == "auto" and is_fast_with_bfloat16(self.device))
        self.dtype = torch.bfloat16 if wanted else torch.float32
        self.memory_format = torch.contiguous_format if self.device.type == "mps" else torch.channels_last

    def __str__(self) -> str:
        return f"{describe(self.device)}, {str(self.dtype).removeprefix('torch.')}"

    def autocast(self) -> torch.autocast:
        """Return the context in which the networks run."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def place(self, network: Network) -> Network:
        """Move a network to the device, in the memory format that is fast there."""
        return network.to(self.device).to(memory_format=self.memory_format)

    def photos(self, photos: Tensor) -> Tensor:
        """Return a `(B, 3, H, W)` uint8 batch on the device, as float32 in [0, 1]."""
        photos = send(photos, self.device).float().div(255)
        return photos.contiguous(memory_format=self.memory_format)


def choose_device() -> torch.device:
    """Return the first GPU that can be seen, else Apple's, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def named_device(name: str) -> torch.device:
    """Return the device of a name.

    Raises:
        ValueError: there is none, or it cannot be used.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # how torch says that it was built without the device
        raise ValueError(f'device "{name}" cannot be used: {str(error).splitlines()[0]}') from None
    return device


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the CPU on the device, by way of page-locked memory, from which a GPU fetches it by itself."""
    if device.type == "cuda" and torch.cuda.is_available() and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def fetch(tensor: Tensor) -> Tensor:
    """Return a tensor of the device on the CPU: what has to wait for the device goes through here.

    It is called by `train.validate`, once for the scores and once for the pictures of a validation. Besides, training
    waits in `Measured.record`, which reads a step's figures once the next step has been handed over, and for the state
    dictionaries of checkpoints and of the weights that processes begin with. `tests/test_devices.py` knows no others.
    """
    return tensor.cpu()


def places(mask: Tensor) -> Tensor:
    """Return where a mask `(B,)` is true, `(N,)`. It is on the CPU: how many there are would have to be waited for."""
    return mask.nonzero().flatten()


def use_large_pages() -> None:
    """Let PyTorch take its large tensors in pages of 2 MB, where Linux has them: a step on a CPU touches gigabytes.

    To be called before the first tensor is made. The environment's own setting takes precedence.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def peak_memory() -> float:
    """Return the most memory that this process has held so far, in bytes; NaN where the system does not tell."""
    if resource is None:
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def measure(work: Callable[[], object], device: torch.device, count: int = 3) -> tuple[float, float]:
    """Return the mean seconds of `count` calls and the peak memory in bytes, of the GPU or process.

    `work` must wait for the device. A call before the others is not timed: it allocates.
    """
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    work()
    started = time.monotonic()
    for _ in range(count):
        work()
    memory = torch.cuda.max_memory_allocated() if on_gpu else peak_memory()
    return (time.monotonic() - started) / count, memory


def describe(device: torch.device) -> str:
    """Return the device's name for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "Apple GPU" if device.type == "mps" else f"CPU with {torch.get_num_threads()} threads"


def is_fast_with_bfloat16(device: torch.device) -> bool:
    """Tell whether the device multiplies bfloat16 in hardware: NVIDIA from Ampere on, CPUs with AMX or AVX512-BF16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        try:
            flags = Path("/proc/cpuinfo").read_text().split()
        except OSError:  # not Linux
            return False
        return "amx_bf16" in flags or "avx512_bf16" in flags
    return False
