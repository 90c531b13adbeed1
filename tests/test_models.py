from types import SimpleNamespace

import pytest
import torch

import models.zero_dce
from models import NETWORKS, NetworkError, build_discriminator, build_generator
from models.daconv import DAConv, merge_daconv
from models.losses import (
    adversarial_loss,
    discriminator_loss,
    pixel_weights,
    pyramid_loss,
    reconstruction_loss,
)
from models.pyramid import gaussian_expand, gaussian_pyramid

DOCUMENTED = SimpleNamespace(
    layer_count_of_every_unet=(4, 3, 3, 3), first_layer_out_channels_of_every_unet=(24, 24, 24, 16)
)
SMALL = SimpleNamespace(layer_count_of_every_unet=(2, 1, 1), first_layer_out_channels_of_every_unet=(4, 4, 4))
PARAMETERS = {"msec": 7_015_449, "zero_dce": 79_416, "prenet": 168_963}


def named(model, conv="plain", like=SMALL):
    return SimpleNamespace(**vars(like), model=model, conv=conv)


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


def test_pixels_that_lost_their_light_count_less():
    targets = torch.full((1, 3, 32, 32), 0.5)
    inputs = targets.clone()
    inputs[..., :8, :], inputs[..., 8:16, :] = 1.0, 0.0  # clipped at either end
    inputs[:, :2, 16:24] = 1.0  # in two channels only
    targets[..., 24:, :16] = inputs[..., 24:, :16] = 1.0  # white in both: nothing was lost
    weight = pixel_weights(inputs, targets, 0.25)
    assert weight.shape == (1, 1, 32, 32)
    assert (weight[..., :16, :] == 0.25).all() and (weight[..., 16:, :] == 1).all()
    output = targets + 0.1
    assert reconstruction_loss(output, targets, weight).item() == pytest.approx(0.1 * 0.625, rel=1e-4)
    outputs = [
        output,
        *(
            gaussian_expand(level, size)
            for level, size in zip(gaussian_pyramid(targets, 3)[1:], [(32, 32), (16, 16)], strict=True)
        ),
    ]
    wrong = [outputs[0], outputs[1] + 0.1, outputs[2]]
    assert pyramid_loss(wrong, targets, weight).item() == pytest.approx(0.1 * 0.625, rel=1e-4)


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


@pytest.mark.parametrize("model", PARAMETERS)
def test_networks_have_the_papers_parameters_plain_and_merged(model):
    assert count(build_generator(named(model, like=DOCUMENTED))) == PARAMETERS[model]
    decoupled = build_generator(named(model, "daconv", like=DOCUMENTED))
    assert any(isinstance(module, DAConv) for module in decoupled.modules())
    assert not any(type(module) is torch.nn.Conv2d and module.kernel_size == (3, 3) for module in decoupled.modules())
    assert count(merge_daconv(decoupled)) == PARAMETERS[model]


@pytest.mark.parametrize("model", NETWORKS)
def test_plain_and_daconv_start_as_the_same_function(model):
    networks = []
    for conv in ("plain", "daconv"):
        torch.manual_seed(3)
        networks.append(build_generator(named(model, conv)))
    plain, merged = networks[0].state_dict(), merge_daconv(networks[1]).state_dict()
    assert plain.keys() == merged.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(merged[name], tensor, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("conv", ["plain", "daconv"])
@pytest.mark.parametrize("model", NETWORKS)
def test_every_network_keeps_any_size_and_uses_every_parameter(model, conv):
    torch.manual_seed(0)
    network = build_generator(named(model, conv))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    for size in ((1, 1), (17, 9), (37, 53)):
        photo = torch.rand(2, 3, *size)
        outputs = network(photo)
        assert outputs[0].shape == photo.shape and all(output.dtype == torch.float32 for output in outputs)
    terms = network.losses(photo, outputs, torch.zeros_like(photo))
    assert all(term.shape == () and torch.isfinite(term) for term in terms.values())
    sum(terms.values()).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters())


@pytest.mark.parametrize("model", ["msec", "zero_dce", "prenet"])
def test_networks_compute_in_bfloat16_and_answer_in_float32(model):
    torch.manual_seed(0)
    network = build_generator(named(model))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))  # away from the identity
    photo = torch.rand(1, 3, 16, 16)
    exact = network(photo)[0]
    assert (exact - photo).abs().max() > 0.02
    with torch.autocast("cpu", torch.bfloat16):
        output = network(photo)[0]
    assert output.dtype == torch.float32 and 0 < (output - exact).abs().max() < 0.02


def test_an_unknown_network_is_refused_by_name():
    with pytest.raises(NetworkError, match='model = "msecc" is unknown: did you mean msec'):
        build_generator(named("msecc"))


def test_zero_dce_applies_its_eight_curves():
    network = build_generator(named("zero_dce"))
    with torch.no_grad():
        network.convs[-1].weight.zero_()
        network.convs[-1].bias.copy_(torch.linspace(-2, 2, 24))
    photo = torch.rand(1, 3, 8, 9)
    corrected, parameters = network(photo)
    assert parameters.shape == (1, 24, 8, 9)
    for channel in range(3):
        x = photo[0, channel]
        for iteration in range(8):
            x = x + torch.linspace(-2, 2, 24)[3 * iteration + channel].tanh() * x * (1 - x)
        torch.testing.assert_close(corrected[0, channel], x)
    assert 0 <= corrected.min() and corrected.max() <= 1


def test_zero_dce_losses_are_the_papers_equations():
    torch.manual_seed(0)
    before, after = torch.rand(2, 3, 32, 48), torch.rand(2, 3, 32, 48)
    maps = torch.rand(2, 24, 32, 48) * 2 - 1

    spatial = exposure = colour = smoothness = 0.0
    for b in range(2):
        old, new = (x[b].mean(0).unfold(0, 4, 4).unfold(1, 4, 4).mean((2, 3)) for x in (before, after))  # 8x12 regions
        for i in range(8):
            for j in range(12):
                for m, n in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
                    if 0 <= m < 8 and 0 <= n < 12:
                        spatial += ((new[i, j] - new[m, n]).abs() - (old[i, j] - old[m, n]).abs()) ** 2 / (8 * 12) / 2
        for i in range(2):
            for j in range(3):
                exposure += (after[b, :, 16 * i : 16 * i + 16, 16 * j : 16 * j + 16].mean() - 0.6).abs() / 6 / 2
        means = after[b].mean((1, 2))
        colour += sum((means[p] - means[q]) ** 2 for p, q in ((0, 1), (0, 2), (1, 2))) / 2
        for n in range(8):
            for c in range(3):
                a = maps[b, 3 * n + c]
                down, across = (a[1:, :-1] - a[:-1, :-1]).abs(), (a[:-1, 1:] - a[:-1, :-1]).abs()
                smoothness += ((down + across) ** 2).mean() / 8 / 2

    network = build_generator(named("zero_dce"))
    terms = network.losses(before, [after, maps], torch.full_like(before, torch.nan))  # no target is looked at
    expected = {"spatial": spatial, "exposure": exposure, "colour": 0.5 * colour, "smoothness": 20 * smoothness}
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value.item(), rel=1e-4), name


def test_zero_dce_judges_the_exposure_of_small_photos_as_a_whole():
    photo = torch.rand(1, 3, 40, 15)
    expected = sum((photo[:, :, top : top + 16].mean() - 0.6).abs() for top in (0, 16)) / 2
    assert models.zero_dce.exposure_control_loss(photo).item() == pytest.approx(expected.item(), rel=1e-5)


def test_zero_dce_does_nothing_where_its_curves_are_straight():
    photo = torch.rand(1, 3, 5, 5)
    assert torch.equal(models.zero_dce.curves(photo, torch.zeros(1, 24, 5, 5)), photo)


def test_prenet_iterates_six_times_from_an_empty_state_and_starts_at_the_identity():
    network = build_generator(named("prenet"))
    seen = []
    network.entry.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    photo = torch.rand(1, 3, 12, 10)
    assert torch.equal(network(photo)[0], photo)
    torch.nn.init.normal_(network.exit.weight, std=0.1)
    seen.clear()
    first = network(photo)[0]
    assert len(seen) == 6 and torch.equal(seen[0], torch.cat((photo, photo), dim=1))
    assert all(torch.equal(x[:, :3], photo) for x in seen) and not torch.equal(seen[2][:, 3:], seen[1][:, 3:])
    assert torch.equal(network(photo)[0], first)
