from types import SimpleNamespace

import pytest
import torch

from models import build_discriminator, build_generator
from models.losses import adversarial_loss, discriminator_loss, pyramid_loss, reconstruction_loss
from models.pyramid import gaussian_expand, gaussian_pyramid

DOCUMENTED = SimpleNamespace(
    layer_count_of_every_unet=(4, 3, 3, 3), first_layer_out_channels_of_every_unet=(24, 24, 24, 16)
)
SMALL = SimpleNamespace(layer_count_of_every_unet=(2, 1, 1), first_layer_out_channels_of_every_unet=(4, 4, 4))


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_generator_has_the_papers_parameters():
    generator = build_generator(DOCUMENTED)
    assert [count(unet) for unet in generator.unets] == [4_365_915, 1_083_675, 1_083_675, 482_067]
    assert count(generator.up) == 117
    assert count(generator) == 7_015_449


@pytest.mark.parametrize("size", [(1, 1), (17, 9), (64, 64), (75, 130)])
def test_untrained_generator_gives_the_photo_back_at_any_size(size):
    photo = torch.rand(1, 3, *size)
    outputs = build_generator(DOCUMENTED)(photo)
    torch.testing.assert_close(outputs[0], photo, atol=1e-6, rtol=0)
    height, width = size
    half = ((height + 1) // 2, (width + 1) // 2)
    quarter = ((half[0] + 1) // 2, (half[1] + 1) // 2)
    assert [tuple(output.shape[-2:]) for output in outputs] == [size, size, half, quarter]


def test_trained_generator_keeps_any_size_and_uses_every_parameter():
    torch.manual_seed(0)
    generator = build_generator(SMALL)
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter, mean=0.02, std=0.1)
    outputs, target = generator(torch.rand(2, 3, 37, 53)), torch.zeros(2, 3, 37, 53)
    assert outputs[0].shape == (2, 3, 37, 53)
    (reconstruction_loss(outputs[0], target) + pyramid_loss(outputs, target)).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in generator.parameters())


def test_gradients_reach_every_level_within_two_steps_of_the_identity():
    torch.manual_seed(0)
    generator = build_generator(SMALL)
    optimizer = torch.optim.Adam(generator.parameters(), lr=1e-3)
    photo = torch.rand(2, 3, 32, 32)
    for _ in range(2):
        optimizer.zero_grad()
        outputs = generator(0.4 * photo)
        (reconstruction_loss(outputs[0], photo) + pyramid_loss(outputs, photo)).backward()
        optimizer.step()
    assert all(parameter.grad.abs().sum() > 0 for parameter in generator.parameters())


def test_discriminator_has_the_papers_parameters_and_one_logit_per_patch():
    discriminator = build_discriminator(DOCUMENTED)
    assert count(discriminator) == 962_585
    assert discriminator(torch.rand(2, 3, 256, 256)).shape == (2, 1, 1, 1)
    assert discriminator(torch.rand(1, 3, 512, 768)).shape == (1, 1, 2, 3)


def test_discriminator_refuses_a_photo_without_an_output():
    with pytest.raises(ValueError, match="256x256 px, not 128x256"):
        build_discriminator(DOCUMENTED)(torch.rand(1, 3, 128, 256))


def test_generator_refuses_lists_of_different_length():
    with pytest.raises(ValueError, match="one entry per level"):
        build_generator(SimpleNamespace(layer_count_of_every_unet=(2, 1), first_layer_out_channels_of_every_unet=(4,)))


def test_pyramid_loss_has_the_papers_weights_per_pixel():
    target = torch.rand(1, 3, 32, 32)
    levels = gaussian_pyramid(target, 4)
    sizes = [(32, 32), (32, 32), (16, 16), (8, 8)]
    exact = [target, *(gaussian_expand(levels[index], sizes[index]) for index in (1, 2, 3))]
    assert pyramid_loss(exact, target) < 1e-7
    for index, weight in ((1, 1.0), (2, 0.5), (3, 0.25)):
        wrong = [output + 0.1 if place == index else output for place, output in enumerate(exact)]
        assert pyramid_loss(wrong, target).item() == pytest.approx(0.1 * weight, rel=1e-4)
    # sums as in equation 3, divided by the pixels of the photo
    wrong = [output + 0.1 for output in exact]
    sums = sum(2 ** (index - 1) * (wrong[index] - exact[index]).abs().sum() for index in (1, 2, 3))
    assert pyramid_loss(wrong, target).item() == pytest.approx((sums / target.numel()).item(), rel=1e-4)


def test_adversarial_loss_reaches_the_generator():
    torch.manual_seed(0)
    generator, discriminator = build_generator(SMALL), build_discriminator()
    adversarial_loss(discriminator(generator(torch.rand(2, 3, 256, 256))[0])).backward()
    gradient = generator.unets[-1].head.weight.grad
    assert gradient is not None and gradient.abs().max() > 0


def test_adversarial_losses_at_known_logits():
    zero, high = torch.zeros(2, 1, 1, 1), torch.full((2, 1, 1, 1), 9.0)
    ln2 = torch.log(torch.tensor(2.0))
    torch.testing.assert_close(adversarial_loss(zero), ln2)
    torch.testing.assert_close(discriminator_loss(zero, zero), ln2)
    assert adversarial_loss(high) < 1e-3 < 8 < adversarial_loss(-high)
    assert discriminator_loss(high, -high) < 1e-3 < 8 < discriminator_loss(-high, high)
