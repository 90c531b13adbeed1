import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import picture

from utils.photos import full_resolution
from utils.photos.full_resolution import apply_affine, keep_whites, local_affine


def applied(pixels, scale, offset):
    """A corrected copy: the function works in place."""
    result = pixels.copy()
    apply_affine(result, scale, offset)
    return result


def to_tensor(pixels):
    return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255


def test_identity_is_exact_even_where_the_photo_is_flat_or_black():
    pixels = np.array(picture(90, 60))
    pixels[:20] = 0
    pixels[20:30] = 131
    small = F.interpolate(to_tensor(pixels), (30, 45), mode="area")
    scale, offset = local_affine(small, small, radius=2, epsilon=1e-4)
    assert np.array_equal(applied(pixels, scale[0], offset[0]), pixels)


@pytest.mark.parametrize("gain", [0.5, 1.8, 4.0])
def test_a_gain_is_carried_over_exactly(gain):
    pixels = np.array(picture(120, 80)) // 5 + 3
    small = F.interpolate(to_tensor(pixels), (20, 30), mode="area")
    scale, offset = local_affine(small, gain * small, radius=2, epsilon=1e-4)
    result = applied(pixels, scale[0], offset[0])
    assert np.abs(result - np.clip(gain * pixels, 0, 255)).max() <= 1


def test_whites_stay_nearly_white_and_all_else_is_left_alone():
    ramp = torch.linspace(0.5, 1, 101).expand(1, 3, 4, 101).clone()
    darker = 0.6 * ramp
    result = keep_whites(ramp, darker)
    assert torch.equal(result[..., :90], darker[..., :90])  # up to 0.95
    assert result[..., -1].min().item() == pytest.approx(0.6 + 0.7 * 0.4)
    assert (result.diff(dim=-1) > 0).all()  # no order of brightness is turned round
    coloured = ramp.clone()
    coloured[:, 2] = 0.5  # a yellow is not white
    assert torch.equal(keep_whites(coloured, 0.6 * coloured), 0.6 * coloured)
    assert torch.equal(keep_whites(ramp, (ramp + 0.1).clamp(0, 1)), (ramp + 0.1).clamp(0, 1))


def test_dark_detail_is_not_blurred():
    # Detail too fine for the small copy must grow with the gain, not vanish.
    rng = np.random.default_rng(0)
    pixels = rng.integers(18, 23, (256, 256, 3)).astype(np.uint8)
    small = F.interpolate(to_tensor(pixels), (32, 32), mode="area")
    scale, offset = local_affine(small, 6 * small, radius=1, epsilon=1e-4)
    assert applied(pixels, scale[0], offset[0]).std() == pytest.approx(6 * pixels.std(), rel=0.05)


def test_an_edge_between_two_gains_follows_the_photo():
    pixels = np.full((200, 200, 3), 40, np.uint8)
    pixels[:, 100:] = 200
    guide = F.interpolate(to_tensor(pixels), (50, 50), mode="area")
    target = torch.where(guide > 0.45, guide * 0.8, guide * 2.5)
    scale, offset = local_affine(guide, target, radius=3, epsilon=1e-4)
    result = applied(pixels, scale[0], offset[0]).astype(int)
    assert np.abs(result[:, :98] - 100).max() <= 1 and np.abs(result[:, 102:] - 160).max() <= 1
    assert np.abs(result[:, 98:100] - 100).max() <= 20 and np.abs(result[:, 100:102] - 160).max() <= 20


def test_strips_leave_no_seam(monkeypatch):
    pixels = np.array(picture(101, 97))
    scale, offset = torch.rand(3, 7, 9) + 0.5, torch.rand(3, 7, 9) * 0.2 - 0.1
    whole = applied(pixels, scale, offset)
    for rows in (1, 3, 1000):
        monkeypatch.setattr(full_resolution, "STRIP_ROWS", rows)
        assert np.array_equal(applied(pixels, scale, offset), whole)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_images_arrays_and_depths_agree(mode):
    image = picture(101, 67).convert(mode)
    channels = len(image.getbands())
    scale, offset = torch.rand(channels, 7, 9) + 0.5, torch.rand(channels, 7, 9) * 0.2 - 0.1
    pixels = np.array(image).reshape(67, 101, channels)
    expected = applied(pixels, scale, offset)
    apply_affine(image, scale, offset)
    assert np.array_equal(np.array(image).reshape(expected.shape), expected)
    deep = applied(pixels.astype(np.uint16) * 257, scale, offset)
    assert np.abs(deep / 257 - expected).max() <= 0.51
    assert len(np.unique(deep % 257)) > 200  # more than 8 bits of it are used


def test_a_row_of_zeros_and_ones_is_not_wrapped_around():
    pixels = np.array([[[0], [255]]], np.uint8)
    assert applied(pixels, torch.ones(1, 1, 1), torch.full((1, 1, 1), 2.0)).tolist() == [[[255], [255]]]
    assert applied(pixels, torch.ones(1, 1, 1), torch.full((1, 1, 1), -2.0)).tolist() == [[[0], [0]]]
    deep = np.array([[[0], [65535]]], np.uint16)
    assert applied(deep, torch.ones(1, 1, 1), torch.full((1, 1, 1), 2.0)).tolist() == [[[65535], [65535]]]


def test_maps_are_interpolated_like_torch_does():
    scale, offset = torch.rand(3, 7, 9), torch.rand(3, 7, 9)
    pixels = np.zeros((50, 61, 3), np.uint8)
    expected = F.interpolate(offset[None], (50, 61), mode="bilinear")[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(applied(pixels, scale, offset) - expected).max() <= 0.51


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1)])
def test_degenerate_sizes(size):
    pixels = np.full((*size, 3), 50, np.uint8)
    small = to_tensor(pixels)
    scale, offset = local_affine(small, 2 * small, radius=4, epsilon=1e-4)
    assert np.array_equal(applied(pixels, scale[0], offset[0]), np.full((*size, 3), 100))
