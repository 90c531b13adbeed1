"""Run scripts in processes of their own that need not import torch again: they are forked."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SERVER = f"""
import atexit, gc, json, os, signal, sys, threading, traceback
gc.disable()
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
import pytest, torch._dynamo, torch.distributed.run, evaluate, predict, train, utils.photos.predictor
try:
    import torch.utils.tensorboard
except ImportError:
    pass
sys.path.insert(0, {str(Path(__file__).parent)!r})
import conftest
conftest.make_discriminator_thin(pytest.MonkeyPatch().setattr)
torch.set_num_threads(1)
torch.set_num_interop_threads(1)
statuses = {{}}

def reap(*arguments):
    while any(found := os.waitpid(-1, os.WNOHANG) if statuses else (0, 0)):
        name = statuses.pop(found[0])
        with open(name + "~", "w") as file:
            print(os.waitstatus_to_exitcode(found[1]), file=file)
        os.rename(name + "~", name)

signal.signal(signal.SIGCHLD, reap)
gc.freeze()
gc.enable()
for line in sys.stdin:
    job = json.loads(line)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    pid = os.fork()
    if not pid:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        os.setsid()
        os.chdir(job["folder"])
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        sys.argv = [job["script"], *job["words"]]
        for number, name in enumerate((os.devnull, job["output"], job["errors"])):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), number)
        try:
            exec(job["before"])
            code = sys.modules[job["script"]].main()
        except SystemExit as wanted:
            code = wanted.code
        except BaseException:
            traceback.print_exc()
            code = 1
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(code or 0)  # at once: the interpreter's own end would touch all memory, and so copy it
    print(pid, flush=True)
    statuses[pid] = job["status"]
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
"""

ELASTIC = """
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

def share(script):
    def alone(main=script.main):
        if code := main():
            sys.exit(code)

    place = {"run_id": "test", "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
    config = LaunchConfig(1, 1, 2, **place, max_restarts=0, start_method="fork")
    script.main = lambda: elastic_launch(config, alone)() and 0

"""
"""Python to run before a script; `share(SCRIPT)` makes it two processes as torchrun does, but forked ones."""


class Forked:
    """A script that runs in a process of its own, which leads a session; it has the methods of a `Popen`.

    Args:
        server: a process of `SERVER`.
        log: what the names of the files of output, errors and exit code begin with.
        script: "train", "predict", "evaluate" or "torch.distributed.run", which is torchrun.
        words: of its command line.
        folder: where it runs.
        before: Python to run in the process before the script.
    """

    def __init__(
        self, server: subprocess.Popen[str], log: Path, script: str, words: list[str], folder: Path, before: str
    ) -> None:
        self.files = [f"{log}.{name}" for name in ("output", "errors", "status")]
        names = dict(zip(("output", "errors", "status"), self.files, strict=True))
        job = {"script": script, "words": words, "folder": str(folder), "before": before, **names}
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        self.pid = int(server.stdout.readline())

    def poll(self) -> int | None:
        try:
            with open(self.files[2]) as file:
                return int(file.read())
        except FileNotFoundError:
            return None

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def wait(self, timeout: float = 60) -> int:
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.002)
        return code

    def communicate(self, timeout: float = 60) -> tuple[str, str]:
        self.wait(timeout)
        return Path(self.files[0]).read_text(), Path(self.files[1]).read_text()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def end(self) -> None:
        """Kill what a failed test has left running."""
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.wait()


def start_server() -> "subprocess.Popen[str]":
    """Start the process that the others are forked from."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SERVER]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
