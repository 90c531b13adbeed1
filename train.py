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
import functools
import math
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.utils import save_image
from tqdm import tqdm

from data import Batch, NoPhotosError, PhotoDataset, make_pairs
from data.sources import (
    build_loader,
    describe_photos,
    first_batch,
    list_digest,
    open_photos,
    require_enough_photos,
    require_same_photos,
)
from models import Corrector, NetworkError, network_class
from models.losses import adversarial_loss, discriminator_loss
from utils.config import Config, ConfigError, load_config
from utils.device import Arithmetic, fetch, measure, send, use_large_pages
from utils.evaluation.metrics import psnr, quantise, ssim
from utils.files import atomic_path
from utils.stop import StopRequest
from utils.training.checkpoint import CheckpointError, save_checkpoint
from utils.training.compilation import compile_generator
from utils.training.determinism import make_deterministic, seed_step
from utils.training.objective import accumulate, resize, update, weighted_losses
from utils.training.processes import ALONE, Processes, explain, processes_to_start, start_processes, visible_gpus
from utils.training.progress import FailureLog, Measured, NonFiniteLossError, Progress, announce
from utils.training.release import export
from utils.training.run_folder import RunFolder, RunFolderError, require_writable
from utils.training.schedule import Epoch, draw_brightness, draw_working_size, plan_epochs, set_learning_rates
from utils.training.start import new_state, read_checkpoint, share_weights
from utils.training.state import TrainingState
from utils.weights import WeightsError

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
    use_large_pages()
    try:
        config = load_config(arguments.config, arguments.set)
        network_class(config.model)  # say so at once if there is none
        process_count = processes_to_start(config.CUDA_VISIBLE_DEVICES)
    except (ConfigError, NetworkError) as error:
        print(f"ERROR {error}", file=sys.stderr)
        return 2
    if process_count and not arguments.dry_run:
        return start_processes(run, (config, False), process_count)
    try:
        return run(config, arguments.dry_run)
    except KeyboardInterrupt:  # where nothing is in progress that must be saved
        return 130


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
    except (RunFolderError, WeightsError, ValueError) as error:  # what the configuration and the data are to blame for
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


def train(config: Config, stop: StopRequest, processes: Processes) -> int:
    """Train until the last epoch or a stop, resuming what `config.model_save_dir` holds; return the exit code."""
    arithmetic = Arithmetic(config.precision)
    if config.deterministic:
        make_deterministic()
    failures = FailureLog()
    photos, valid_photos = processes.together(lambda: open_photos(config, failures, processes))
    lists = [list_digest(photos), list_digest(valid_photos)]
    processes.together(lambda: require_same_photos(config, processes.gather(lists)))
    processes.together(lambda: require_enough_photos(config, len(photos), processes.count))
    plan = plan_epochs(config, len(photos))
    folder: RunFolder | None = None
    try:

        def open_run() -> dict[str, Any] | None:
            nonlocal folder
            if processes.is_first:  # one process writes, and the others may be on machines that do not see the folder
                folder = RunFolder(Path(config.model_save_dir))
                return read_checkpoint(config, lists, folder.path, plan)
            return None

        old = processes.share(processes.together(open_run))
        state = processes.together(lambda: new_state(config, arithmetic, lists, is_warm=not old and processes.is_first))
        if old is not None:
            state.load_state_dict(old)
        else:
            share_weights(state, processes)
        if folder is not None:
            folder.describe(config, str(arithmetic), processes.count)
            announce(config, state, arithmetic, len(photos), plan, processes.count)
        compile_generator(state, arithmetic, processes)
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
                sources = config.train_data_dir or config.train_pairs
                where = sources if isinstance(sources, str) else ", ".join(sources)
                raise NoPhotosError(f"{where}: none of its photos can be decoded")
            size = batches.size(state.step)
            state.step += 1
            seed_step(config.seed, epoch.number, state.step, processes.rank)
            set_learning_rates(state, plan, epoch.first_step + state.step - 1)
            parts = train_step(
                state,
                batch,
                arithmetic,
                processes,
                adversarial=epoch.is_adversarial,
                batch_size=size,
                working_size=draw_working_size(config, epoch.number, state.step),
            )
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
                if folder is not None:
                    where = f"in epoch {state.epoch} after step {state.step}"
                    print(f"stopped {where}; the same command resumes", file=sys.stderr)
                return 128 + stopped
        progress.close()
        valid, samples = validate(state.released, valid_loader, arithmetic, failures, processes)
        finish_epoch(state, folder, valid, samples, progress.speed)
    if folder is not None:
        if failures.paths:
            print(f"{len(failures.paths)} unusable photos were skipped", file=sys.stderr)
        best = folder.path / "best.safetensors"
        print(f"done: best validation PSNR {state.best_psnr:.2f} dB; weights: {best}; curves: curves.png beside them")
    return 0


def train_step(
    state: TrainingState,
    batch: Batch,
    arithmetic: Arithmetic,
    processes: Processes = ALONE,
    *,
    adversarial: bool,
    batch_size: int | None = None,
    working_size: int | None = None,
) -> dict[str, Tensor]:
    """Update the generator, and the discriminator if `adversarial`, from this process's share of a batch.

    Args:
        state: what is trained.
        batch: this process's share.
        arithmetic: device and precision.
        processes: those that train together.
        adversarial: whether the discriminator takes part.
        batch_size: photos of all processes together; None: those of `batch`.
        working_size: longest side of the small copy that the network sees; None: the configuration's.

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
        stops = None
        if state.generator.shown_brighter:
            stops = send(draw_brightness(config, state.epoch, part.indices), arithmetic.device)
        with arithmetic.autocast():
            done = state.corrector.correct(inputs, working_size, stops)
        terms = weighted_losses(state, inputs, done, targets)
        if adversarial:
            fake = resize(done.photo, config.discriminator_image_size)
            with arithmetic.autocast():
                logits = state.discriminator(fake)
            terms["adversarial"] = config.adversarial_weight * adversarial_loss(logits.float())
            judged.append((share, resize(targets, config.discriminator_image_size), fake.detach()))
        loss = torch.stack(list(terms.values())).sum()
        (share * loss).backward()
        accumulate(sums, share, {"loss": loss, **terms, "psnr": psnr(done.photo.detach(), targets).mean()})
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


@torch.no_grad()
def validate(
    corrector: Corrector,
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
    corrector.eval()
    count = len(loader.dataset)  # type: ignore[arg-type]
    chosen = set(torch.linspace(0, count - 1, min(SAMPLE_COUNT, count)).long().tolist())
    indices: list[int] = []
    scores: list[Tensor] = []  # of this process's share; read once it is over, so that a GPU need not wait
    shown: dict[int, Tensor] = {}
    for batch in loader:
        failures.report(batch.failures, processes)
        if not batch.names:
            continue
        inputs, targets = make_pairs(batch, arithmetic)
        with arithmetic.autocast():
            outputs = quantise(corrector(inputs))
        indices += batch.indices
        scores.append(torch.stack((psnr(outputs, targets), ssim(outputs, targets)), dim=1))
        for position, index in enumerate(batch.indices):
            if index in chosen:
                shown[index] = torch.stack((inputs[position], outputs[position], targets[position]))
    rows = fetch(torch.cat(scores)).tolist() if scores else []
    share = dict(zip(indices, rows, strict=True))
    pictures = dict(zip(shown, fetch(torch.stack(list(shown.values()))), strict=True)) if shown else {}
    failures.collect(processes)
    all_scores = {index: score for scored in processes.gather(share) for index, score in scored.items()}
    all_pictures = {index: picture for some in processes.gather(pictures) for index, picture in some.items()}
    if not all_scores:
        raise NoPhotosError(f"{loader.dataset.folder}: none of its photos can be decoded")  # type: ignore[attr-defined]
    columns = zip(*(all_scores[index] for index in sorted(all_scores)), strict=True)
    means = [math.fsum(column) / len(all_scores) for column in columns]
    if not math.isfinite(means[0]):
        raise NonFiniteLossError("the validation PSNR is not finite; checkpoints stay as they are: lower init_lr")
    ordered = [all_pictures[index] for index in sorted(all_pictures)]
    samples = torch.stack(ordered, dim=1).flatten(0, 1) if ordered else torch.empty(0)
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
    describe_photos(config, photos, valid_photos)
    folder = Path(config.model_save_dir)
    require_writable(folder)
    found = read_checkpoint(config, [list_digest(photos), list_digest(valid_photos)], folder, plan, is_dry=True)
    state = new_state(config, arithmetic, is_warm=found is None)
    announce(config, state, arithmetic, len(photos), plan, processes)
    compile_generator(state, arithmetic)

    def step(batch: Batch, is_adversarial: bool) -> None:
        float(train_step(state, batch, arithmetic, adversarial=is_adversarial)["loss"])  # waits for the device

    seconds = 0.0
    for number, stage in enumerate(config.schedule, start=1):
        views = photos.with_image_size(stage.image_size)
        batch = first_batch(views, math.ceil(stage.batch_size / processes))
        is_adversarial = stage.begin_use_adv_loss_epoch <= stage.epochs
        step_time, memory = measure(functools.partial(step, batch, is_adversarial), arithmetic.device)
        steps = sum(epoch.steps for epoch in plan[found["epoch"] - 1 if found else 0 :] if epoch.stage == number)
        seconds += steps * step_time
        held = f"{memory / 2**20:,.0f} MiB at most for a step{' of each process' if processes > 1 else ''}"
        print(f"stage {number}: {step_time:.3f} s and {held}, {steps:,} steps")
    print(f"about {tqdm.format_interval(seconds)} on {arithmetic}, without loading and validation")
    print(f"{'goes on with the run in' if found else 'would write to'} {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
