"""Choose where and in which arithmetic the networks run."""

from pathlib import Path

import torch


def choose_device() -> torch.device:
    """Return the first GPU that can be seen, else Apple's, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def describe(device: torch.device) -> str:
    """Return the device's name for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "Apple GPU" if device.type == "mps" else f"CPU, {torch.get_num_threads()} threads"


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
