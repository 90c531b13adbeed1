import pytest
import torch
from torch.nn import functional as F

from models.pyramid import gaussian_expand, gaussian_pyramid, gaussian_reduce, laplacian_pyramid, reconstruct

SIZES = [(513, 767), (17, 9), (1, 1), (1, 7), (64, 64), (2, 3)]
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
KERNEL = torch.tensor([0.05, 0.25, 0.4, 0.25, 0.05], dtype=torch.float64)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
def test_inverse_is_exact_at_any_size(size, dtype, device):
    image = torch.rand(2, 3, *size).to(device, dtype)
    bands = laplacian_pyramid(image, 4)
    assert all(band.dtype == torch.float32 for band in bands)
    assert (reconstruct(bands) - image.float()).abs().max() < 1e-6


def test_exact_under_autocast_and_in_channels_last():
    image = torch.rand(2, 3, 33, 50).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        assert (reconstruct(laplacian_pyramid(image, 4)) - image).abs().max() < 1e-6


def test_bands_are_signed_and_small():
    bands = laplacian_pyramid(torch.rand(1, 3, 64, 64), 3)
    for band in bands[:-1]:
        assert band.min() < -0.05 and band.max() > 0.05 and band.mean().abs() < 0.01


def test_reduce_is_the_burt_adelson_kernel():
    image = torch.rand(1, 1, 12, 15, dtype=torch.float64)
    kernel = (KERNEL[:, None] * KERNEL)[None, None]
    padded = F.pad(image, (2, 2, 2, 2), mode="replicate")
    torch.testing.assert_close(gaussian_reduce(image), F.conv2d(padded, kernel, stride=2), atol=1e-12, rtol=0)


def test_expand_is_the_burt_adelson_kernel_on_zero_stuffed_samples():
    image = torch.rand(1, 1, 5, 4, dtype=torch.float64)
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    stuffed = torch.zeros(1, 1, 14, 12, dtype=torch.float64)
    stuffed[:, :, ::2, ::2] = padded
    kernel = (4 * KERNEL[:, None] * KERNEL)[None, None]
    expected = F.conv2d(stuffed, kernel, padding=2)[:, :, 2:12, 2:10]
    torch.testing.assert_close(gaussian_expand(image, (10, 8)), expected, atol=1e-12, rtol=0)


def test_sizes_halve_rounding_up():
    assert [tuple(level.shape[-2:]) for level in gaussian_pyramid(torch.rand(1, 3, 17, 9), 4)] == [
        (17, 9),
        (9, 5),
        (5, 3),
        (3, 2),
    ]


def test_expand_refuses_a_size_that_does_not_fit():
    with pytest.raises(ValueError, match="4x4 to 9x8"):
        gaussian_expand(torch.rand(1, 3, 4, 4), (9, 8))
