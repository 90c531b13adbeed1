import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import picture

from utils import full_resolution
from utils.full_resolution import apply_affine, local_affine


def to_tensor(pixels):
    return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255


def test_identity_is_exact_even_where_the_photo_is_flat_or_black():
    pixels = np.array(picture(90, 60))
    pixels[:20] = 0
    pixels[20:30] = 131
    small = F.interpolate(to_tensor(pixels), (30, 45), mode="area")
    scale, offset = local_affine(small, small, radius=2, epsilon=1e-4)
    assert np.array_equal(apply_affine(pixels, scale[0], offset[0]), pixels)


@pytest.mark.parametrize("gain", [0.5, 1.8, 4.0])
def test_a_gain_is_carried_over_exactly(gain):
    pixels = np.array(picture(120, 80)) // 5 + 3
    small = F.interpolate(to_tensor(pixels), (20, 30), mode="area")
    scale, offset = local_affine(small, gain * small, radius=2, epsilon=1e-4)
    result = apply_affine(pixels, scale[0], offset[0])
    assert np.abs(result - np.clip(gain * pixels, 0, 255)).max() <= 1


def test_dark_detail_is_not_blurred():
    # Detail too fine for the small copy must grow with the gain, not vanish.
    rng = np.random.default_rng(0)
    pixels = rng.integers(18, 23, (256, 256, 3)).astype(np.uint8)
    small = F.interpolate(to_tensor(pixels), (32, 32), mode="area")
    scale, offset = local_affine(small, 6 * small, radius=1, epsilon=1e-4)
    assert apply_affine(pixels, scale[0], offset[0]).std() == pytest.approx(6 * pixels.std(), rel=0.05)


def test_an_edge_between_two_gains_follows_the_photo():
    pixels = np.full((200, 200, 3), 40, np.uint8)
    pixels[:, 100:] = 200
    guide = F.interpolate(to_tensor(pixels), (50, 50), mode="area")
    target = torch.where(guide > 0.45, guide * 0.8, guide * 2.5)
    scale, offset = local_affine(guide, target, radius=3, epsilon=1e-4)
    result = apply_affine(pixels, scale[0], offset[0]).astype(int)
    assert np.abs(result[:, :98] - 100).max() <= 1 and np.abs(result[:, 102:] - 160).max() <= 1
    assert np.abs(result[:, 98:100] - 100).max() <= 20 and np.abs(result[:, 100:102] - 160).max() <= 20


def test_strips_leave_no_seam(monkeypatch):
    pixels = np.array(picture(101, 97))
    scale, offset = torch.rand(3, 7, 9) + 0.5, torch.rand(3, 7, 9) * 0.2 - 0.1
    whole = apply_affine(pixels, scale, offset)
    monkeypatch.setattr(full_resolution, "STRIP_PIXELS", 256)
    assert np.array_equal(apply_affine(pixels, scale, offset), whole)


def test_maps_are_interpolated_like_torch_does():
    scale, offset = torch.rand(3, 7, 9), torch.rand(3, 7, 9)
    pixels = np.zeros((50, 61, 3), np.uint8)
    expected = F.interpolate(offset[None], (50, 61), mode="bilinear")[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(apply_affine(pixels, scale, offset) - expected).max() <= 0.51


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1)])
def test_degenerate_sizes(size):
    pixels = np.full((*size, 3), 50, np.uint8)
    small = to_tensor(pixels)
    scale, offset = local_affine(small, 2 * small, radius=4, epsilon=1e-4)
    assert np.array_equal(apply_affine(pixels, scale[0], offset[0]), np.full((*size, 3), 100))
