"""The same numbers again: in the same run, and in one that was stopped in between."""

import hashlib
import os
import random

import numpy as np
import torch


def make_deterministic() -> None:
    """Let PyTorch take the same bits every time where it can, and warn where it cannot."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)


def seed_step(seed: int, epoch: int, step: int, rank: int) -> None:
    """Seed every generator of random numbers anew for a step, so that a resumed run goes on as if never stopped."""
    digest = hashlib.sha256(f"{seed} {epoch} {step} {rank}".encode()).digest()
    number = int.from_bytes(digest[:4], "little")
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)
