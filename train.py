"""Train an exposure-correction network from a folder of normally exposed photos.

examples:
  python train.py                                     train with conf.json; the same command again resumes
  python train.py --config other.json                 another configuration
  python train.py --set epochs=3 --set "image_size=[256,256]"
  python train.py --dry-run                           check everything, print the plan, write nothing
  torchrun --nnodes 2 --nproc-per-node 8 train.py     two machines; on one, CUDA_VISIBLE_DEVICES in conf.json suffices
"""

import argparse
import dataclasses
import hashlib
import math
import os
import random
import signal
import sys
import time
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
    EpochBatches,
    NoPhotosError,
    PhotoCache,
    PhotoDataset,
    collate,
    color_jitter,
)
from models import Network, NetworkError, build_discriminator, build_generator, network_class
from models.daconv import merge_daconv, to_daconv
from models.losses import adversarial_loss, discriminator_loss
from utils.checkpoint import CheckpointError, load_checkpoint, load_newest_checkpoint, save_checkpoint
from utils.config import Config, ConfigError, Stage, config_from_dict, load_config
from utils.device import Arithmetic, peak_memory
from utils.files import atomic_path, fingerprint
from utils.metrics import psnr, quantise, ssim
from utils.parallel import ALONE, Processes, start_processes
from utils.progress import FailureLog, Measured, NonFiniteLossError, Progress
from utils.run_folder import RunFolder, RunFolderError
from utils.schedule import Epoch, plan_epochs, set_learning_rates
from utils.stop import StopRequest
from utils.training_state import TrainingState, released_weights
from utils.weights import WeightsError, is_whole, load_weights, save_weights

ARCHITECTURE = (
    "model",
    "laplacian_level_count",
    "layer_count_of_every_unet",
    "first_layer_out_channels_of_every_unet",
)
"""Keys of conf.json that describe the network of a weights file. A checkpoint's also depends on `conv`."""
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
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", config.CUDA_VISIBLE_DEVICES)
    count = visible_gpus()
    if count > 1 and "RANK" not in os.environ and not arguments.dry_run:
        return start_processes(run, (config, False), count)
    return run(config, arguments.dry_run)


def visible_gpus() -> int:
    """Return how many GPUs CUDA_VISIBLE_DEVICES leaves, without starting CUDA."""
    return torch.cuda.device_count()


def run(config: Config, is_dry: bool) -> int:
    """Train, or only check, as one of the processes that the environment tells of; return the exit code."""
    try:
        with StopRequest() as stop, Processes() as processes:
            return dry_run(config) if is_dry else train(config, stop, processes)
    except (ConfigError, NetworkError, NoPhotosError, RunFolderError, WeightsError, ValueError) as error:
        code, message = 2, str(error)
    except (CheckpointError, NonFiniteLossError, OSError) as error:
        code, message = 1, str(error)
    except torch.OutOfMemoryError as error:
        advice = "lower batch_size or image_size, or raise accumulation_steps"
        code, message = 1, f"the GPU's memory does not suffice: {advice} ({str(error).splitlines()[0]})"
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        code, message = 1, f"{error} Lower num_workers if memory or /dev/shm is short"
    print(f"ERROR {message}", file=sys.stderr)
    return code


def train(config: Config, stop: StopRequest, processes: Processes) -> int:
    """Train until the last epoch or a stop, resuming what `config.model_save_dir` holds; return the exit code."""
    folder = RunFolder(Path(config.model_save_dir)) if processes.is_first else None  # one process writes
    try:
        arithmetic = Arithmetic(config.precision)
        if config.deterministic:
            make_deterministic()
        failures = FailureLog()
        photos, valid_photos = open_photos(config, failures, processes)
        plan = plan_epochs(config, len(photos))
        require_enough_photos(config, len(photos), processes)
        state = new_state(config, arithmetic, photos=[list_digest(photos), list_digest(valid_photos)])
        resume(state, config, plan, processes)
        if folder is not None:
            folder.describe(config, str(arithmetic), processes.count)
            announce(config, state, arithmetic, photos, plan, processes)
        return run_epochs(state, plan, photos, valid_photos, arithmetic, failures, folder, stop, processes)
    finally:
        if folder is not None:
            folder.close()


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
                raise NoPhotosError(f"{config.train_data_dir}: none of its photos can be decoded")
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
        failures.collect(processes)
        valid, samples = validate(state.released, valid_loader, arithmetic, failures, processes)
        finish_epoch(state, folder, valid, samples, progress.speed)
    if folder is not None:
        folder.draw_curves(state.history)
        if failures.paths:
            print(f"{len(failures.paths)} unusable photos were skipped", file=sys.stderr)
        best = folder.path / "best.safetensors"
        print(f"done: best validation PSNR {state.best_psnr:.2f} dB; weights: {best}; curves: curves.png beside them")
    return 0


def say_stopped(state: TrainingState, folder: RunFolder | None, number: int) -> int:
    """Say where training was stopped by signal `number`, and return the exit code."""
    if folder is not None:
        folder.draw_curves(state.history)
        print(f"stopped in epoch {state.epoch} after step {state.step}; the same command resumes", file=sys.stderr)
    return 128 + number


def open_photos(
    config: Config, failures: FailureLog, processes: Processes = ALONE
) -> tuple[PhotoDataset, PhotoDataset]:
    """Return the data sets of training and validation.

    Raises:
        NoPhotosError: one of them has no photos, or both have some in common.
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
    )


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
        persistent_workers=config.num_workers > 0,
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
            if (key := fingerprint(path)) in seen:
                common.append((path, seen[key]))
    if common:
        path, other = common[0]
        more = f", and {len(common) - 1} more" if len(common) > 1 else ""
        raise NoPhotosError(
            f"{path} is also in the training set, as {other}{more}: the best epoch would be chosen on photos that were "
            "trained on; take them out of one of the two folders"
        )


def require_enough_photos(config: Config, photo_count: int, processes: Processes) -> None:
    """Raise `ConfigError` if a process would be left without a photo, or without one for each part of its share."""
    for stage in config.schedule:
        batches = EpochBatches(photo_count, stage.batch_size, seed=None)
        smallest = min(batches.size(batch) for batch in range(len(batches)))
        if smallest < processes.count:
            raise ConfigError(
                f"batch_size = {stage.batch_size} makes batches of {smallest} of the {photo_count} training photos, "
                f"fewer than the {processes.count} processes: raise batch_size, add photos, or use fewer GPUs"
            )
        if smallest < processes.count * config.accumulation_steps and config.accumulation_steps > 1:
            raise ConfigError(
                f"accumulation_steps = {config.accumulation_steps} is more than the {smallest // processes.count} "
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


def new_state(config: Config, arithmetic: Arithmetic, photos: list[str]) -> TrainingState:
    """Return the state before the first step, with the weights of `config.init_weights`, if it names some."""
    torch.manual_seed(config.seed)
    generator = warm_start(config) if config.init_weights else build_generator(config)
    discriminator = build_discriminator(config)
    return TrainingState(config, arithmetic.place(generator), arithmetic.place(discriminator), photos)


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
    names = "\n".join(path.relative_to(dataset.folder).as_posix() for path in dataset.paths)
    return hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()


def leave_signals_to_parent(worker: int) -> None:
    """Let the training process alone handle signals that every process of a terminal or a job gets."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # the second one is the loader's own, for a worker that does not end by itself
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def resume(state: TrainingState, config: Config, plan: list[Epoch], processes: Processes) -> None:
    """Continue from the newest whole checkpoint, if there is one, in all processes; say what has changed since.

    Raises:
        CheckpointError: all are damaged, or it holds another architecture.
    """
    found = None
    if processes.is_first:  # the others may be on machines that do not see the folder
        folder = Path(config.model_save_dir)
        with suppress(FileNotFoundError):
            found = read_checkpoint(state, folder, plan)
    found = processes.share(found)
    if found is not None:
        state.load_state_dict(found)
    elif processes.count > 1:  # equal seeds give equal weights, on equal machines
        state.load_state_dict(processes.share(state.state_dict()))


def read_checkpoint(state: TrainingState, folder: Path, plan: list[Epoch]) -> dict[str, Any]:
    """Return the newest whole checkpoint of a folder, with what has to begin anew reset; say what has changed.

    Raises:
        CheckpointError: all are damaged, or it holds another architecture.
        FileNotFoundError: there is none.
    """
    saved, path, damages = load_newest_checkpoint(folder / "last.pt", TrainingState.ENTRIES)
    for damage in damages:
        print(f"WARNING {damage}; going on from {path}", file=sys.stderr)
    config, old = state.config.to_dict(), config_from_dict(saved["config"], source=str(path)).to_dict()
    changed = {name for name in config if config[name] != old[name]}
    for name in sorted(changed):
        print(f"changed since the checkpoint: {name} = {old[name]} -> {config[name]}", file=sys.stderr)
        if name in (*ARCHITECTURE, "conv"):
            raise CheckpointError(
                f"{path}: made with {name} = {old[name]}, not {config[name]}: "
                "give model_save_dir another folder, or move this one away"
            )
    is_over = saved["epoch"] > len(plan)
    has_new_order = {"batch_size", "stages", "seed", "train_data_dir"} & changed or saved["photos"][0] != state.photos[
        0
    ]
    if saved["step"] and (is_over or saved["step"] > plan[saved["epoch"] - 1].steps or has_new_order):
        print(f"epoch {saved['epoch']} starts again: its photos or their order have changed", file=sys.stderr)
        saved["step"], saved["totals"] = 0, {}
    of_validation = (
        {"ema_decay"} | {name for name in config if name.startswith("color_jitter_")} | {"image_size", "valid_data_dir"}
    )
    if not is_over and (of_validation & changed or saved["photos"][1] != state.photos[1]):
        print("validation has changed: the best epoch is looked for anew", file=sys.stderr)
        saved["best_psnr"] = -math.inf
    best = folder / "best.pt"
    if best.exists() and not is_whole(folder / "best.safetensors"):  # a kill came between the one and the other
        export(folder / "best.safetensors", load_checkpoint(best, TrainingState.ENTRIES))
    print(f"resuming in epoch {saved['epoch']} after step {saved['step']} from {path}", file=sys.stderr)
    return saved


def announce(
    config: Config,
    state: TrainingState,
    arithmetic: Arithmetic,
    photos: PhotoDataset,
    plan: list[Epoch],
    processes: Processes = ALONE,
) -> None:
    """Print what is about to happen."""
    count = f"{processes.count} processes, " if processes.count > 1 else ""
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
    """Check data, network and one step of every stage, and print the plan; write nothing."""
    config = dataclasses.replace(config, photo_cache_gigabytes=0.0)
    arithmetic, failures = Arithmetic(config.precision), FailureLog()
    photos, valid_photos = open_photos(config, failures)
    require_enough_photos(config, len(photos), Processes())
    plan = plan_epochs(config, len(photos))
    state = new_state(config, arithmetic, photos=[])
    for name, dataset in (("train_data_dir", photos), ("valid_data_dir", valid_photos)):
        small = sum(min(w / config.image_size[1], h / config.image_size[0]) < 1 for w, h in dataset.sizes)
        enlarged = f", {small} smaller than the view and enlarged" if small else ""
        print(f"{name} {dataset.folder}: {len(dataset)} photos, {len(dataset.failures)} rejected{enlarged}")
    announce(config, state, arithmetic, photos, plan)
    seconds = 0.0
    for number, stage in enumerate(config.schedule, start=1):
        step_time, memory = time_steps(state, photos.with_image_size(stage.image_size), stage, arithmetic)
        steps = sum(epoch.steps for epoch in plan if epoch.stage == number)
        seconds += steps * step_time
        print(f"stage {number}: {step_time:.3f} s and {memory / 2**20:,.0f} MiB at most for a step, {steps:,} steps")
    print(f"about {tqdm.format_interval(seconds)} on {arithmetic}, without validation")
    save = Path(config.model_save_dir)
    last = save / "last.pt"
    print(f"{'resumes the run in' if last.exists() else 'would write to'} {save}")
    return 0


def time_steps(
    state: TrainingState, photos: PhotoDataset, stage: Stage, arithmetic: Arithmetic, count: int = 3
) -> tuple[float, float]:
    """Return the mean seconds of `count` steps and the peak memory in bytes, of the GPU or of the process."""
    batches = EpochBatches(len(photos), stage.batch_size, seed=state.config.seed)
    keys = next(iter(batches))
    is_adversarial = stage.begin_use_adv_loss_epoch <= stage.epochs
    on_gpu = arithmetic.device.type == "cuda"
    batch = collate([photos[key] for key in keys])
    if not batch.names:
        raise NoPhotosError(f"{photos.folder}: none of its photos can be decoded")
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
        inputs, targets = make_pairs(part, arithmetic)
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
    if state.average is not None:
        state.average.update_parameters(state.generator)
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
    """Return the losses of the network and 1 - SSIM, each times its weight in the configuration; without those of 0."""
    config = state.config
    network: Any = state.generator
    weights = {"reconstruction": config.reconstruction_weight, "pyramid": config.pyramid_weight}
    terms = network.losses(inputs, outputs, targets)
    terms = {name: weights.get(name, 1.0) * term for name, term in terms.items() if weights.get(name, 1.0)}
    if config.ssim_weight:
        terms["ssim"] = config.ssim_weight * (1 - ssim(outputs[0], targets).mean())
    return terms


def accumulate(sums: dict[str, Tensor], share: float, parts: dict[str, Tensor]) -> None:
    """Add `share` times `parts` to `sums`."""
    for name, part in parts.items():
        value = share * part.detach()
        sums[name] = sums[name] + value if name in sums else value


def make_pairs(batch: Batch, arithmetic: Arithmetic) -> tuple[Tensor, Tensor]:
    """Return a batch's synthesised mis-exposed inputs and its targets, `(B, 3, H, W)` in [0, 1] on the device.

    The inputs are rounded to 8 bits, as the files are that the network will meet: what is lost in the dark is lost.
    """
    targets = arithmetic.photos(batch.photos)
    factors, orders = (draws.to(arithmetic.device, non_blocking=True) for draws in (batch.factors, batch.orders))
    inputs = color_jitter(targets, factors, orders)
    return quantise(inputs), targets


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
    # Last: a kill before it repeats the epoch and all of its files.
    save_checkpoint(folder.path / "last.pt", contents, keep=state.config.keep_checkpoints)


def trained_network(checkpoint: dict[str, Any], source: Path) -> Network:
    """Return the network of a checkpoint with the weights to release; its random draws leave no trace.

    Raises:
        ConfigError: the checkpoint's configuration cannot be used; `source` names it.
        RuntimeError: the checkpoint's tensors do not fit its configuration.
    """
    with torch.random.fork_rng(devices=[]):  # the untrained weights are drawn and thrown away
        network = build_generator(config_from_dict(checkpoint["config"], source=str(source)))
    network.load_state_dict(released_weights(checkpoint))
    return network


def export(path: Path, checkpoint: dict[str, Any], plain: nn.Module | None = None, **options: Any) -> None:
    """Write the network of a checkpoint, merged, as the weights file that predict.py reads.

    Args:
        path: NAME.safetensors.
        checkpoint: what `TrainingState.state_dict` returned.
        plain: the checkpoint's network, if it has been merged already.
        options: those of `save_weights`.

    Raises:
        RuntimeError: the checkpoint's tensors do not fit its configuration.
        OSError: the folder is missing, read-only or full.
    """
    config = config_from_dict(checkpoint["config"], source=str(path))
    if plain is None:
        network = trained_network(checkpoint, path)
        plain = merge_daconv(network) if config.conv == "daconv" else network
    values = config.to_dict()
    save_weights(
        path,
        plain.state_dict(),
        architecture={name: values[name] for name in ARCHITECTURE},
        working_size=config.working_size,
        training={"config": values, **(checkpoint["history"] or [{}])[-1]},
        **options,
    )


if __name__ == "__main__":
    sys.exit(main())
