"""Train an exposure-correction network from a folder of normally exposed photos.

examples:
  python train.py                                     train with conf.json; the same command again resumes
  python train.py --config other.json                 another configuration
  python train.py --set epochs=3 --set "image_size=[256,256]"
"""

import argparse
import csv
import hashlib
import io
import math
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from torchvision.utils import save_image
from tqdm import tqdm

from data import Batch, EpochBatches, Failure, NoPhotosError, PhotoDataset, collate, color_jitter
from models import Network, NetworkError, build_discriminator, build_generator, network_class
from models.daconv import merge_daconv
from models.losses import adversarial_loss, discriminator_loss
from utils.checkpoint import CheckpointError, load_checkpoint, load_newest_checkpoint, save_checkpoint
from utils.config import Config, ConfigError, config_from_dict, load_config
from utils.device import Arithmetic
from utils.files import atomic_path, write_text
from utils.metrics import psnr, quantise, ssim
from utils.weights import is_whole, save_weights

ARCHITECTURE = (
    "model",
    "laplacian_level_count",
    "layer_count_of_every_unet",
    "first_layer_out_channels_of_every_unet",
)
"""Keys of conf.json that describe the network of a weights file. A checkpoint's also depends on `conv`."""
SAMPLE_COUNT = 6


class NonFiniteLossError(Exception):
    """A loss that is NaN or infinite. The message names the step, the parts of the loss and the photos."""


class TrainingState:
    """Everything that changes during training, and that a checkpoint must hold."""

    def __init__(self, config: Config, arithmetic: Arithmetic, photos: list[str]) -> None:
        self.config = config
        torch.manual_seed(config.seed)
        self.generator = arithmetic.place(build_generator(config))
        self.discriminator = arithmetic.place(build_discriminator(config))
        self.generator_optimizer = torch.optim.Adam(
            self.generator.parameters(), lr=config.init_lr, weight_decay=config.weight_decay
        )
        self.discriminator_optimizer = torch.optim.Adam(
            self.discriminator.parameters(),
            lr=config.discriminator_init_lr,
            weight_decay=config.discriminator_weight_decay,
        )
        self.average = self._new_average()  # None: without
        self.epoch = 1
        self.step = 0  # steps done in this epoch
        self.totals: dict[str, float] = {}  # sums over this epoch's photos
        self.history: list[dict[str, float]] = []
        self.best_psnr = -math.inf
        self.photos = photos  # digests of the training and validation folders' lists of photos

    _MODULES = ("generator", "discriminator", "generator_optimizer", "discriminator_optimizer")
    _VALUES = ("epoch", "step", "totals", "history", "best_psnr")
    ENTRIES = (*_MODULES, *_VALUES, "config", "photos")

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values that `load_state_dict` continues from exactly."""
        modules = {name: getattr(self, name).state_dict() for name in self._MODULES}
        values = {name: getattr(self, name) for name in self._VALUES}
        average = self.average.state_dict() if self.average is not None else None
        return {**modules, **values, "average": average, "config": self.config.to_dict(), "photos": self.photos}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint of a network of the same architecture, with this configuration's settings."""
        for name in self._MODULES:
            getattr(self, name).load_state_dict(state[name])
        for name in self._VALUES:
            setattr(self, name, state[name])
        self.average = self._new_average()  # of the weights just loaded, where there was none
        if self.average is not None and state.get("average") is not None:
            self.average.load_state_dict(state["average"])
        self.generator_optimizer.param_groups[0]["weight_decay"] = self.config.weight_decay
        self.discriminator_optimizer.param_groups[0]["weight_decay"] = self.config.discriminator_weight_decay

    @property
    def released(self) -> nn.Module:
        """The network that is validated and exported: the average, if there is one."""
        return self.generator if self.average is None else self.average.module

    def _new_average(self) -> AveragedModel | None:
        decay = self.config.ema_decay
        if not decay:
            return None

        def update(averages: Any, weights: Any, count: Tensor | int) -> None:
            # At the start the average must not hang on to the untrained weights.
            torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + int(count)) / (10 + int(count))))

        return AveragedModel(self.generator, multi_avg_fn=update)


def released_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """Return the weights to export from a checkpoint: the average's, if it has one."""
    average = checkpoint.get("average")
    if average is None:
        return dict(checkpoint["generator"])
    return {name.removeprefix("module."): tensor for name, tensor in average.items() if name != "n_averaged"}


class StopRequest:
    """Remember SIGINT or SIGTERM until the step in progress is done; a second one stops at once.

    A context manager: the previous handlers return with its end.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(ValueError):  # not in the main thread: leave signals to whoever has them
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            sys.exit(128 + number)
        self.signal = number


class FailureLog:
    """Name each photo that cannot be used once, however often it is met."""

    def __init__(self) -> None:
        self.paths: set[str] = set()

    def report(self, failures: list[Failure]) -> None:
        """Print the failures that were not reported before."""
        for path, reason in failures:
            if path not in self.paths:
                self.paths.add(path)
                tqdm.write(f"ERROR {path}: {reason}; skipped", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="conf.json", help="configuration file (default: conf.json)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one key; repeatable")
    arguments = parser.parse_args(argv)
    try:
        config = load_config(arguments.config, arguments.set)
        network_class(config.model)  # say so at once if there is none
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", config.CUDA_VISIBLE_DEVICES)
        with StopRequest() as stop:
            return train(config, stop)
    except (ConfigError, NetworkError, NoPhotosError) as error:
        code, message = 2, str(error)
    except (CheckpointError, NonFiniteLossError, OSError) as error:
        code, message = 1, str(error)
    print(f"ERROR {message}", file=sys.stderr)
    return code


def train(config: Config, stop: StopRequest) -> int:
    """Train until `config.epochs` or a stop, resuming what `config.model_save_dir` holds; return the exit code."""
    folder = Path(config.model_save_dir)
    arithmetic = Arithmetic(config.precision)
    failures = FailureLog()
    train_loader, batches = build_loader(config, config.train_data_dir, arithmetic, failures, training=True)
    valid_loader, _ = build_loader(config, config.valid_data_dir, arithmetic, failures, training=False)
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    state = TrainingState(config, arithmetic, photos=[list_digest(loader) for loader in (train_loader, valid_loader)])
    resume(state, folder, steps=len(batches))
    announce(config, state, arithmetic, batches)

    for epoch in range(state.epoch, config.epochs + 1):
        adversarial = epoch >= config.begin_use_adv_loss_epoch
        batches.epoch, batches.first_batch = epoch, state.step
        state.generator.train()
        bar = tqdm(
            total=len(batches),
            initial=state.step,
            desc=f"epoch {epoch}/{config.epochs}",
            bar_format="{desc} {bar:10} {n_fmt}/{total_fmt}{postfix}",
            disable=None,
        )
        started, photos_before, speed = time.monotonic(), state.totals.get("photos", 0), 0.0
        for batch in train_loader:
            failures.report(batch.failures)
            if not batch.names:
                raise NoPhotosError(f"{config.train_data_dir}: none of its photos can be decoded")
            set_learning_rates(state, steps_done=(epoch - 1) * len(batches) + state.step, steps=len(batches))
            parts = train_step(state, batch, arithmetic, adversarial=adversarial)
            require_finite(parts, epoch, state.step + 1, batch.names)
            state.step += 1
            for name, value in {**parts, "photos": 1.0}.items():
                state.totals[name] = state.totals.get(name, 0) + value * len(batch.names)
            speed = (state.totals["photos"] - photos_before) / (time.monotonic() - started)
            show_progress(bar, state, speed, photos_left=photos_left(config, batches, state.step))
            if stop.signal:
                save_checkpoint(folder / "last.pt", state.state_dict(), keep=config.keep_checkpoints)
                bar.close()
                print(f"stopped in epoch {epoch} after step {state.step}; the same command resumes", file=sys.stderr)
                return 128 + stop.signal
            if state.step % config.checkpoint_every_steps == 0 and state.step < len(batches):
                save_checkpoint(folder / "last.pt", state.state_dict(), keep=config.keep_checkpoints)
        bar.close()
        valid, samples = validate(state.released, valid_loader, arithmetic, failures)
        with atomic_path(folder / "samples" / f"epoch_{epoch:04d}.png") as temporary:
            save_image(samples, temporary, nrow=samples.shape[0] // 3)
        finish_epoch(state, folder, valid, speed)
    if failures.paths:
        print(f"{len(failures.paths)} unusable photos were skipped", file=sys.stderr)
    print(f"done: best validation PSNR {state.best_psnr:.2f} dB; weights: {folder / 'best.safetensors'}")
    return 0


def build_loader(
    config: Config, folder: str, arithmetic: Arithmetic, failures: FailureLog, *, training: bool
) -> tuple[DataLoader[Any], EpochBatches]:
    """Return the loader of a folder of photos and the sampler that drives it."""
    dataset = PhotoDataset(
        folder,
        config.image_size,
        jitter=config.color_jitter,
        seed=config.seed if training else None,
        crop_min_area=config.crop_min_area,
    )
    failures.report(dataset.failures)
    batches = EpochBatches(len(dataset), config.batch_size, seed=config.seed if training else None)
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


def list_digest(loader: DataLoader[Any]) -> str:
    """Return a digest of which photos a loader reads, by name, to notice that some were added or removed."""
    dataset = loader.dataset
    assert isinstance(dataset, PhotoDataset)
    names = "\n".join(path.relative_to(dataset.folder).as_posix() for path in dataset.paths)
    return hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()


def leave_signals_to_parent(worker: int) -> None:
    """Let Ctrl-C, which a terminal sends to every process, be handled by the training process alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def resume(state: TrainingState, folder: Path, steps: int) -> None:
    """Continue from the newest whole checkpoint in `folder`, if there is one, and say what has changed since.

    Raises:
        CheckpointError: all are damaged, or it holds another architecture.
    """
    try:
        saved, path, damages = load_newest_checkpoint(folder / "last.pt", TrainingState.ENTRIES)
    except FileNotFoundError:
        return
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
    state.load_state_dict(saved)
    has_new_order = {"batch_size", "seed", "train_data_dir"} & changed or saved["photos"][0] != state.photos[0]
    if state.step > steps or (state.step and has_new_order):
        print(f"epoch {state.epoch} starts again: its photos or their order have changed", file=sys.stderr)
        state.step, state.totals = 0, {}
    of_validation = (
        {"ema_decay"} | {name for name in config if name.startswith("color_jitter_")} | {"image_size", "valid_data_dir"}
    )
    is_over = state.epoch > state.config.epochs
    if not is_over and (of_validation & changed or saved["photos"][1] != state.photos[1]):
        print("validation has changed: the best epoch is looked for anew", file=sys.stderr)
        state.best_psnr = -math.inf
    best = folder / "best.pt"
    if best.exists() and not is_whole(folder / "best.safetensors"):  # a kill came between the one and the other
        export(folder / "best.safetensors", load_checkpoint(best, TrainingState.ENTRIES))
    print(f"resuming in epoch {state.epoch} after step {state.step} from {path}", file=sys.stderr)


def announce(config: Config, state: TrainingState, arithmetic: Arithmetic, batches: EpochBatches) -> None:
    """Print what is about to happen."""
    parameters = f"{sum(parameter.numel() for parameter in state.generator.parameters()):,} parameters"
    print(
        f"{arithmetic}; {config.model}, {parameters}; "
        f"{batches.count} photos, {len(batches)} steps per epoch, {config.epochs} epochs",
        file=sys.stderr,
    )


def set_learning_rates(state: TrainingState, steps_done: int, steps: int) -> None:
    """Set both learning rates for the step after `steps_done`; an epoch has `steps` steps."""
    config, last = state.config, state.config.epochs * steps - 1
    begin = (config.begin_use_adv_loss_epoch - 1) * steps
    for optimizer, first, final, start in (
        (state.generator_optimizer, config.init_lr, config.final_lr, 0),
        (state.discriminator_optimizer, config.discriminator_init_lr, config.discriminator_final_lr, begin),
    ):
        for group in optimizer.param_groups:
            group["lr"] = cosine(first, final, (steps_done - start) / max(last - start, 1))


def cosine(first: float, final: float, progress: float) -> float:
    """Return the value at `progress` on half a cosine from `first`, at 0 and below, to `final`, at 1 and above."""
    progress = min(max(progress, 0), 1)
    return final + (first - final) * (1 + math.cos(math.pi * progress)) / 2


def train_step(state: TrainingState, batch: Batch, arithmetic: Arithmetic, *, adversarial: bool) -> dict[str, float]:
    """Update the generator, and the discriminator if `adversarial`.

    Return the parts of the losses, the norms of the gradients and the PSNR. Where a norm is not finite, that network is
    left as it was.
    """
    config = state.config
    inputs, targets = make_pairs(batch, arithmetic)
    with arithmetic.autocast():
        outputs = state.generator(inputs)
    parts = state.generator.losses(inputs, outputs, targets)
    if adversarial:
        fake = resize(outputs[0], config.discriminator_image_size)
        state.discriminator.requires_grad_(False)  # this step moves the generator alone
        with arithmetic.autocast():
            logits = state.discriminator(fake)
        parts["adversarial"] = config.adversarial_weight * adversarial_loss(logits.float())
    loss = torch.stack(list(parts.values())).sum()
    gradient = update(state.generator_optimizer, loss)
    if state.average is not None:
        state.average.update_parameters(state.generator)
    if adversarial:
        real = resize(targets, config.discriminator_image_size)
        state.discriminator.requires_grad_(True)
        with arithmetic.autocast():
            real_logits, fake_logits = state.discriminator(real), state.discriminator(fake.detach())
        parts["discriminator"] = discriminator_loss(real_logits.float(), fake_logits.float())
        parts["discriminator_gradient"] = update(state.discriminator_optimizer, parts["discriminator"])
    parts = {"loss": loss, **parts, "gradient": gradient, "psnr": psnr(outputs[0].detach().clamp(0, 1), targets).mean()}
    return dict(zip(parts, torch.stack([value.detach() for value in parts.values()]).tolist(), strict=True))


def make_pairs(batch: Batch, arithmetic: Arithmetic) -> tuple[Tensor, Tensor]:
    """Return a batch's synthesised mis-exposed inputs and its targets, `(B, 3, H, W)` in [0, 1] on the device.

    The inputs are rounded to 8 bits, as the files are that the network will meet: what is lost in the dark is lost.
    """
    targets = arithmetic.photos(batch.photos)
    inputs = color_jitter(targets, batch.factors.to(arithmetic.device), batch.orders.to(arithmetic.device))
    return quantise(inputs), targets


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    """Take one step down the gradient of `loss`, unless it is not finite; return its norm."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm=math.inf)
    if torch.isfinite(norm):
        optimizer.step()
    return norm


def resize(photos: Tensor, size: tuple[int, int]) -> Tensor:
    """Return `(B, 3, H, W)` photos at another size, without aliasing where they shrink."""
    shrinks = photos.shape[-2] > size[0] or photos.shape[-1] > size[1]
    return F.interpolate(photos, size, mode="bilinear", antialias=shrinks)


def require_finite(parts: dict[str, float], epoch: int, step: int, names: list[str]) -> None:
    """Raise `NonFiniteLossError` if a part of the loss or a gradient is NaN or infinite."""
    if all(math.isfinite(value) for value in parts.values()):
        return
    listed = ", ".join(f"{name} = {value:g}" for name, value in parts.items())
    raise NonFiniteLossError(
        f"the loss is not finite in epoch {epoch}, step {step}: {listed}; photos: {', '.join(names)}. "
        "The last checkpoint is intact: lower init_lr, or look at these photos"
    )


def photos_left(config: Config, batches: EpochBatches, step: int) -> int:
    """Return how many training views remain until the last epoch's end."""
    return (config.epochs - batches.epoch) * batches.count + batches.count - step * config.batch_size


def show_progress(bar: "tqdm[Any]", state: TrainingState, speed: float, photos_left: int) -> None:
    """Advance the bar and show this epoch's means so far; what matters most comes first, as terminals are narrow."""
    photos = state.totals["photos"]
    unshown = ("photos", "psnr", "gradient", "discriminator_gradient")
    parts = [f"{name} {total / photos:.3g}" for name, total in state.totals.items() if name not in unshown]
    facts = [
        f"left {tqdm.format_interval(max(photos_left, 0) / max(speed, 1e-9))}",
        f"{speed:.1f} img/s",
        f"psnr {state.totals['psnr'] / photos:.2f}",
        f"lr {state.generator_optimizer.param_groups[0]['lr']:.1e}",
    ]
    bar.set_postfix_str(", ".join(facts + parts), refresh=False)
    bar.update()


@torch.no_grad()
def validate(
    generator: nn.Module, loader: DataLoader[Any], arithmetic: Arithmetic, failures: FailureLog
) -> tuple[dict[str, float], Tensor]:
    """Return mean PSNR and SSIM over the fixed validation views, and sample pictures.

    The pictures `(3 N, 3, H, W)` are N inputs, their N corrections and their N targets, spread over the folder.

    Raises:
        NoPhotosError: no validation photo can be decoded.
        NonFiniteLossError: the network's output is not finite.
    """
    generator.eval()
    count = len(loader.dataset)  # type: ignore[arg-type]
    chosen = set(torch.linspace(0, count - 1, min(SAMPLE_COUNT, count)).long().tolist())
    scores, pictures, seen = [], [], 0
    for batch in loader:
        failures.report(batch.failures)
        if not batch.names:
            continue
        inputs, targets = make_pairs(batch, arithmetic)
        with arithmetic.autocast():
            outputs = quantise(generator(inputs)[0])
        scores.append(torch.stack((psnr(outputs, targets), ssim(outputs, targets)), dim=1).cpu())
        for position in range(len(batch.names)):
            if seen + position in chosen:
                pictures.append(torch.stack((inputs[position], outputs[position], targets[position])).cpu())
        seen += len(batch.names)
    if not scores:
        raise NoPhotosError(f"{loader.dataset.folder}: none of its photos can be decoded")  # type: ignore[attr-defined]
    means = torch.cat(scores).double().mean(dim=0).tolist()
    if not math.isfinite(means[0]):
        raise NonFiniteLossError("the validation PSNR is not finite; the last checkpoint is intact: lower init_lr")
    return {"valid_psnr": means[0], "valid_ssim": means[1]}, torch.stack(pictures, dim=1).flatten(0, 1)


def finish_epoch(state: TrainingState, folder: Path, valid: dict[str, float], speed: float) -> None:
    """Record the epoch, print its line, and save the checkpoint, the best one and its weights."""
    photos = state.totals.pop("photos")
    row = {
        "epoch": state.epoch,
        "lr": state.generator_optimizer.param_groups[0]["lr"],
        "discriminator_lr": state.discriminator_optimizer.param_groups[0]["lr"],
        **{name: total / photos for name, total in state.totals.items()},
        **valid,
        "images_per_second": speed,
    }
    print(", ".join(f"{name} {value:.4g}" for name, value in row.items()))
    state.history.append(row)
    state.epoch, state.step, state.totals = state.epoch + 1, 0, {}
    is_best = valid["valid_psnr"] > state.best_psnr
    state.best_psnr = max(valid["valid_psnr"], state.best_psnr)
    contents = state.state_dict()
    if is_best:
        save_checkpoint(folder / "best.pt", contents)
        export(folder / "best.safetensors", contents)
    write_metrics(folder / "metrics.csv", state.history)
    # Last: a kill before it repeats the epoch and all of its files.
    save_checkpoint(folder / "last.pt", contents, keep=state.config.keep_checkpoints)


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


def write_metrics(path: Path, history: list[dict[str, float]]) -> None:
    """Write the whole history as CSV, one row per epoch."""
    names = list(dict.fromkeys(name for row in history for name in row))
    table = io.StringIO()
    writer = csv.DictWriter(table, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_text(path, table.getvalue())


if __name__ == "__main__":
    sys.exit(main())
