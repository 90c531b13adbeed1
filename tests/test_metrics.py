import math

import numpy as np
import pytest
import torch

from utils.evaluation.metrics import psnr, quantise, ssim


def test_psnr_of_a_known_error():
    images = torch.full((2, 3, 4, 4), 0.5)
    targets = images.clone()
    targets[0] += 0.1
    assert psnr(images, targets).tolist() == pytest.approx([20.0, 100.0], abs=1e-4)


def test_ssim_against_the_papers_formula_window_by_window():
    rng = np.random.default_rng(0)
    x = rng.random((14, 13))
    y = (0.7 * x + 0.3 * rng.random((14, 13))).clip(0, 1)
    window = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2
    values = []
    for top in range(4):
        for left in range(3):
            a, b = x[top : top + 11, left : left + 11], y[top : top + 11, left : left + 11]
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            cov = (window * (a - mean_a) * (b - mean_b)).sum()
            c1, c2 = 0.01**2, 0.03**2
            numerator = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
            values.append(numerator / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))
    images, targets = (torch.from_numpy(z).float().expand(1, 3, -1, -1) for z in (x, y))
    assert ssim(images, targets).item() == pytest.approx(float(np.mean(values)), abs=1e-4)
    assert ssim(images, images).item() == pytest.approx(1, abs=1e-5)


def test_ssim_refuses_what_no_window_fits_in():
    with pytest.raises(ValueError, match="11x11 px, not 10x40"):
        ssim(torch.rand(1, 3, 10, 40), torch.rand(1, 3, 10, 40))


def test_quantise_is_what_an_8_bit_file_holds():
    values = quantise(torch.tensor([-1.0, 0.5 / 255 + 1e-6, 0.5, 2.0]))
    assert [round(value * 255) for value in values.tolist()] == [0, 1, 128, 255]
    assert all(math.isclose(value * 255, round(value * 255), abs_tol=1e-4) for value in values.tolist())
