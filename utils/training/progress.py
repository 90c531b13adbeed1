"""What a training run tells while it is running: figures of steps, the bar, photos that cannot be used."""

import math
import signal
import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..config import Config
from ..device import Arithmetic
from .processes import ALONE, Processes
from .schedule import Epoch
from .state import TrainingState

_STOPS = (signal.SIGINT, signal.SIGTERM)


class NonFiniteLossError(Exception):
    """A loss that is NaN or infinite. The message names the step, the parts of the loss and the photos."""

    is_shared = False
    """Whether all processes raise it."""


class FailureLog:
    """Name each photo that cannot be used once, however often it is met."""

    def __init__(self) -> None:
        self.paths: set[str] = set()
        self._unsaid: list[tuple[str, str]] = []

    def report(self, failures: Sequence[tuple[str, str]], processes: Processes = ALONE) -> None:
        """Print the failures that were not reported before; those of other processes wait for `collect`."""
        for path, reason in failures:
            if path not in self.paths:
                self.paths.add(path)
                if processes.is_first:
                    tqdm.write(f"ERROR {path}: {reason}; skipped", file=sys.stderr)
                else:
                    self._unsaid.append((path, reason))

    def collect(self, processes: Processes) -> None:
        """Let the first process print what the others have met. All of them must call it."""
        for failures in processes.gather(self._unsaid)[1:]:
            self.report(failures, processes)
        self._unsaid = []


class Measured:
    """What a step measured, on its way from the device; all processes must make one for every step.

    Args:
        parts: what `train_step` returned.
        stop: the signal that asks this process to stop, or 0.
        epoch, step: where training is, for the error message.
        count: photos of the step, of all processes together.
        names: of this process's photos, for the error message.
        processes: those that train together.
    """

    def __init__(
        self,
        parts: dict[str, Tensor],
        stop: int,
        epoch: int,
        step: int,
        count: int,
        names: list[str],
        processes: Processes,
    ) -> None:
        self.names, self.where, self.count, self.photos = list(parts), (epoch, step), count, names
        values = [value / processes.count if name.endswith("gradient") else value for name, value in parts.items()]
        # one process's signal stops all, after the same step
        values += [torch.full_like(values[0], stop == number) for number in _STOPS]
        self._values = processes.sum(torch.stack(values)).to("cpu", non_blocking=True)
        self._arrived = torch.cuda.Event() if values[0].is_cuda else None
        if self._arrived is not None:
            self._arrived.record()

    def record(self, state: TrainingState, progress: "Progress") -> int:
        """Wait for the values, add them to the epoch's totals, and return the signal to stop for, or 0.

        Raises:
            NonFiniteLossError: one of them is NaN or infinite.
        """
        if self._arrived is not None:
            self._arrived.synchronize()
        values = self._values.tolist()
        stops = [number for number, asked in zip(_STOPS, values[-len(_STOPS) :], strict=True) if asked]
        values = values[: -len(_STOPS)]
        parts = dict(zip(self.names, values, strict=True))
        if not all(math.isfinite(value) for value in values):
            listed = ", ".join(f"{name} = {value:g}" for name, value in parts.items())
            epoch, step = self.where
            error = NonFiniteLossError(
                f"the loss is not finite in epoch {epoch}, step {step}: {listed}; photos: {', '.join(self.photos)}. "
                "Checkpoints stay as they are: lower init_lr, set clip_gradient_norm, or look at these photos"
            )
            error.is_shared = True
            raise error
        for name, value in {**parts, "photos": 1.0}.items():
            state.totals[name] = state.totals.get(name, 0) + value * self.count
        progress.show(state)
        return max(stops, default=0)


class Progress:
    """The bar of an epoch and its speed.

    Args:
        state: at the epoch's start, or in the middle of it.
        epoch: the epoch.
        plan: all epochs.
        photo_count: training photos.
        is_shown: whether this process prints.
    """

    def __init__(
        self, state: TrainingState, epoch: Epoch, plan: list[Epoch], photo_count: int, *, is_shown: bool
    ) -> None:
        self.speed = 0.0
        self._started, self._photos_before = time.monotonic(), state.totals.get("photos", 0)
        self._photos_left = (len(plan) - epoch.number + 1) * photo_count
        self._bar = tqdm(
            total=epoch.steps,
            initial=state.step,
            desc=f"epoch {epoch.number}/{len(plan)}",
            bar_format="{desc} {bar:10} {n_fmt}/{total_fmt}{postfix}",
            disable=None if is_shown else True,
            leave=False,
        )

    def show(self, state: TrainingState) -> None:
        """Advance the bar and show this epoch's means so far; what matters most comes first: terminals are narrow."""
        photos = state.totals["photos"]
        self.speed = (photos - self._photos_before) / max(time.monotonic() - self._started, 1e-9)
        unshown = ("photos", "psnr", "gradient", "discriminator_gradient")
        parts = [f"{name} {total / photos:.3g}" for name, total in state.totals.items() if name not in unshown]
        facts = [
            f"left {tqdm.format_interval(max(self._photos_left - photos, 0) / max(self.speed, 1e-9))}",
            f"{self.speed:.1f} img/s",
            f"psnr {state.totals['psnr'] / photos:.2f}",
            f"lr {state.generator_optimizer.param_groups[0]['lr']:.1e}",
        ]
        self._bar.set_postfix_str(", ".join(facts + parts), refresh=False)
        self._bar.update()

    def close(self) -> None:
        """Clear the bar: the epoch's line follows."""
        self._bar.close()


def announce(
    config: Config,
    state: TrainingState,
    arithmetic: Arithmetic,
    photo_count: int,
    plan: list[Epoch],
    processes: int = 1,
) -> None:
    """Print what is about to happen."""
    count = f"{processes} processes, " if processes > 1 else ""
    print(f"{count}{arithmetic}; {config.model}, {parameter_count(state.generator)} parameters", file=sys.stderr)
    for number, stage in enumerate(config.schedule, start=1):
        height, width = stage.image_size
        steps = next(epoch.steps for epoch in plan if epoch.stage == number)
        begin = stage.begin_use_adv_loss_epoch
        adversary = f", discriminator from epoch {begin}" if begin <= stage.epochs else ""
        print(
            f"{f'stage {number}: ' if config.stages else ''}{photo_count} photos in views of {width}x{height} px, "
            f"{stage.epochs} epochs of {steps} steps of {stage.batch_size}{adversary}",
            file=sys.stderr,
        )


def parameter_count(network: nn.Module) -> str:
    """Return the number of parameters for people."""
    return f"{sum(parameter.numel() for parameter in network.parameters()):,}"
