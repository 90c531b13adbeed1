"""Training by several processes: one per GPU, or as many as torchrun starts on one or more machines."""

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException
from torch.multiprocessing.spawn import start_processes as spawn

from ..config import ConfigError

Result = TypeVar("Result")
_VARIABLES = {"WORLD_SIZE": 1, "RANK": 0, "LOCAL_RANK": 0}
LOST = 3
"""Exit code of a process that ends because another one did."""
GRACE = 15
"""Seconds that the other processes get to end by themselves once one has ended with an error."""


class Processes:
    """The processes that train together: how many they are, which one this is, and what they tell each other.

    Args:
        count: of all machines together; for one alone, every method is free of charge.
        rank: of this process among all of them, from 0.
        local_rank: among those of this machine.
    """

    def __init__(self, count: int = 1, rank: int = 0, local_rank: int = 0) -> None:
        self.count, self.rank, self.local_rank = count, rank, local_rank

    @classmethod
    def of_environment(cls) -> "Processes":
        """Return what torchrun's variables tell; one process alone without them."""
        return cls(*(int(os.environ.get(name, default)) for name, default in _VARIABLES.items()))

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files and prints the lines of all."""
        return self.rank == 0

    def meet(self) -> None:
        """Meet the others; on a GPU machine every process takes the GPU of its local rank.

        Raises:
            ValueError: this machine has more processes than GPUs.
        """
        if self.count > 1:
            gpus = torch.cuda.device_count()
            if 0 < gpus <= self.local_rank:
                raise ValueError(
                    f"process {self.local_rank + 1} of this machine has no GPU of its own, as {gpus} can be seen: "
                    "start fewer, or set CUDA_VISIBLE_DEVICES in the environment"
                )
            if gpus:
                torch.cuda.set_device(self.local_rank)
            dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")

    def part(self) -> None:
        """Leave together: torchrun stops the others as soon as one ends with a code other than 0."""
        if self.count > 1:
            dist.barrier()
            dist.destroy_process_group()

    def together(self, work: Callable[[], Result]) -> Result:
        """Return this process's `work()`; if it fails in one process, raise that error in all.

        The attribute `is_shared` of the error is then true: one process is enough to print it.
        """
        result, error = None, None
        try:
            result = work()
        except Exception as caught:
            if self.count == 1:
                raise
            error = caught
        failed = next((e for e in self.gather(error) if e is not None), None)
        if failed is not None:
            failed.is_shared = True
            raise failed
        return cast(Result, result)

    def sum(self, tensor: Tensor) -> Tensor:
        """Replace `tensor` by the sum of all processes' tensors, and return it."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace the gradients by the sums of all processes' gradients, in one message."""
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))

    def lost(self, error: RuntimeError) -> bool:
        """Tell whether an error means that another process has ended."""
        signs = ("closed by peer", "Connection reset", "Broken pipe", "gloo", "NCCL", "ProcessGroup")
        return self.count > 1 and any(sign in str(error) for sign in signs)

    def gather(self, value: Any) -> list[Any]:
        """Return every process's `value`, in the order of ranks."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def share(self, value: Any) -> Any:
        """Return the first process's `value`."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]


ALONE = Processes()
"""One process, whatever the environment says."""


def start_processes(function: Callable[..., int], arguments: Sequence[Any], count: int) -> int:
    """Call `function(*arguments)` in `count` new processes of this machine, and return the exit code of all of them.

    `function` must be importable, and returns an exit code. SIGINT and SIGTERM are passed on. When one process ends
    with another code than 0, or is killed, the others get `GRACE` seconds to end, and are then stopped: no hang.
    """
    with socket.socket() as probe:  # a free port
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    context: Any = spawn(
        _run_process, (environment, function, arguments), nprocs=count, join=False, start_method="spawn"
    )

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in context.processes:
            if process.is_alive():
                os.kill(process.pid, number)

    previous = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(ValueError):  # not in the main thread
            previous[number] = signal.signal(number, pass_on)
    try:
        while not context.join(grace_period=GRACE):
            pass
        return 0
    except (ProcessExitedException, ProcessRaisedException) as error:
        codes = [process.exitcode for process in context.processes]
        reasons = [code for code in codes if code > 0 and code != LOST]
        if not reasons or isinstance(error, ProcessRaisedException):
            print(f"ERROR {error}; the job has ended, the same command resumes", file=sys.stderr)
        return reasons[0] if reasons else 1
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _run_process(
    rank: int, environment: dict[str, str], function: Callable[..., int], arguments: Sequence[Any]
) -> None:
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # Ctrl-C reaches the parent alone, which passes it on once
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    sys.exit(function(*arguments))


def processes_to_start(listed: str) -> int:
    """Make the GPUs that CUDA_VISIBLE_DEVICES lists visible; return how many processes are to be started, 0 for none.

    A process that torchrun has launched starts none, and GPUs that the environment names take precedence.

    Raises:
        ConfigError: GPUs are listed that are not there.
    """
    if "LOCAL_RANK" in os.environ:  # launched by torchrun, with GPUs of its own choice
        return 0
    count = len([name for name in listed.split(",") if name])
    is_ours = "CUDA_VISIBLE_DEVICES" not in os.environ
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", listed)
    if is_ours and 0 < visible_gpus() < count:
        raise ConfigError(
            f'CUDA_VISIBLE_DEVICES = "{listed}" lists {count} GPUs, but here are {visible_gpus()}: list those that '
            "there are"
        )
    return visible_gpus() if visible_gpus() > 1 else 0


def visible_gpus() -> int:
    """Return how many GPUs CUDA_VISIBLE_DEVICES leaves, without starting CUDA."""
    return torch.cuda.device_count()


def explain(error: Exception, processes: Processes) -> tuple[int, str]:
    """Return the exit code and what to do about an error of PyTorch; raise it again if it is not a known one."""
    text = str(error)
    advice = "lower batch_size or image_size, or raise accumulation_steps"
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text:
        return 1, f"the memory does not suffice: {advice} ({text.splitlines()[0] if text else type(error).__name__})"
    if "DataLoader worker (pid" in text:
        return 1, f"{text.splitlines()[0]} Lower num_workers if memory or /dev/shm is short"
    if isinstance(error, RuntimeError) and processes.lost(error):
        return LOST, "another process has ended"
    raise error
