"""Train an exposure-correction network from a folder of normally exposed photos.

examples:
  python train.py                                     train with conf.json; the same command again resumes
  python train.py --config other.json                 another configuration
  python train.py --set epochs=3 --set "image_size=[256,256]"
  python train.py --dry-run                           check everything, print the plan, write nothing
  torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 train.py
                                                      two machines; on one, CUDA_VISIBLE_DEVICES in conf.json suffices
"""

import argparse
import dataclasses
import errno
import hashlib
import math
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.utils import save_image
from tqdm import tqdm

from data import (
    Batch,
    CameraRange,
    EpochBatches,
    LayoutError,
    NoPhotosError,
    Pair,
    PhotoCache,
    PhotoDataset,
    collate,
    find_pairs,
    make_pairs,
)
from models import Network, NetworkError, build_discriminator, build_generator, network_class
from models.daconv import merge_daconv, to_daconv
from models.losses import adversarial_loss, colour_loss, discriminator_loss, pixel_weights
from utils.config import Config, ConfigError, Stage, config_from_dict, load_config
from utils.device import Arithmetic, peak_memory
from utils.evaluation.metrics import psnr, quantise, ssim
from utils.files import atomic_path, fingerprint, sha256
from utils.training.checkpoint import CheckpointError, load_checkpoint, load_newest_checkpoint, save_checkpoint
from utils.training.processes import ALONE, LOST, Processes, start_processes
from utils.training.progress import FailureLog, Measured, NonFiniteLossError, Progress
from utils.training.release import ARCHITECTURE, export, trained_network
from utils.training.run_folder import RunFolder, RunFolderError
from utils.training.schedule import Epoch, plan_epochs, set_learning_rates
from utils.training.state import TrainingState
from utils.training.stop import StopRequest
from utils.weights import WeightsError, is_whole, load_weights

SAMPLE_COUNT = 6


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="conf.json", help="configuration file (default: conf.json)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one key; repeatable")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check configuration, photos and the memory of one step, print the plan, write nothing",
    )
    arguments = parser.parse_args(argv)
    try:
        config = load_config(arguments.config, arguments.set)
        network_class(config.model)  # say so at once if there is none
    except (ConfigError, NetworkError) as error:
        print(f"ERROR {error}", file=sys.stderr)
        return 2
    is_launched = "LOCAL_RANK" in os.environ  # by torchrun, with GPUs of its own choice
    if not is_launched:
        listed = len([name for name in config.CUDA_VISIBLE_DEVICES.split(",") if name])
        is_ours = "CUDA_VISIBLE_DEVICES" not in os.environ
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", config.CUDA_VISIBLE_DEVICES)
        if is_ours and 0 < visible_gpus() < listed:
            print(
                f'ERROR CUDA_VISIBLE_DEVICES = "{config.CUDA_VISIBLE_DEVICES}" lists {listed} GPUs, but here are '
                f"{visible_gpus()}: list those that there are",
                file=sys.stderr,
            )
            return 2
    if visible_gpus() > 1 and not is_launched and not arguments.dry_run:
        return start_processes(run, (config, False), visible_gpus())
    try:
        return run(config, arguments.dry_run)
    except KeyboardInterrupt:  # where nothing is in progress that must be saved
        return 130


def visible_gpus() -> int:
    """Return how many GPUs CUDA_VISIBLE_DEVICES leaves, without starting CUDA."""
    return torch.cuda.device_count()


def run(config: Config, is_dry: bool) -> int:
    """Train, or only check, as one of the processes that the environment tells of; return the exit code."""
    processes = Processes.of_environment()
    try:
        if is_dry:
            return dry_run(config) if processes.is_first else 0
        with StopRequest() as stop:
            processes.meet()
            code = train(config, stop, processes)
            processes.part()
            return code
    except (ConfigError, LayoutError, NetworkError, NoPhotosError, RunFolderError, WeightsError, ValueError) as error:
        failure: Exception = error
        code, message = 2, str(error)
    except (CheckpointError, NonFiniteLossError, OSError) as error:
        failure = error
        code, message = 1, str(error)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        failure = error
        code, message = explain(error, processes)
    if processes.is_first or not getattr(failure, "is_shared", False):
        of = f"process {processes.rank} of {processes.count}: " if processes.count > 1 else ""
        print(f"ERROR {of}{message}", file=sys.stderr, flush=True)
    if processes.count > 1:
        os._exit(code)  # an orderly end would wait for the others, who may wait for this one
    return code


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


def train(config: Config, stop: StopRequest, processes: Processes) -> int:
    """Train until the last epoch or a stop, resuming what `config.model_save_dir` holds; return the exit code."""
    arithmetic = Arithmetic(config.precision)
    if config.deterministic:
        make_deterministic()
    failures = FailureLog()
    photos, valid_photos = processes.together(lambda: open_photos(config, failures, processes))
    digests = [list_digest(photos), list_digest(valid_photos)]
    processes.together(lambda: require_same_photos(config, processes.gather(digests)))
    processes.together(lambda: require_enough_photos(config, len(photos), processes.count))
    plan = plan_epochs(config, len(photos))
    folder: RunFolder | None = None
    try:

        def open_run() -> dict[str, Any] | None:
            nonlocal folder
            if processes.is_first:  # one process writes, and the others may be on machines that do not see the folder
                folder = RunFolder(Path(config.model_save_dir))
                with suppress(FileNotFoundError):
                    return read_checkpoint(config, digests, folder.path, plan)
            return None

        found = processes.share(processes.together(open_run))
        is_source = found is None and processes.is_first
        state = processes.together(lambda: new_state(config, arithmetic, digests, is_warm=is_source))
        if found is not None:
            state.load_state_dict(found)
        else:
            share_weights(state, processes)
        if folder is not None:
            folder.describe(config, str(arithmetic), processes.count)
            announce(config, state, arithmetic, photos, plan, processes.count)
        return run_epochs(state, plan, photos, valid_photos, arithmetic, failures, folder, stop, processes)
    finally:
        if folder is not None:
            folder.close()


def share_weights(state: TrainingState, processes: Processes) -> None:
    """Let all processes begin with the weights of the first."""
    if processes.count > 1:
        for network in (state.generator, state.discriminator):
            network.load_state_dict(processes.share({name: t.cpu() for name, t in network.state_dict().items()}))
        state.restart_average()


def require_same_photos(config: Config, digests: list[list[str]]) -> None:
    """Raise `NoPhotosError` if processes, on several machines, see different photos."""
    for position, folder in enumerate((config.train_data_dir, config.valid_data_dir)):
        differing = [rank for rank, own in enumerate(digests) if own[position] != digests[0][position]]
        if differing:
            raise NoPhotosError(
                f"{folder}: process {differing[0]} sees other photos there than process 0: every machine needs the same"
            )


def run_epochs(
    state: TrainingState,
    plan: list[Epoch],
    photos: PhotoDataset,
    valid_photos: PhotoDataset,
    arithmetic: Arithmetic,
    failures: FailureLog,
    folder: RunFolder | None,
    stop: StopRequest,
    processes: Processes,
) -> int:
    """Train from the state's epoch to the end of the plan; return the exit code."""
    config = state.config
    valid_loader, _ = build_loader(config, valid_photos, config.batch_size, arithmetic, processes)
    loader, stage = None, 0
    for epoch in plan[state.epoch - 1 :]:
        if stage != epoch.stage:
            stage, settings = epoch.stage, config.schedule[epoch.stage - 1]
            views = photos.with_image_size(settings.image_size)
            loader, batches = build_loader(config, views, settings.batch_size, arithmetic, processes)
        assert loader is not None
        batches.epoch, batches.first_batch = epoch.number, state.step
        state.generator.train()
        state.discriminator.train()
        progress = Progress(state, epoch, plan, len(photos), is_shown=processes.is_first)
        pending: Measured | None = None
        for batch in loader:
            failures.report(batch.failures, processes)
            if not batch.names:
                raise NoPhotosError(f"{config.train_data_dir or config.train_pairs}: none of its photos can be decoded")
            size = batches.size(state.step)
            state.step += 1
            seed_step(config.seed, epoch.number, state.step, processes.rank)
            set_learning_rates(state, plan, epoch.first_step + state.step - 1)
            parts = train_step(state, batch, arithmetic, processes, adversarial=epoch.is_adversarial, batch_size=size)
            measured = Measured(parts, stop.signal, epoch.number, state.step, size, batch.names, processes)
            # The step before is read only now, so that a GPU always has the next one to work on.
            stopped = pending.record(state, progress) if pending else 0
            if processes.count == 1:  # nobody to agree with
                stopped = stop.signal
            is_due = state.step % config.checkpoint_every_steps == 0 and state.step < epoch.steps
            pending = measured
            if stopped or is_due or state.step == epoch.steps:
                stopped = pending.record(state, progress) or stopped
                pending = None
            if (stopped or is_due) and folder is not None:
                save_checkpoint(folder.path / "last.pt", state.state_dict(), keep=config.keep_checkpoints)
            if stopped:
                progress.close()
                return say_stopped(state, folder, stopped)
        progress.close()
        valid, samples = validate(state.released, valid_loader, arithmetic, failures, processes)
        finish_epoch(state, folder, valid, samples, progress.speed)
    if folder is not None:
        if failures.paths:
            print(f"{len(failures.paths)} unusable photos were skipped", file=sys.stderr)
        best = folder.path / "best.safetensors"
        print(f"done: best validation PSNR {state.best_psnr:.2f} dB; weights: {best}; curves: curves.png beside them")
    return 0


def say_stopped(state: TrainingState, folder: RunFolder | None, number: int) -> int:
    """Say where training was stopped by signal `number`, and return the exit code."""
    if folder is not None:
        print(f"stopped in epoch {state.epoch} after step {state.step}; the same command resumes", file=sys.stderr)
    return 128 + number


def open_photos(
    config: Config, failures: FailureLog, processes: Processes = ALONE
) -> tuple[PhotoDataset, PhotoDataset]:
    """Return the data sets of training and validation.

    Raises:
        NoPhotosError: one of them has no photos, or both have some in common.
        LayoutError: as `open_pairs`.
    """
    photos = open_folder(config, config.train_data_dir, training=True)
    valid_photos = open_folder(config, config.valid_data_dir, training=False)
    for dataset in (photos, valid_photos):
        failures.report(dataset.failures, processes)
    refuse_common_photos(photos, valid_photos)
    return photos, valid_photos


def open_folder(config: Config, folder: str, *, training: bool) -> PhotoDataset:
    """Return the random views of a folder for training, or its fixed views for validation."""
    return PhotoDataset(
        folder,
        config.image_size,
        jitter=config.color_jitter,
        seed=config.seed if training else None,
        crop_min_area=config.crop_min_area,
        crop_min_deviation=config.crop_min_deviation,
        crop_min_mean=config.crop_min_mean,
        cache=PhotoCache(config.photo_cache_dir, limit=int(config.photo_cache_gigabytes * 1e9)),
        pairs=open_pairs(config, training=training),
        camera_range=camera_range(config),
        camera_share={"color_jitter": 0.0, "camera": 1.0, "mixture": 0.5}[config.degradation],
        identity_share=config.identity_share,
    )


def camera_range(config: Config) -> CameraRange:
    """Return from what the exposures and developments of a camera are drawn."""
    return CameraRange(
        ev=(config.camera_ev_min, config.camera_ev_max),
        dark_share=config.camera_dark_share,
        least_ev=config.camera_ev_least,
        is_metered=config.camera_metered,
        local_ev=config.camera_local_ev,
        local_share=config.camera_local_share,
        shoulder=config.camera_shoulder,
        noise=config.camera_noise,
        noise_share=config.camera_noise_share,
        white_balance=config.camera_white_balance,
        gamma=config.camera_gamma,
        contrast=config.camera_contrast,
        saturation=config.camera_saturation,
        quality=config.camera_jpeg,
        jpeg_share=config.camera_jpeg_share,
    )


def open_pairs(config: Config, *, training: bool) -> list[Pair]:
    """Return the real pairs to train or to validate on.

    Raises:
        LayoutError: a data set is unknown, not there, empty, or has problems that are not to be skipped.
    """
    pairs: list[Pair] = []
    for source in config.train_pairs if training else config.valid_pairs:
        dataset, _, folder = source.partition(":")
        split = "train" if training else "valid"
        found, problems = find_pairs(dataset, Path(folder), split)
        if problems and not config.skip_pair_problems:
            path, reason = problems[0]
            raise LayoutError(
                f"{source}: {len(problems)} problems, the first {path}: {reason}; python evaluate.py --check {dataset} "
                f"{folder} --split {split} lists them, skip_pair_problems leaves them out"
            )
        if problems:
            print(f"{source}: {len(problems)} problems left out, {len(found)} pairs", file=sys.stderr)
        if not found:
            raise LayoutError(f"{source}: no pairs found")
        pairs += found
    return pairs


def build_loader(
    config: Config, dataset: PhotoDataset, batch_size: int, arithmetic: Arithmetic, processes: Processes = ALONE
) -> tuple[DataLoader[Any], EpochBatches]:
    """Return the loader of this process's share of a data set, and the sampler that drives it."""
    batches = EpochBatches(len(dataset), batch_size, seed=dataset.seed, rank=processes.rank, processes=processes.count)
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=config.num_workers,
        persistent_workers=config.num_workers > 0 and dataset.seed is not None,  # validation's are seldom needed
        pin_memory=arithmetic.device.type == "cuda",
        worker_init_fn=leave_signals_to_parent,
    )
    return loader, batches


def refuse_common_photos(photos: PhotoDataset, valid_photos: PhotoDataset) -> None:
    """Raise `NoPhotosError` if a photo is in both data sets, under whatever names."""
    seen = {}
    for path in photos.paths:
        with suppress(OSError):  # it will be named when it is read
            seen[fingerprint(path)] = path
    common = []
    for path in valid_photos.paths:
        with suppress(OSError):
            other = seen.get(fingerprint(path))
            if other is not None and sha256(path) == sha256(other):
                common.append((path, other))
    if common:
        path, other = common[0]
        more = f", and {len(common) - 1} more" if len(common) > 1 else ""
        raise NoPhotosError(
            f"{path} is also in the training set, as {other}{more}: the best epoch would be chosen on photos that were "
            "trained on; take them out of one of the two folders"
        )


def require_enough_photos(config: Config, photo_count: int, processes: int) -> None:
    """Raise `ConfigError` if a process would be left without a photo, or without one for each part of its share."""
    for stage in config.schedule:
        batches = EpochBatches(photo_count, stage.batch_size, seed=None)
        smallest = min(batches.size(batch) for batch in range(len(batches)))
        if smallest < processes:
            raise ConfigError(
                f"batch_size = {stage.batch_size} makes batches of {smallest} of the {photo_count} training photos, "
                f"fewer than the {processes} processes: raise batch_size, add photos, or use fewer GPUs"
            )
        if smallest < processes * config.accumulation_steps and config.accumulation_steps > 1:
            raise ConfigError(
                f"accumulation_steps = {config.accumulation_steps} is more than the {smallest // processes} "
                f"photos of a batch that each process has: lower it, or raise batch_size = {stage.batch_size}"
            )


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


def new_state(
    config: Config, arithmetic: Arithmetic, photos: Sequence[str] = (), *, is_warm: bool = True
) -> TrainingState:
    """Return the state before the first step; its weights are those of `config.init_weights`, if `is_warm`."""
    torch.manual_seed(config.seed)
    generator = warm_start(config) if config.init_weights and is_warm else build_generator(config)
    discriminator = build_discriminator(config)
    return TrainingState(config, arithmetic.place(generator), arithmetic.place(discriminator), list(photos))


def warm_start(config: Config) -> Network:
    """Return the network of `config` with the function of the weights or checkpoint `config.init_weights`.

    Plain and DAConv layers become one another through `to_daconv` and `merge_daconv`.

    Raises:
        ConfigError: the file is missing, or of another network.
        WeightsError, CheckpointError: it is damaged.
    """
    path = Path(config.init_weights)
    if not path.is_file():
        raise ConfigError(f'init_weights = "{path}": there is no such file')
    if path.suffix == ".pt":
        checkpoint = load_checkpoint(path, TrainingState.ENTRIES)
        source: Any = config_from_dict(checkpoint["config"], source=str(path))
        require_same_network(config, source, path)
        network = trained_network(checkpoint, path)
        if source.conv == config.conv:
            return network
        if source.conv == "daconv":
            return cast(Network, merge_daconv(network))
    else:
        weights = load_weights(path)
        require_same_network(config, weights.architecture, path)
        network = build_generator(weights.architecture)
        network.load_state_dict(weights.state)
    return cast(Network, to_daconv(network, keep_function=True)[0]) if config.conv == "daconv" else network


def require_same_network(config: Config, source: Any, path: Path) -> None:
    """Raise `ConfigError` if weights are of another network than the one to train."""
    for name in ARCHITECTURE:
        there, here = (getattr(values, name, None) for values in (source, config))
        there, here = (list(value) if isinstance(value, tuple) else value for value in (there, here))
        if there is not None and there != here:
            raise ConfigError(f'init_weights = "{path}" has {name} = {there}, not {here}: train the same network')


def list_digest(dataset: PhotoDataset) -> str:
    """Return a digest of which photos a data set has, by name, to notice that some were added or removed."""
    return hashlib.sha256("\n".join(dataset.names).encode("utf-8", "surrogateescape")).hexdigest()


def leave_signals_to_parent(worker: int) -> None:
    """Let the training process alone handle signals that every process of a terminal or a job gets."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # the second one is the loader's own, for a worker that does not end by itself
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def read_checkpoint(
    config: Config, photos: list[str], folder: Path, plan: list[Epoch], *, is_dry: bool = False
) -> dict[str, Any]:
    """Return the newest whole checkpoint of a folder, with what has to begin anew reset; say what has changed.

    Lost weights are written again from best.pt, unless `is_dry`.

    Raises:
        CheckpointError: all are damaged, or it holds another architecture.
        FileNotFoundError: there is none.
    """
    saved, path, damages = load_newest_checkpoint(folder / "last.pt", TrainingState.ENTRIES)
    for damage in damages:
        print(f"WARNING {damage}; going on from {path}", file=sys.stderr)
    new, old = config.to_dict(), config_from_dict(saved["config"], source=str(path)).to_dict()
    changed = {name for name in new if new[name] != old[name]}
    for name in sorted(changed):
        print(f"changed since the checkpoint: {name} = {old[name]} -> {new[name]}", file=sys.stderr)
        if name in (*ARCHITECTURE, "conv"):
            raise CheckpointError(
                f"{path}: made with {name} = {old[name]}, not {new[name]}: "
                "give model_save_dir another folder, or move this one away"
            )
    is_over = saved["epoch"] > len(plan)
    of_training = {"batch_size", "stages", "seed", "train_data_dir", "train_pairs"}
    has_new_order = of_training & changed or saved["photos"][0] != photos[0]
    if saved["step"] and (is_over or saved["step"] > plan[saved["epoch"] - 1].steps or has_new_order):
        print(f"epoch {saved['epoch']} starts again: its photos or their order have changed", file=sys.stderr)
        saved["step"], saved["totals"] = 0, {}
    of_validation = {name for name in new if name.startswith(("color_jitter_", "camera_", "degradation"))}
    of_validation |= {"ema_decay", "image_size", "valid_data_dir", "valid_pairs"}
    if not is_over and (of_validation & changed or saved["photos"][1] != photos[1]):
        print("validation has changed: the best epoch is looked for anew", file=sys.stderr)
        saved["best_psnr"] = -math.inf
    best = folder / "best.pt"
    if not is_dry and best.exists() and not is_whole(folder / "best.safetensors"):  # a kill came between the two
        export(folder / "best.safetensors", load_checkpoint(best, TrainingState.ENTRIES))
    print(f"resuming in epoch {saved['epoch']} after step {saved['step']} from {path}", file=sys.stderr)
    return saved


def announce(
    config: Config,
    state: TrainingState,
    arithmetic: Arithmetic,
    photos: PhotoDataset,
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
            f"{f'stage {number}: ' if config.stages else ''}{len(photos)} photos in views of {width}x{height} px, "
            f"{stage.epochs} epochs of {steps} steps of {stage.batch_size}{adversary}",
            file=sys.stderr,
        )


def parameter_count(network: nn.Module) -> str:
    """Return the number of parameters for people."""
    return f"{sum(parameter.numel() for parameter in network.parameters()):,}"


def dry_run(config: Config) -> int:
    """Check data, network, checkpoint and one step of every stage, and print the plan; write nothing."""
    config = dataclasses.replace(config, photo_cache_gigabytes=0.0)
    arithmetic, failures = Arithmetic(config.precision), FailureLog()
    if config.deterministic:
        make_deterministic()
    processes = max(visible_gpus(), Processes.of_environment().count)
    photos, valid_photos = open_photos(config, failures)
    require_enough_photos(config, len(photos), processes)
    plan = plan_epochs(config, len(photos))
    for name, dataset in (("train_data_dir", photos), ("valid_data_dir", valid_photos)):
        small = sum(min(w / config.image_size[1], h / config.image_size[0]) < 1 for w, h in dataset.sizes)
        enlarged = f", {small} smaller than the view and enlarged" if small else ""
        real = sum(path is not None for path in dataset.inputs)
        pairs = f", {real} of them real pairs" if real else ""
        where = getattr(config, name) or "(none)"
        print(f"{name} {where}: {len(dataset)} photos{pairs}, {len(dataset.failures)} rejected{enlarged}")
    folder = Path(config.model_save_dir)
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise PermissionError(errno.EACCES, "cannot be written to", str(above))
    try:
        digests = [list_digest(photos), list_digest(valid_photos)]
        found = read_checkpoint(config, digests, folder, plan, is_dry=True)
    except FileNotFoundError:
        found = None
    state = new_state(config, arithmetic, is_warm=found is None)
    announce(config, state, arithmetic, photos, plan, processes)
    seconds = 0.0
    for number, stage in enumerate(config.schedule, start=1):
        share = math.ceil(stage.batch_size / processes)
        step_time, memory = time_steps(state, photos.with_image_size(stage.image_size), stage, share, arithmetic)
        steps = sum(epoch.steps for epoch in plan[found["epoch"] - 1 if found else 0 :] if epoch.stage == number)
        seconds += steps * step_time
        of_each = " of each process" if processes > 1 else ""
        figures = f"{step_time:.3f} s and {memory / 2**20:,.0f} MiB at most for a step{of_each}"
        print(f"stage {number}: {figures}, {steps:,} steps")
    print(f"about {tqdm.format_interval(seconds)} on {arithmetic}, without loading and validation")
    print(f"{'goes on with the run in' if found else 'would write to'} {folder}")
    return 0


def time_steps(
    state: TrainingState, photos: PhotoDataset, stage: Stage, size: int, arithmetic: Arithmetic, count: int = 3
) -> tuple[float, float]:
    """Return the mean seconds of `count` steps of `size` photos and the peak memory in bytes, of the GPU or process."""
    batches = EpochBatches(len(photos), size, seed=state.config.seed)
    keys = next(iter(batches))
    is_adversarial = stage.begin_use_adv_loss_epoch <= stage.epochs
    on_gpu = arithmetic.device.type == "cuda"
    batch = collate([photos[key] for key in keys])
    if not batch.names:
        raise NoPhotosError(f"{photos.folder}: none of its photos can be decoded")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    for step in range(count + 1):
        if step == 1:  # the first one allocates
            started = time.monotonic()
        parts = train_step(state, batch, arithmetic, adversarial=is_adversarial)
        float(parts["loss"])
    memory = torch.cuda.max_memory_allocated() if on_gpu else peak_memory()
    return (time.monotonic() - started) / count, memory


def train_step(
    state: TrainingState,
    batch: Batch,
    arithmetic: Arithmetic,
    processes: Processes = ALONE,
    *,
    adversarial: bool,
    batch_size: int | None = None,
) -> dict[str, Tensor]:
    """Update the generator, and the discriminator if `adversarial`, from this process's share of a batch.

    Args:
        state: what is trained.
        batch: this process's share.
        arithmetic: device and precision.
        processes: those that train together.
        adversarial: whether the discriminator takes part.
        batch_size: photos of all processes together; None: those of `batch`.

    Returns:
        Scalars on the device: this process's share of the parts of the losses and of the PSNR (the sums over processes
        are the means over the whole batch), and the norms of the whole gradients. Nothing here waits for a GPU.
    """
    config = state.config
    sums: dict[str, Tensor] = {}
    judged: list[tuple[float, Tensor, Tensor]] = []  # share, photos and corrections, for the discriminator
    state.generator_optimizer.zero_grad(set_to_none=True)
    state.discriminator.requires_grad_(False)  # the first half of the step moves the generator alone
    for part in batch.split(config.accumulation_steps):
        share = len(part.names) / (batch_size or len(batch.names))
        inputs, targets = make_pairs(part, arithmetic, config.normalise_targets)
        with arithmetic.autocast():
            outputs = state.generator(inputs)
        terms = weighted_losses(state, inputs, outputs, targets)
        if adversarial:
            fake = resize(outputs[0], config.discriminator_image_size)
            with arithmetic.autocast():
                logits = state.discriminator(fake)
            terms["adversarial"] = config.adversarial_weight * adversarial_loss(logits.float())
            judged.append((share, resize(targets, config.discriminator_image_size), fake.detach()))
        loss = torch.stack(list(terms.values())).sum()
        (share * loss).backward()
        correct = psnr(outputs[0].detach().clamp(0, 1), targets).mean()
        accumulate(sums, share, {"loss": loss, **terms, "psnr": correct})
    sums["gradient"] = update(state.generator_optimizer, processes, config.clip_gradient_norm)
    state.update_average()
    if adversarial:
        state.discriminator.requires_grad_(True)
        state.discriminator_optimizer.zero_grad(set_to_none=True)
        for share, real, fake in judged:
            with arithmetic.autocast():
                real_logits, fake_logits = state.discriminator(real), state.discriminator(fake)
            loss = discriminator_loss(real_logits.float(), fake_logits.float())
            (share * loss).backward()
            accumulate(sums, share, {"discriminator": loss})
        sums["discriminator_gradient"] = update(state.discriminator_optimizer, processes, config.clip_gradient_norm)
    return sums


def weighted_losses(state: TrainingState, inputs: Tensor, outputs: list[Tensor], targets: Tensor) -> dict[str, Tensor]:
    """Return the losses of the network, 1 - SSIM and the colour's, each times its weight; without those of 0."""
    config = state.config
    network: Any = state.generator
    weights = {"reconstruction": config.reconstruction_weight, "pyramid": config.pyramid_weight}
    weight = pixel_weights(inputs, targets, config.clipped_weight) if config.clipped_weight < 1 else None
    terms = network.losses(inputs, outputs, targets, weight)
    terms = {name: weights.get(name, 1.0) * term for name, term in terms.items() if weights.get(name, 1.0)}
    if config.ssim_weight:
        terms["ssim"] = config.ssim_weight * (1 - ssim(outputs[0], targets).mean())
    if config.colour_weight:
        terms["colour_cosine"] = config.colour_weight * colour_loss(outputs[0], targets)
    if not any(term.requires_grad for term in terms.values()):
        raise ConfigError(
            f"no loss is left to train {config.model} on: raise reconstruction_weight, pyramid_weight, ssim_weight "
            "or colour_weight"
        )
    return terms


def accumulate(sums: dict[str, Tensor], share: float, parts: dict[str, Tensor]) -> None:
    """Add `share` times `parts` to `sums`."""
    for name, part in parts.items():
        value = share * part.detach()
        sums[name] = sums[name] + value if name in sums else value


def update(optimizer: torch.optim.Optimizer, processes: Processes, max_norm: float) -> Tensor:
    """Take one step down the sum of all processes' gradients, scaled down to `max_norm` if that is not 0.

    Return the norm before scaling. It is not looked at here, which would make a GPU wait: a step down a gradient that
    is not finite is taken, but then `Measured.record` ends the run before anything of it is saved.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    processes.sum_gradients(parameters)
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm or math.inf)
    optimizer.step()
    return norm


def resize(photos: Tensor, size: tuple[int, int]) -> Tensor:
    """Return `(B, 3, H, W)` photos at another size, without aliasing where they shrink."""
    shrinks = photos.shape[-2] > size[0] or photos.shape[-1] > size[1]
    return F.interpolate(photos, size, mode="bilinear", antialias=shrinks)


@torch.no_grad()
def validate(
    generator: nn.Module,
    loader: DataLoader[Any],
    arithmetic: Arithmetic,
    failures: FailureLog,
    processes: Processes = ALONE,
) -> tuple[dict[str, float], Tensor]:
    """Return mean PSNR and SSIM over the fixed validation views, each counted once, and sample pictures.

    The pictures `(3 N, 3, H, W)` are N inputs, their N corrections and their N targets, spread over the folder.

    Raises:
        NoPhotosError: no validation photo can be decoded.
        NonFiniteLossError: the network's output is not finite.
    """
    generator.eval()
    count = len(loader.dataset)  # type: ignore[arg-type]
    chosen = set(torch.linspace(0, count - 1, min(SAMPLE_COUNT, count)).long().tolist())
    scores: dict[int, tuple[float, float]] = {}  # of this process's share, by the photo's position
    pictures: dict[int, Tensor] = {}
    for batch in loader:
        failures.report(batch.failures, processes)
        if not batch.names:
            continue
        inputs, targets = make_pairs(batch, arithmetic)
        with arithmetic.autocast():
            outputs = quantise(generator(inputs)[0])
        measured = torch.stack((psnr(outputs, targets), ssim(outputs, targets)), dim=1).tolist()
        for position, index in enumerate(batch.indices):
            scores[index] = (measured[position][0], measured[position][1])
            if index in chosen:
                pictures[index] = torch.stack((inputs[position], outputs[position], targets[position])).cpu()
    failures.collect(processes)
    all_scores = {index: score for share in processes.gather(scores) for index, score in share.items()}
    all_pictures = {index: picture for share in processes.gather(pictures) for index, picture in share.items()}
    if not all_scores:
        raise NoPhotosError(f"{loader.dataset.folder}: none of its photos can be decoded")  # type: ignore[attr-defined]
    columns = zip(*(all_scores[index] for index in sorted(all_scores)), strict=True)
    means = [math.fsum(column) / len(all_scores) for column in columns]
    if not math.isfinite(means[0]):
        raise NonFiniteLossError("the validation PSNR is not finite; the last checkpoint is intact: lower init_lr")
    shown = [all_pictures[index] for index in sorted(all_pictures)]
    samples = torch.stack(shown, dim=1).flatten(0, 1) if shown else torch.empty(0)
    return {"valid_psnr": means[0], "valid_ssim": means[1]}, samples


def finish_epoch(
    state: TrainingState, folder: RunFolder | None, valid: dict[str, float], samples: Tensor, speed: float
) -> None:
    """Record the epoch, print its line, and save the samples, the checkpoint, the best one and its weights."""
    photos = state.totals.pop("photos")
    row = {
        "epoch": state.epoch,
        "lr": state.generator_optimizer.param_groups[0]["lr"],
        "discriminator_lr": state.discriminator_optimizer.param_groups[0]["lr"],
        **{name: total / photos for name, total in state.totals.items()},
        **valid,
        "images_per_second": speed,
    }
    state.history.append(row)
    state.epoch, state.step, state.totals = state.epoch + 1, 0, {}
    is_best = valid["valid_psnr"] > state.best_psnr
    state.best_psnr = max(valid["valid_psnr"], state.best_psnr)
    if folder is None:
        return
    print(", ".join(f"{name} {value:.4g}" for name, value in row.items()) + (", best so far" if is_best else ""))
    if len(samples):
        with atomic_path(folder.path / "samples" / f"epoch_{row['epoch']:04.0f}.png") as temporary:
            save_image(samples, temporary, nrow=samples.shape[0] // 3)
    contents = state.state_dict()
    if is_best:
        save_checkpoint(folder.path / "best.pt", contents)
        export(folder.path / "best.safetensors", contents)
    folder.write_metrics(state.history)
    folder.draw_curves(state.history)
    # Last: a kill before it repeats the epoch and all of its files.
    save_checkpoint(folder.path / "last.pt", contents, keep=state.config.keep_checkpoints)


if __name__ == "__main__":
    sys.exit(main())
