"""Training on devices that are not here: on "meta", which has no values to wait for, and on a GPU made of nothing.

What the first says no to, a GPU would wait for. Both say no to tensors on two devices.
"""

import sys
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import train
from data import Batch, CameraRange, color_jitter, draw_camera, draw_jitter, make_pairs
from data.camera import _jpeg_constants
from data.dataset import DEVELOPED, JITTERED, UNTOUCHED
from models import NETWORKS, Corrector, build_discriminator, build_generator
from models.losses import discriminator_loss
from utils.config import load_config
from utils.device import Arithmetic, send
from utils.training.objective import resize, weighted_losses
from utils.training.progress import FailureLog
from utils.training.schedule import draw_brightness
from utils.training.state import TrainingState

META, CUDA = torch.device("meta"), torch.device("cuda:0")
ALL = [
    "degradation=mixture",
    "image_size=[48, 40]",
    "working_size=32",
    "shown_brighter=1.5",
    "ema_decay=0.9",
    "ssim_weight=0.5",
    "clipped_weight=0.3",
    "clip_gradient_norm=1.0",
    "discriminator_image_size=[256,256]",
    "precision=float32",
]
COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class OneDevice(TorchDispatchMode):
    """Refuse what puts tensors of the CPU and of the device into one operation; numbers may come along."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors if tensor.dim() or tensor.device.type == "meta"}
        assert len(devices) < 2 or function in COPIES, f"{function} of {devices}"
        return function(*args, **(kwargs or {}))


KINDS = (JITTERED, DEVELOPED, DEVELOPED, UNTOUCHED, JITTERED, DEVELOPED)


def a_batch(
    size: tuple[int, int], *, has_pairs: bool = True, has_scenes: bool = True, kinds: tuple[int, ...] = KINDS
) -> Batch:
    """One view of each of `kinds`; of them all: developed with all that a camera can do; a pair; a scene."""
    rng = np.random.default_rng(0)
    ranges = CameraRange(
        is_metered=True, stretch=1.0, stretch_share=1.0, noise_share=1.0, jpeg_share=1.0, local_share=1.0
    )
    draws = [draw_jitter(rng, (0.7, 0.3, 0.3, 2.0)) for _ in kinds]
    photos = torch.randint(0, 256, (len(kinds), 3, *size), dtype=torch.uint8)
    return Batch(
        photos=photos,
        inputs=photos.flip(0) if has_pairs else torch.empty(len(kinds), 0, dtype=torch.uint8),
        is_pair=torch.tensor([has_pairs and k == 4 for k in range(len(kinds))]),
        factors=torch.stack([factors for factors, _ in draws]),
        orders=torch.stack([order for _, order in draws]),
        kinds=torch.tensor(kinds),
        camera=torch.stack([draw_camera(rng, ranges) for _ in kinds]),
        is_scene=torch.tensor([has_scenes and k == 5 for k in range(len(kinds))]),
        light=torch.rand(len(kinds), 3, *size).half() if has_scenes else torch.empty(len(kinds), 0).half(),
        names=[f"{k}.jpg" for k in range(len(kinds))],
        indices=list(range(len(kinds))),
        failures=[],
    )


def state_on(arithmetic: Arithmetic, config: Any) -> TrainingState:
    with arithmetic.device:  # fake tensors cannot be moved
        networks = build_generator(config), build_discriminator(config)
    return TrainingState(config, *networks, [])


@pytest.fixture(autouse=True)
def no_autocast_on_meta(monkeypatch):
    """It is not known there; the GPU made of nothing has it."""
    autocast = torch.autocast
    monkeypatch.setattr(
        torch, "autocast", lambda kind, *args, **kw: nullcontext() if kind == "meta" else autocast(kind, *args, **kw)
    )


@pytest.fixture(params=[("msec", "plain"), ("msec", "daconv"), ("zero_dce", "plain"), ("prenet", "plain")])
def config(request: Any, small_config_path: Any, thin_prenet: None) -> Any:
    model, conv = request.param
    return load_config(small_config_path, [*ALL, f"model={model}", f"conv={conv}"])


def test_a_step_and_validation_wait_for_nothing_that_is_not_listed(config, monkeypatch):
    """`utils.device.fetch` lists what waits: it is the only way from the device, and validation takes it twice."""
    arithmetic = Arithmetic("float32", "meta")
    state, batch = state_on(arithmetic, config), a_batch(config.image_size)
    if (config.model, config.conv) != ("msec", "plain"):  # what has been synthesised is the same
        batch = a_batch(config.image_size, has_pairs=False, has_scenes=False, kinds=(JITTERED,) * len(KINDS))
    with OneDevice():
        parts = train.train_step(state, batch, arithmetic, adversarial=True, working_size=24)
    assert {part.device for part in parts.values()} == {META}
    own = {"exposure"} if config.model == "zero_dce" else {"ssim"}
    assert {"loss", *own, "adversarial", "discriminator", "gradient", "discriminator_gradient"} <= set(parts)
    fetched = []

    def fetch(tensor: torch.Tensor) -> torch.Tensor:
        fetched.append(tensor.shape)
        return torch.zeros(tensor.shape)

    monkeypatch.setattr(train, "fetch", fetch)
    loader: Any = type("Loader", (list,), {"dataset": batch.indices})([batch])
    with OneDevice():
        train.validate(state.released, loader, arithmetic, FailureLog())
    assert fetched == [(6, 2), (6, 3, 3, *config.image_size)]


@pytest.mark.parametrize("has", [(False, False), (True, False), (False, True)])
def test_a_synthesis_of_some_kinds_waits_for_nothing(has):
    batch = a_batch((33, 24), has_pairs=has[0], has_scenes=has[1])
    with OneDevice():
        inputs, targets = make_pairs(batch, Arithmetic("float32", "meta"), 0.8)
    assert inputs.shape == targets.shape == batch.photos.shape and inputs.device == targets.device == META


def test_what_would_wait_is_refused_here():
    """Else the tests above could not fail."""
    x = torch.ones(3, device="meta")
    for waits in (lambda: x.sum().item(), lambda: x.nonzero(), lambda: x.tolist(), lambda: x.cpu(), lambda: bool(x[0])):
        with pytest.raises((RuntimeError, NotImplementedError)):
            waits()
    with pytest.raises(AssertionError), OneDevice():
        torch.ones(4, device="meta")[torch.tensor([0, 1])]


@pytest.fixture
def fake_gpu(monkeypatch):
    """A GPU that knows shapes, types and devices; how many photos are of a kind is not looked up: all are."""
    everywhere = lambda mask: torch.arange(len(mask))  # noqa: E731
    for name in ("data.camera", "data.synthesis"):
        monkeypatch.setattr(sys.modules[name], "places", everywhere)
    _jpeg_constants.cache_clear()
    arithmetic = Arithmetic("float32", "cpu")
    arithmetic.device = CUDA
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield arithmetic
    _jpeg_constants.cache_clear()


def test_synthesis_networks_and_losses_keep_to_the_gpu(small_config_path, fake_gpu):
    """Up to the backward pass, which asks for a real one. Fake tensors cannot be copied for an average either."""
    config = load_config(small_config_path, [*ALL, "ema_decay=0"])
    state, batch = state_on(fake_gpu, config), a_batch(config.image_size)
    inputs, targets = make_pairs(batch, fake_gpu, 0.8)
    stops = send(draw_brightness(config, 1, range(len(batch.names))), fake_gpu.device)
    done = state.corrector.correct(inputs, 24, stops)
    terms = weighted_losses(state, inputs, done, targets)
    logits = state.discriminator(resize(done.photo, config.discriminator_image_size))
    results = [inputs, targets, *done.outputs, *terms.values(), discriminator_loss(logits, logits)]
    assert {result.device for result in results} == {CUDA} and {r.dtype for r in results} == {torch.float32}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_correction_is_of_float32_on_the_gpu(name, fake_gpu, small_config_path):
    config = load_config(small_config_path, [f"model={name}"])
    with CUDA:
        corrector = Corrector(build_generator(config), 32).eval()
    photo = torch.rand(2, 3, 70, 51, device=CUDA)
    with torch.no_grad():
        corrected = corrector(photo, 0.5, 0.3)
    assert (corrected.device, corrected.dtype, corrected.shape) == (CUDA, torch.float32, photo.shape)


def test_a_fake_gpu_refuses_two_devices(fake_gpu):
    """Else the tests above could not fail."""
    photos = torch.rand(2, 3, 16, 16, device=CUDA)
    factors, orders = draw_jitter(np.random.default_rng(0), (0.7, 0.3, 0.3, 2.0))
    with pytest.raises(RuntimeError, match="device"):
        color_jitter(photos, factors[None], orders[None])
    assert color_jitter(photos, send(factors[None], CUDA), send(orders[None], CUDA)).device == CUDA
