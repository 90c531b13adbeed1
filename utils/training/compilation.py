"""Compile the network for training, where that works."""

import sys
from typing import Any

import torch
from torch import nn

from models import Corrector

from ..device import Arithmetic
from .processes import ALONE, Processes
from .schedule import draw_working_size
from .state import TrainingState

VARIANTS = 256
"""Sizes of the network's input to compile for; beyond, PyTorch runs it as it is."""


def compile_generator(state: TrainingState, arithmetic: Arithmetic, processes: Processes = ALONE) -> None:
    """Let training run `state.generator` compiled, if the configuration wants it and all processes can.

    A pass forward and backward is tried first, at the size of the next step. Where it fails, one line on stderr says
    why, and training goes on as if nothing had been tried. `state.generator` itself stays as it is, names included:
    validation, checkpoints, the average of the weights and exports know of nothing.
    """
    if not state.config.compile:
        return
    compiled: Any = None
    failure = ""
    buffers = {name: buffer.clone() for name, buffer in state.generator.named_buffers()}
    try:
        # Not dynamic: tracing the pyramid's sizes as symbols takes longer than compiling for one, and does not last.
        torch._dynamo.config.recompile_limit = VARIANTS
        compiled = torch.compile(state.generator, dynamic=False)
        _try_step(state, compiled, arithmetic, processes)
    except Exception as error:  # of the compiler, of what it calls, or of what it has made
        failure = _reason(error)
    finally:
        state.generator.zero_grad(set_to_none=True)
        for name, buffer in state.generator.named_buffers():
            buffer.copy_(buffers[name])
    failures = [reason for reason in processes.gather(failure) if reason]
    if not failures:
        state.compiled = compiled
    elif processes.is_first:
        print(f"WARNING compile = true: {failures[0]}; going on without compiling", file=sys.stderr)


def _try_step(state: TrainingState, compiled: nn.Module, arithmetic: Arithmetic, processes: Processes) -> None:
    stage = state.config.schedule[0]
    count = -(-stage.batch_size // (processes.count * state.config.accumulation_steps))
    photos = torch.full((count, 3, *stage.image_size), 0.5, device=arithmetic.device)
    photos = photos.contiguous(memory_format=arithmetic.memory_format)
    size = draw_working_size(state.config, state.epoch, state.step + 1)
    with arithmetic.autocast():
        outputs = Corrector(compiled, size).correct(photos).outputs
    torch.stack([output.float().mean() for output in outputs]).sum().backward()


def _reason(error: Exception) -> str:
    """Return an error of the compiler in a few words: its message begins with which backend it was, in a line."""
    lines = [line.strip() for line in str(error).splitlines()]
    line = next((line for line in lines if line and not line.endswith("raised:")), type(error).__name__)
    return line.rstrip(".:") if len(line) <= 120 else line[:117] + "..."
