"""Read and check conf.json: one flat file, every key typed, nothing unknown, nothing told twice."""

import dataclasses
import difflib
import functools
import json
import math
import re
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

DISCRIMINATOR_MIN_SIZE = 256
"""Seven halvings and a 2x2 convolution: a shorter side leaves the discriminator without an output."""


class ConfigError(ValueError):
    """A configuration that cannot be used. The message names the key, its value and what is allowed."""


def _between(minimum: float, maximum: float = math.inf, **options: Any) -> Any:
    """Declare a field whose value (every value, in a list) lies in [minimum, maximum]."""
    return field(metadata={"minimum": minimum, "maximum": maximum}, **options)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of a training run with views and batches of its own. The fields are those of `Config`."""

    image_size: tuple[int, int]
    batch_size: int
    epochs: int
    begin_use_adv_loss_epoch: int


@dataclass(frozen=True, kw_only=True)
class Config:
    """All parameters of a training run. Fields without a default must stand in conf.json."""

    image_size: tuple[int, int] = _between(16, 8192)
    """Height and width in pixels of the views that the generator is trained on."""

    discriminator_image_size: tuple[int, int] = _between(DISCRIMINATOR_MIN_SIZE, 8192)
    """Height and width in pixels to which photos are resized for the discriminator."""

    train_data_dir: str | tuple[str, ...]
    """Folder of normally exposed photos to train on, sub-folders included; "" for none, with `train_pairs`. Or a list
    of shards, tar files as `python -m data.shards` packs them, such as ["shards/train-*.tar"]."""

    valid_data_dir: str
    """Folder of normally exposed photos to validate on, sub-folders included; "" for none, with `valid_pairs`."""

    train_pairs: tuple[str, ...] = ()
    """Real pairs to train on, each "DATASET:FOLDER" of a data set that evaluate.py knows: "msec:data/MSEC"."""

    valid_pairs: tuple[str, ...] = ()
    """Likewise to validate on."""

    skip_pair_problems: bool = False
    """Train without the pairs that are incomplete, damaged or of unequal size, instead of refusing to start."""

    batch_size: int = _between(1, 65536)
    """Photos per step, of all processes together."""

    init_lr: float = _between(0, 1)
    """The generator's learning rate at the first step."""

    final_lr: float = _between(0, 1)
    """The generator's learning rate at the last step, reached along half a cosine."""

    weight_decay: float = _between(0, 1)
    """The generator's L2 penalty (Adam's `weight_decay`)."""

    discriminator_init_lr: float = _between(0, 1)
    """The discriminator's learning rate at its first step."""

    discriminator_final_lr: float = _between(0, 1)
    """The discriminator's learning rate at the last step, reached along half a cosine from its first epoch."""

    discriminator_weight_decay: float = _between(0, 1)
    """The discriminator's L2 penalty."""

    epochs: int = _between(1)
    """Passes over the training photos; each photo gives one random view per pass, or `views_per_photo`."""

    begin_use_adv_loss_epoch: int = _between(1)
    """Epoch, counted from 1, from which the discriminator is on; larger than `epochs`: never."""

    stages: tuple[dict[str, Any], ...] = ()
    """Stages of training, each an object with any of `image_size`, `batch_size`, `epochs`, `begin_use_adv_loss_epoch`
    (counted from the stage's first epoch); what it leaves out is as above. Validation keeps the `image_size` above."""

    CUDA_VISIBLE_DEVICES: str
    """GPUs to use, such as "0" or "0,1,2,3" (one process each); "" for none. The environment variable of this name, if
    set, takes precedence."""

    num_workers: int = _between(0, 1024)
    """Processes that decode and crop photos for each training process; 0: it does so itself."""

    photo_cache_dir: str = ".cache/photos"
    """Folder in which decoded photos are kept between epochs and runs, as long as there is room; views are the
    same with and without."""

    photo_cache_gigabytes: float = _between(0, 1e6, default=20.0)
    """Room for decoded photos, in GB; 0: decode every time."""

    model_save_dir: str
    """Folder for checkpoints, weights, metrics and sample pictures. A run found there is resumed."""

    model: str = "msec"
    """Network to train, one of those that models/__init__.py lists: "msec", "zero_dce", "prenet"."""

    conv: Literal["plain", "daconv"] = "plain"
    """Convolutions of the network: "daconv" trains each 3x3 one as a DAConv; predict.py gets them merged."""

    init_weights: str = ""
    """Weights (.safetensors) or checkpoint (.pt) of the same network to start from, plain or DAConv; "": none."""

    laplacian_level_count: int = _between(1, 8)
    """Levels of the Laplacian pyramid, one U-Net each."""

    layer_count_of_every_unet: tuple[int, ...] = _between(1, 8)
    """Encoder stages of each level's U-Net, coarsest level first; the bridge comes on top."""

    first_layer_out_channels_of_every_unet: tuple[int, ...] = _between(1, 1024)
    """First-stage channels of each level's U-Net, coarsest level first; they double with every stage."""

    color_jitter_brightness: float = _between(0, 1)
    """b: brightness is multiplied by a factor drawn from [1 - b, 1 + b], as torchvision's ColorJitter does."""

    color_jitter_saturation: float = _between(0, 1)
    """Likewise for saturation."""

    color_jitter_contrast: float = _between(0, 1)
    """Likewise for contrast."""

    color_jitter_gamma: float = _between(0, 9, default=0.0)
    """g: every pixel is raised to a power drawn log-uniformly from [1 / (1 + g), 1 + g]; whites stay white."""

    degradation: Literal["color_jitter", "camera", "mixture"] = "color_jitter"
    """How inputs are mis-exposed: by the jitter above, by a camera's exposure and development, or by a mixture of both
    and of scenes in linear light."""

    jitter_share: float = _between(0, 1, default=0.5)
    """Mixture: share of the photos that are jittered; the rest goes through the camera."""

    hdri_dir: str = ""
    """Mixture: folder of scenes in linear light, panoramas (.hdr, or .png of log light) or HDR photographs: views of
    them are photographed, and developed well as targets. Every eighth validates. No such folder: without; "" wants a
    `scene_share` of 0."""

    scene_share: float = _between(0, 1, default=0.0)
    """Mixture: share of the training views that are views of scenes, in place of the photo's."""

    camera_ev_min: float = _between(-10, 0, default=-5.0)
    """Camera: darkest exposure shift in EV, in linear light."""

    camera_ev_max: float = _between(0, 10, default=2.6)
    """Camera: brightest exposure shift in EV."""

    camera_dark_share: float = _between(0, 1, default=0.6)
    """Camera: share of the shifts that are darker, where both sides are drawn."""

    camera_ev_least: float = _between(0, 10, default=0.0)
    """Camera: smallest exposure shift in EV, either way, before local maps: a gap between mis-exposed photos and good
    ones. A side that does not reach so far is not drawn."""

    camera_mild_share: float = _between(0, 1, default=0.0)
    """Camera: share of the shifts that are mild instead: normal around 0."""

    camera_mild_ev: float = _between(0, 5, default=0.6)
    """Camera: standard deviation of mild shifts in EV."""

    camera_metered: bool = False
    """Camera: whether shifts of more than 0.75 EV count from the exposure that brings a view's mean light to middle
    grey, wholly so from 2.5 EV on, instead of from its own: how bright an input is then says little of its target."""

    camera_stretch: float = _between(0, 4, default=0.0)
    """Camera: most by which differences in light between a photo's parts are enlarged, along edges, as in backlit
    scenes; 1 doubles them, in stops."""

    camera_stretch_share: float = _between(0, 1, default=0.3)
    """Camera: share of the photos whose light is stretched."""

    camera_local_ev: float = _between(0, 5, default=1.2)
    """Camera: largest standard deviation in EV of the knots of a smooth local exposure map."""

    camera_local_share: float = _between(0, 1, default=1 / 3)
    """Camera: share of the photos with a local exposure map."""

    camera_shoulder: float = _between(0, 100, default=1.5)
    """Camera: power of a uniform number that gives the shoulder: 0 always keeps white white, more clips harder."""

    camera_noise: float = _between(0, 1, default=0.001)
    """Camera: largest variance of the noise at full scale of linear light."""

    camera_noise_share: float = _between(0, 1, default=0.5)
    """Camera: share of the photos with noise."""

    camera_white_balance: float = _between(0, 1, default=0.05)
    """Camera: standard deviation of the logarithms of the gains of red and blue."""

    camera_gamma: float = _between(0, 2, default=0.4)
    """Camera: largest logarithm of the tone curve's power, either way."""

    camera_contrast: float = _between(0, 1, default=0.5)
    """Camera: largest share of an S-curve that is mixed in, either way."""

    camera_saturation: float = _between(0, 1, default=0.3)
    """Camera: largest change of saturation, either way."""

    camera_jpeg: int = _between(1, 98, default=30)
    """Camera: lowest JPEG quality."""

    camera_jpeg_share: float = _between(0, 1, default=0.5)
    """Camera: share of the photos that have been through JPEG."""

    identity_share: float = _between(0, 0.9, default=0.0)
    """Share of the training views that are not mis-exposed, so that good photos stay as they are."""

    normalise_targets: float = _between(0, 1, default=0.0)
    """How far the targets of synthesised inputs are re-exposed in training, towards a mean luma of 0.44 of what is
    neither white nor black, where the error is so strong (2.5 EV) that the input no longer tells how bright its photo
    was; less for weaker ones, not at all below 0.75 EV. 1: wholly. Validation keeps the photos."""

    clipped_weight: float = _between(0, 1, default=1.0)
    """Weight in the L1 losses of pixels whose light was lost: black or white in the input, and not in the target."""

    corrected_weight: float = _between(0, 1000, default=1.0)
    """Weight of the mean absolute difference between the corrected photo, behind its curves, and the target."""

    ema_decay: float = _between(0, 0.99999, default=0.0)
    """Decay per step of the moving average of the weights, which is what is validated and exported; 0: none."""

    views_per_photo: int = _between(1, 1000, default=1)
    """Random views of each photo in an epoch."""

    crop_min_area: float = _between(0.01, 1, default=0.25)
    """Smallest share of the photo's largest fitting view that a random training view may cover."""

    crop_min_deviation: float = _between(0, 0.5, default=0.01)
    """A random view whose pixels deviate less from their mean (standard deviation, of 1) is flat and drawn again."""

    crop_min_mean: float = _between(0, 0.5, default=0.02)
    """A random view whose mean is below this is black, and above 1 minus this white: it is drawn again."""

    reconstruction_weight: float = _between(0, 1000, default=1.0)
    """Weight of the mean absolute difference between the network's own output and the target (the paper's L_rec)."""

    pyramid_weight: float = _between(0, 1000, default=1.0)
    """Weight of the same on the coarser levels (the paper's L_pyr)."""

    ssim_weight: float = _between(0, 1000, default=0.0)
    """Weight of 1 - SSIM between the corrected photo and the target; 0: left out."""

    adversarial_weight: float = _between(0, 1000, default=0.01)
    """Weight of the adversarial loss beside the L1 losses, all of them means."""

    clip_gradient_norm: float = _between(0, 1e9, default=0.0)
    """Largest norm of a step's gradient, which is scaled down to it; 0: no limit."""

    accumulation_steps: int = _between(1, 65536, default=1)
    """Parts in which a process works on its share of a batch, to save memory; the discriminator normalises each."""

    working_size: int = _between(16, 8192, default=512)
    """Longest side in pixels of the small copy that the network sees of a photo or view; stored in the weights file. Of
    long photos it is longer, up to twice, so that the short side is no smaller than what working_size_spread draws."""

    working_size_spread: float = _between(0, 3, default=0.0)
    """s: in training the small copy's longest side is drawn for every step from working_size / (1 + s) to working_size
    (1 + s), a multiple of 4, so that the network works at all of them; 0: always working_size."""

    shown_brighter: float = _between(0, 4, default=0.0)
    """How much brighter than the photo a network that learns from targets is shown the small copy, in powers of two of
    the odds x / (1 - x), near stops; in training drawn anew each epoch, from 0 to twice that; stored in the weights
    file."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the networks in training; "auto" takes bfloat16 where the hardware is fast with it."""

    compile: bool = False
    """Compile the network for training with `torch.compile`, for each working size anew; without, where that fails."""

    checkpoint_every_steps: int = _between(1, default=500)
    """Steps after which a checkpoint is written inside an epoch; one is also written after every epoch."""

    keep_checkpoints: int = _between(1, 1000, default=2)
    """Checkpoints to keep: last.pt and those before it, from which a run goes on if last.pt is damaged."""

    seed: int = _between(0, 2**31 - 1, default=0)
    """Seed of the initial weights and of every random draw."""

    deterministic: bool = False
    """On a GPU, take slower operations that give the same bits every time; what has none is named. A CPU needs none."""

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            _check(item, getattr(self, item.name))
        for name in ("layer_count_of_every_unet", "first_layer_out_channels_of_every_unet"):
            values = getattr(self, name)
            if len(values) != self.laplacian_level_count:
                raise ConfigError(
                    f"{name} = {list(values)} has {len(values)} entries, but laplacian_level_count = "
                    f"{self.laplacian_level_count}: give one entry per level"
                )
        for first, last in (("init_lr", "final_lr"), ("discriminator_init_lr", "discriminator_final_lr")):
            if getattr(self, last) > getattr(self, first):
                raise ConfigError(
                    f"{last} = {getattr(self, last)} is above {first} = {getattr(self, first)}: "
                    "the learning rate falls during training"
                )
        folders = {"train_data_dir": self.train_pairs, "valid_data_dir": self.valid_pairs}
        for name in (*folders, "model_save_dir", "photo_cache_dir"):
            if not getattr(self, name) and not folders.get(name):
                raise ConfigError(f'{name} = "" is empty: give the path of a folder')
        if not re.fullmatch(r"|[\w-]+(,[\w-]+)*", self.CUDA_VISIBLE_DEVICES):
            raise ConfigError(
                f'CUDA_VISIBLE_DEVICES = "{self.CUDA_VISIBLE_DEVICES}" is not a list of GPUs: '
                'write "0" or "0,1", or "" for none'
            )

        if self.hdri_dir and self.degradation != "mixture":
            raise ConfigError(f'hdri_dir = "{self.hdri_dir}" needs degradation = "mixture", of which scenes are a part')
        if self.scene_share and not self.hdri_dir:
            raise ConfigError(f"scene_share = {self.scene_share} needs scenes: give hdri_dir, or a share of 0")
        if self.camera_ev_least > max(-self.camera_ev_min, self.camera_ev_max):
            raise ConfigError(
                f"camera_ev_least = {self.camera_ev_least} is larger than every shift from camera_ev_min = "
                f"{self.camera_ev_min} to camera_ev_max = {self.camera_ev_max}: lower it"
            )
        for number, stage in enumerate(self.stages, start=1):
            try:
                _check_stage(stage)
            except ConfigError as error:
                raise ConfigError(f"stages, stage {number}: {error}") from None

    @property
    def schedule(self) -> tuple[Stage, ...]:
        """The stages of training: what `stages` says, or one stage."""
        stages: tuple[dict[str, Any], ...] = self.stages or ({},)
        names = [item.name for item in dataclasses.fields(Stage)]
        values: list[dict[str, Any]] = [{n: stage.get(n, getattr(self, n)) for n in names} for stage in stages]
        return tuple(Stage(**{**value, "image_size": tuple(value["image_size"])}) for value in values)

    @property
    def least_size(self) -> int:
        """The smallest side in pixels of a small copy that training draws; 0 where it draws none."""
        least = self.smallest_working_size * min(self.image_size) // max(self.image_size)
        return least if self.working_size_spread else 0

    @property
    def smallest_working_size(self) -> int:
        """The smallest longest side in pixels of a small copy that training draws."""
        return max(round(self.working_size / (1 + self.working_size_spread) / 4) * 4, 16)

    @property
    def color_jitter(self) -> tuple[float, float, float, float]:
        """Amounts of brightness, saturation, contrast and gamma, as `data.draw_jitter` takes them."""
        return (
            self.color_jitter_brightness,
            self.color_jitter_saturation,
            self.color_jitter_contrast,
            self.color_jitter_gamma,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as JSON-ready keys and values; `Config(**...)` of it is the same configuration."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a configuration from a JSON file and apply `KEY=VALUE` overrides.

    Args:
        path: a JSON file holding one flat object (UTF-8, with or without a byte-order mark).
        overrides: such as "epochs=3" or "image_size=[256,256]"; the value is JSON, or plain text for a text key.

    Raises:
        ConfigError: the file cannot be read, or a key is unknown, given twice, missing, of the wrong type or out of
            range. The message names the file or override, the key, its value and what is allowed.
    """
    try:
        values = _read_json(Path(path))
        _refuse_unknown(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    for override in overrides:
        name, value = _parse_override(override)
        values[name] = value
    return config_from_dict(values, source=str(path))


def config_of_checkpoint(values: dict[str, Any], source: str) -> Config:
    """Return the configuration in a checkpoint, which may be of an earlier version: keys that have gone are left out.

    Raises:
        ConfigError: as `load_config`.
    """
    return config_from_dict({name: value for name, value in values.items() if name not in REMOVED}, source)


def config_from_dict(values: dict[str, Any], source: str) -> Config:
    """Check `values`, as read from JSON, and return them as a `Config`; `source` names them in errors.

    Raises:
        ConfigError: as `load_config`.
    """
    try:
        _refuse_unknown(values)
        missing = [f.name for f in dataclasses.fields(Config) if _is_required(f) and f.name not in values]
        if missing:
            raise ConfigError(f"missing {', '.join(missing)}: conf.json in the repository shows every required key")
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return Config(**fields)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _read_json(path: Path) -> dict[str, Any]:
    def refuse_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                values = ", ".join(json.dumps(value) for other, value in pairs if other == name)
                raise ConfigError(f"{name} is given {names.count(name)} times ({values}): keep one")
        return dict(pairs)

    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=refuse_duplicates)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError("is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"is not JSON: {error.msg} in line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise ConfigError("is nested too deeply: it holds one flat object") from None
    except ConfigError:
        raise
    except ValueError as error:  # a number of thousands of digits
        raise ConfigError(f"is not usable JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"holds a {type(values).__name__}: it must hold one object, {{key: value, ...}}")
    return values


def _parse_override(override: str) -> tuple[str, Any]:
    name, equals, text = override.partition("=")
    name = name.strip()
    if not equals:
        raise ConfigError(f'--set {override}: write KEY=VALUE, such as epochs=3 or "image_size=[256,256]"')
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    try:
        _refuse_unknown({name: value})
    except ConfigError as error:
        raise ConfigError(f"--set {override}: {error}") from None
    is_text = _kinds()[name] is str or (name == "train_data_dir" and not isinstance(value, list))
    return name, text if is_text and not isinstance(value, str) else value


REMOVED = {"colour_weight": "its effect could not be told from none"}
"""Keys of earlier versions, and why they went."""


def _refuse_unknown(values: dict[str, Any]) -> None:
    for name in values:
        if name in REMOVED:
            raise ConfigError(f"{name} was removed, as {REMOVED[name]}: delete the key")
    known = [f.name for f in dataclasses.fields(Config)]
    for name in values:
        if name not in known:
            nearest = difflib.get_close_matches(name.lower(), [k.lower() for k in known], n=1, cutoff=0.5)
            hint = f"did you mean {next(k for k in known if k.lower() == nearest[0])}? " if nearest else ""
            value = json.dumps(values[name], default=repr)
            raise ConfigError(f"unknown key {name} = {value}: {hint}known keys are {', '.join(known)}")


def _check_stage(stage: object) -> None:
    """Check one entry of `stages`."""
    known = [item.name for item in dataclasses.fields(Stage)]
    if not isinstance(stage, dict):
        raise ConfigError(f'{json.dumps(stage, default=repr)}: an object is expected, such as {{"epochs": 40}}')
    for item in dataclasses.fields(Config):
        if item.name in stage and item.name in known:
            value = stage[item.name]
            _check(item, tuple(value) if isinstance(value, list) else value)
    for name in stage:
        if name not in known:
            raise ConfigError(f"unknown key {name}: a stage has {', '.join(known)}")


def _is_required(item: dataclasses.Field[Any]) -> bool:
    return item.default is dataclasses.MISSING


@functools.cache
def _kinds() -> dict[str, Any]:
    """Return the type of every key."""
    return typing.get_type_hints(Config)


def _check(item: dataclasses.Field[Any], value: Any) -> None:
    """Check type and range of one field's value."""
    kind = _kinds()[item.name]
    shown = json.dumps(list(value) if isinstance(value, tuple) else value, default=repr)
    if typing.get_origin(kind) is Literal:
        if value not in typing.get_args(kind):
            raise ConfigError(f"{item.name} = {shown}: allowed are {', '.join(typing.get_args(kind))}")
        return
    if kind is bool:
        if not isinstance(value, bool):
            raise ConfigError(f"{item.name} = {shown}: true or false is expected")
        return
    if item.name == "stages":
        if not isinstance(value, tuple):
            raise ConfigError(f"stages = {shown}: a list of objects is expected, one for each stage")
        return
    if kind == tuple[str, ...]:
        if not isinstance(value, tuple) or not all(isinstance(v, str) and re.fullmatch(r"\w+:.+", v) for v in value):
            raise ConfigError(
                f'{item.name} = {shown}: a list of "DATASET:FOLDER" is expected, such as ["msec:data/MSEC"]'
            )
        return
    if kind == str | tuple[str, ...] and isinstance(value, tuple):
        if not value or not all(isinstance(v, str) and v.endswith(".tar") and "\0" not in v for v in value):
            raise ConfigError(
                f'{item.name} = {shown}: a folder, or a list of shards, such as ["train-*.tar"], is expected'
            )
        return
    if kind in (str, str | tuple[str, ...]):
        if not isinstance(value, str) or "\0" in value:
            raise ConfigError(f'{item.name} = {shown}: a text without null bytes is expected, such as "..."')
        return
    minimum, maximum = item.metadata["minimum"], item.metadata["maximum"]
    span = f"from {minimum} to {maximum}" if maximum < math.inf else f"of at least {minimum}"
    if kind in (int, float):
        expected = f"{'a whole number' if kind is int else 'a number'} {span}"
        entries: Sequence[Any] = [value]
    else:
        length = "two" if kind == tuple[int, int] else "some"
        expected = f"a list of {length} whole numbers {span}, such as {'[256, 256]' if length == 'two' else '[4, 3]'}"
        if not isinstance(value, tuple) or not value or (length == "two" and len(value) != 2):
            raise ConfigError(f"{item.name} = {shown}: {expected} is expected")
        entries = value
    number = (int, float) if kind is float else (int,)
    for entry in entries:
        if isinstance(entry, bool) or not isinstance(entry, number) or not minimum <= entry <= maximum:
            raise ConfigError(f"{item.name} = {shown}: {expected} is expected")
