import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import picture
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode

from models import Corrector, build_generator, curves, grain
from models.corrector import is_right, shrink, shrink_by_products
from utils.colour import from_linear, to_linear
from utils.photos import full_size
from utils.photos.full_size import apply_curves
from utils.photos.predictor import Predictor


def to_tensor(pixels):
    white = np.iinfo(pixels.dtype).max
    return torch.from_numpy(pixels.astype(np.float64) / white).permute(2, 0, 1)[None]


def with_gain(maps, gain=1.0):
    """Curves `(1, 3, C, h, w)` of slopes `(1, 2, C, h, w)`, as logarithms, and a gain."""
    return torch.cat((maps, torch.full_like(maps[:, :1], gain).log()), dim=1)


def of_slopes(at_black, at_white, gain=1.0):
    """The same curve everywhere and for each channel, `(1, 3, 3, 1, 1)`."""
    return with_gain(torch.tensor([at_black, at_white]).log()[None, :, None, None, None].expand(1, 2, 3, 1, 1), gain)


def applied(pixels, maps, **options):
    """A corrected copy: the function works in place."""
    result = pixels.copy()
    apply_curves(result, maps[0], **options)
    return result


def small_of(pixels, size=(30, 45)):
    return F.interpolate(to_tensor(pixels).float(), size, mode="area")


SLOPES = [(1.0, 1.0), (8.0, 1 / 8), (1 / 4, 4.0), (16.0, 16.0), (1 / 16, 1 / 16), (4.0, 0.7), (0.3, 2.0)]


@pytest.mark.parametrize(("at_black", "at_white"), SLOPES)
def test_curves_are_monotone_and_run_through_black_and_white(at_black, at_white):
    ramp = torch.linspace(0, 1, 4097, dtype=torch.float64).expand(1, 3, 1, -1)
    result = curves.apply(ramp, of_slopes(at_black, at_white))[0, 0, 0]
    assert result[0] == 0 and result[-1] == 1
    assert (result.diff() > 0).all()
    ends = torch.stack((result[1] - result[0], result[-1] - result[-2])) * 4096
    assert torch.allclose(ends, torch.tensor([at_black, at_white]), rtol=0.02)


@pytest.mark.parametrize("gain", [1.5, 4.0])
def test_a_levelled_photo_keeps_black_white_and_order(gain):
    ramp = torch.linspace(0, 1, 1025).expand(1, 3, 1, -1)
    result = curves.apply(ramp, of_slopes(1.0, 1.0, gain))[0, 0, 0].double()
    x = ramp[0, 0, 0].double()
    assert result[0] == 0 and result[-1] == pytest.approx(1, abs=1e-6)
    assert (result.diff() > 0).all()
    assert (result - gain * x / (1 + (gain**2 - 1) * x**2).sqrt()).abs().max() < 1e-6
    assert result[64] / x[64] > 0.96 * gain  # nearly straight


def test_a_dark_photo_without_lights_gets_them():
    pixels = np.array(picture(90, 60))
    photo, small = to_tensor(pixels).float(), small_of(pixels)
    maps = curves.fit(0.4 * small, small)
    assert maps[:, 2].exp().unique().item() == pytest.approx(1 / 0.4)
    assert (curves.apply(0.4 * photo, maps) - photo).abs().mean() < 0.02
    assert curves.fit(small, 0.3 * small)[:, 2].eq(0).all()  # what is darkened is not levelled


@pytest.mark.parametrize(("at_black", "at_white"), SLOPES[:3] + SLOPES[5:])
def test_a_curve_is_found_again(at_black, at_white):
    small = small_of(np.array(picture(90, 60)))
    maps = of_slopes(at_black, at_white)
    found = curves.fit(small, curves.apply(small, maps))
    assert (curves.apply(small, found) - curves.apply(small, maps)).abs().max() < 0.02


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_no_change_is_exact_even_where_the_photo_is_flat_black_or_white(dtype):
    pixels = np.array(picture(90, 60)).astype(dtype) * (np.iinfo(dtype).max // 255)
    pixels[:20] = 0
    pixels[20:30] = 131
    pixels[30:40] = np.iinfo(dtype).max
    small = small_of(pixels)
    assert np.array_equal(applied(pixels, curves.fit(small, small)), pixels)


def test_a_change_of_one_channel_is_shared_in_part(monkeypatch):
    monkeypatch.setattr(curves, "LEVEL", 1.0)  # its gain is one of all channels
    small = small_of(np.array(picture(90, 60)))
    alone = curves.fit(small[:, :1], curves.apply(small, of_slopes(4.0, 1 / 4))[:, :1])
    wish = torch.cat((curves.apply(small, of_slopes(4.0, 1 / 4))[:, :1], small[:, 1:]), dim=1)
    found = curves.fit(small, wish)
    expected = torch.cat((alone * (1 - curves.IN_COMMON * 2 / 3), *2 * [alone * curves.IN_COMMON / 3]), dim=2)
    assert torch.allclose(found, expected, atol=1e-5)


def test_black_and_white_stay_whatever_the_network_and_the_sliders_want():
    pixels = np.array(picture(90, 60))
    pixels[:20], pixels[20:30] = 0, 255
    small = small_of(pixels)
    for wish in (0.4 * small, 0.3 + 0.6 * small, 1 - small, small.pow(0.3)):
        for exposure in (-3.0, 0.0, 3.0):
            result = applied(pixels, curves.adjust(curves.fit(small, wish), 1.0, exposure))
            assert result[:20].max() == 0 and result[20:30].min() == 255


def test_a_smooth_ramp_gets_no_new_step():
    ramp = np.linspace(0, 65535, 4000).astype(np.uint16)[None, :, None].repeat(40, 0).repeat(3, 2)
    small = F.interpolate(to_tensor(ramp).float(), (2, 128), mode="area")
    result = applied(ramp, curves.fit(small, (small * 0.35).clamp(0, 1)))[0, :, 0].astype(int)
    assert (np.diff(result) >= 0).all()
    assert np.diff(result).max() < curves.DARKEST * 17 + 1


def test_an_edge_between_two_gains_follows_the_photo():
    pixels = np.full((200, 200, 3), 40, np.uint8)
    pixels[:, 100:] = 200
    guide = small_of(pixels, (50, 50))
    target = torch.where(guide > 0.45, guide * 0.8, guide * 2.5)
    result = applied(pixels, curves.fit(guide, target)).astype(int)
    assert np.abs(result[:, :100] - 100).max() <= 12 and np.abs(result[:, 100:] - 160).max() <= 12


def test_dark_detail_is_not_blurred():
    # Detail too fine for the small copy must grow with the gain, not vanish.
    pixels = np.random.default_rng(0).integers(18, 23, (256, 256, 3)).astype(np.uint8)
    small = small_of(pixels, (32, 32))
    steeper = applied(pixels, curves.fit(small, 6 * small)).std() / pixels.std()
    x, gain = 20 / 255, curves.LEVEL
    levelled, slope = gain * x / math.sqrt(1 + (gain**2 - 1) * x**2), gain / (1 + (gain**2 - 1) * x**2) ** 1.5
    slope *= 6 * x * (1 - 6 * x) / (levelled * (1 - levelled))  # that of a gain of odds
    assert steeper == pytest.approx(slope, rel=0.02) and slope > 3.9


def test_a_colour_next_to_white_falls_with_its_darkest_channel():
    colour = torch.tensor([1.0, 0.9, 0.6])[None, :, None, None]
    result = curves.apply(colour, of_slopes(0.25, 4.0))[0, :, 0, 0]
    alone = 0.25 * colour / (1 - 0.75 * colour)  # each channel by itself
    t = colour - curves.SHARED_FALL * (colour - 0.6)
    assert torch.allclose(result, (colour * 0.25 / (1 - 0.75 * t))[0, :, 0, 0])
    assert result.max() / result.min() < 0.75 * alone.max() / alone.min()
    for same in (torch.full((1, 3, 1, 1), 0.9), torch.tensor([1.0, 1.0, 1.0])[None, :, None, None]):
        assert torch.allclose(curves.apply(same, of_slopes(0.25, 4.0)), 0.25 * same / (1 - 0.75 * same))
    assert torch.allclose(curves.apply(colour, of_slopes(4.0, 0.25)), 4 * colour / (1 + 3 * colour))  # none is darkened


def noisy(amplitude, lift, flat=50):
    """A flat grey with noise of so many levels, and an edge: the photo, and what is left of its grain."""
    rng = np.random.default_rng(0)
    pixels = flat + amplitude * rng.uniform(-1, 1, (64, 64, 3))
    pixels[:, 32:] += 100
    photo = torch.from_numpy(pixels / 255).permute(2, 0, 1)[None].float()
    return photo, grain.reduce(photo, of_slopes(lift, 1 / lift))


def test_grain_is_reduced_where_it_is_lifted_and_edges_stay():
    for stops, least, most in ((-1, 1, 1), (1, 1, 1), (1.5, 0.6, 0.8), (2, 0.3, 0.5), (4, 0.3, 0.5)):
        photo, less = noisy(1.5, 2.0**stops)
        assert least <= less[..., :30].std() / photo[..., :30].std() <= most, stops
        assert torch.equal(less[..., 31:33], photo[..., 31:33])
    photo, less = noisy(20, 16.0)  # texture
    assert less.std() / photo.std() > 0.98


def test_a_levelled_photo_lifts_its_grain():
    assert grain.lifts(of_slopes(1.0, 1.0, 3.0)).item() == pytest.approx(math.log2(3) - 1)
    assert grain.lifts(of_slopes(2.0, 0.5, 1.5)).item() == pytest.approx(math.log2(1.5))


def test_black_and_white_have_no_grain():
    photo = torch.zeros(1, 3, 20, 20)
    photo[..., 10:] = 1
    photo[..., 5, 5] = 1 / 255
    less = grain.reduce(photo, of_slopes(16.0, 1 / 16))
    assert less[..., :4].max() == 0 and less[..., 10:].min() == 1
    ramp = torch.arange(256.0).expand(1, 3, 20, -1) / 255
    assert torch.equal(grain.reduce(ramp, of_slopes(16.0, 1 / 16))[..., [0, -1]], ramp[..., [0, -1]])
    noise = torch.rand(1, 3, 50, 50) * 4 / 255
    noise[..., 25, 25] = 0
    assert grain.reduce(noise, of_slopes(16.0, 1 / 16))[..., 25, 25].min() > 0.5 / 255  # a speck


def test_what_is_nearly_black_and_lifted_loses_its_colour():
    levels = torch.tensor([[[8, 2, 10], [0, 4, 0], [8, 6, 2], [90, 20, 8], [8, 2, 24], [0, 0, 0], [9, 9, 9]]])
    photo = levels.repeat_interleave(5, dim=1).permute(2, 0, 1)[None] / 255
    left = slice(2, None, 5)  # amid patches
    for stops, share in ((1.0, 0), (1.5, 0.5), (3.0, 1)):
        less = grain.reduce(photo, of_slopes(2.0**stops, 2.0**-stops))[0, ..., 0, left] * 255
        assert torch.equal(less[1].round(), photo[0, 1, 0, left] * 255)  # green stays
        magenta, green, warm = (share * (1 - brightest / 24) ** 2 for brightest in (10, 4, 8))
        assert less[:, 0].tolist() == pytest.approx([8 - 6 * magenta, 2, 10 - 7 * magenta])  # they share 6 of 6 and 8
        assert less[:, 1].tolist() == pytest.approx([4 * green, 4, 4 * green], abs=1e-5)
        assert less[:, 2].tolist() == pytest.approx([8 - warm, 6, 2 + 2 * warm])
        assert torch.allclose(less[:, 3:], photo[0, :, 0, left][:, 3:] * 255, atol=1e-5)  # bright, or grey


def test_gradients_reach_the_correction_everywhere():
    small = small_of(np.array(picture(90, 60)))
    wish = (1.4 * small + 0.05).clamp(0, 0.98).requires_grad_()
    curves.apply(to_tensor(np.array(picture(90, 60))), curves.fit(small, wish)).mean().backward()
    assert torch.isfinite(wish.grad).all() and (wish.grad != 0).float().mean() > 0.99


@pytest.mark.parametrize("flat", [0.0, 0.5, 1.0])
def test_flat_photos_have_finite_gradients(flat):
    small = torch.full((1, 3, 8, 8), flat)
    wish = torch.full((1, 3, 8, 8), 0.4, requires_grad=True)
    curves.apply(small, curves.fit(small, wish)).sum().backward()
    assert torch.isfinite(wish.grad).all()


def test_strength_and_exposure():
    maps = of_slopes(4.0, 0.5)
    photo = to_tensor(np.array(picture(90, 60)))
    assert torch.allclose(curves.apply(photo, curves.adjust(maps, 0.0)), photo.float(), atol=1e-6)
    weaker, full, brighter, darker = (
        curves.apply(photo, curves.adjust(maps, *settings)).mean()
        for settings in ((0.5,), (1.0,), (1.0, 1.0), (1.0, -1.0))
    )
    assert photo.mean() < weaker < full < brighter and darker < full


def test_a_stop_is_a_stop_on_a_grey_card():
    card = from_linear(torch.full((1, 3, 1, 1), 0.18))
    for stops in (-3, -2, -1, 0.5, 1, 2):
        light = to_linear(curves.apply(card, curves.adjust(of_slopes(1.0, 1.0), 1.0, float(stops))))
        assert (light / 0.18).log2().mean().item() == pytest.approx(stops, abs=0.01)


@pytest.mark.parametrize("spread", [1.0, 0.2])
def test_strips_leave_no_seam(monkeypatch, spread):
    pixels, maps = np.array(picture(101, 97)), with_gain(spread * torch.randn(1, 2, 3, 7, 9), 1.5)
    maps[:, :2, ..., 4:] += torch.tensor([1.5, -1.5])[:, None, None, None]  # brighter there, and not much darker
    whole = applied(pixels, maps, less_grain=True)
    for values in (1, 1000, 5000, 10**9):
        monkeypatch.setattr(full_size, "STRIP", values)
        assert np.array_equal(applied(pixels, maps, less_grain=True), whole)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", [(50, 61), (1, 1), (1, 40), (40, 1)])
@pytest.mark.parametrize("gain", [1.0, 4.0])
def test_files_get_what_tensors_get(dtype, size, gain):
    rng = np.random.default_rng(0)
    white = np.iinfo(dtype).max
    pixels = rng.integers(0, white + 1, (*size, 3)).astype(dtype)
    pixels[0, 0] = white
    maps = torch.randn(1, 2, 3, 7, 9, generator=torch.Generator().manual_seed(0)).clamp(-2.77, 2.77)
    maps = with_gain(maps, gain)
    expected = curves.apply(to_tensor(pixels), maps)[0].permute(1, 2, 0).double().numpy() * white
    bound = 0.51 if dtype == np.uint8 else 0.52  # half a step, and float32's rounding of 65535
    assert np.abs(applied(pixels, maps) - expected).max() <= bound


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("size", "channels"), [((50, 61), 3), ((50, 61), 1), ((1, 1), 3), ((1, 40), 3), ((40, 1), 3)])
def test_files_lose_the_grain_that_tensors_lose(dtype, size, channels):
    rng = np.random.default_rng(0)
    white = np.iinfo(dtype).max
    pixels = (white // 255 * rng.integers(20, 26, (*size, channels))).astype(dtype)
    pixels[: size[0] // 2] = white // 255 * rng.integers(0, 3, (size[0] // 2, *pixels.shape[1:]))
    pixels[-1, -1] = white
    maps = torch.stack((torch.rand(channels, 7, 9) + 0.5, -torch.rand(channels, 7, 9) - 0.5))[None]  # 0.7 to 2.2 stops
    maps = with_gain(maps, 1.2)
    tensor = to_tensor(pixels)
    expected = curves.apply(grain.reduce(tensor, maps), maps)[0].permute(1, 2, 0).double().numpy() * white
    assert np.abs(applied(pixels, maps, less_grain=True) - expected).max() <= 0.55 * max(1, white / 65535 * 2)


def test_arrays_that_are_not_contiguous_are_corrected_too():
    maps = with_gain(torch.randn(1, 2, 3, 7, 9), 2.0)
    pixels = np.array(picture(101, 97))
    turned = pixels.swapaxes(0, 1)
    expected = applied(np.ascontiguousarray(turned), maps)
    apply_curves(turned, maps[0])
    assert np.array_equal(turned, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("at_black", "at_white"), [*SLOPES, (250.0, 1 / 250), (1 / 250, 250.0)])
def test_every_value_is_within_half_a_step_of_the_equation(dtype, at_black, at_white):
    white = np.iinfo(dtype).max
    values = np.arange(white + 1).astype(dtype)
    x = values / white
    exact = white * (x**2 + at_black * x * (1 - x)) / (1 + (at_black + at_white - 2) * x * (1 - x))
    result = applied(values[None, :, None].repeat(3, 2), of_slopes(at_black, at_white))[0, :, 0]
    assert np.abs(result - exact).max() <= 0.51
    assert result[0] == 0 and result[-1] == white and (np.diff(result.astype(int)) >= 0).all()


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_images_arrays_and_depths_agree(mode):
    image = picture(101, 67).convert(mode)
    channels = len(image.getbands())
    maps = with_gain(torch.randn(1, 2, channels, 7, 9), 2.0)
    pixels = np.array(image).reshape(67, 101, channels)
    expected = applied(pixels, maps)
    apply_curves(image, maps[0])
    assert np.array_equal(np.array(image).reshape(expected.shape), expected)
    deep = applied(pixels.astype(np.uint16) * 257, maps)
    assert np.abs(deep / 257 - expected).max() <= 0.51
    assert len(np.unique(deep % 257)) > 200  # more than 8 bits of it are used


@pytest.mark.parametrize("shape", [(7, 9), (1, 1), (64, 3)])
@pytest.mark.parametrize("radius", [1, 4, 100])
def test_box_means_are_means(shape, radius):
    image = torch.rand(2, 3, *shape, dtype=torch.float64)
    found = curves.box_mean(image, radius)
    for y in range(shape[0]):
        for x in range(shape[1]):
            window = image[..., max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1]
            assert torch.allclose(found[..., y, x], window.mean(dim=(-2, -1)))


def corrector(function, size=32):
    architecture = SimpleNamespace(layer_count_of_every_unet=[1, 1], first_layer_out_channels_of_every_unet=[4, 4])
    network = build_generator(architecture)
    network.forward = lambda photo: [function(photo)]
    return Corrector(network, size)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (33, 70), (128, 96)])
def test_the_corrector_takes_any_size(size):
    photo = torch.rand(2, 3, *size)
    assert torch.allclose(corrector(lambda x: x)(photo), photo, atol=1e-6)
    brighter = corrector(lambda x: x.sqrt())(photo)
    assert brighter.shape == photo.shape and (brighter >= photo - 1e-6).all()


def test_the_network_sees_the_working_size_and_the_photo_keeps_its_own():
    whole = corrector(lambda x: x.sqrt()).correct(torch.rand(1, 3, 60, 90), working_size=45)
    assert whole.small.shape == (1, 3, 30, 45) and whole.photo.shape == (1, 3, 60, 90)
    assert torch.equal(whole.outputs[0], whole.small.sqrt())


def test_what_is_darkened_is_held_back_but_not_in_training():
    photo = torch.tensor([0.8, 0.4])[None, None, None].expand(1, 3, 20, 2).repeat_interleave(20, dim=3)
    module = corrector(lambda x: torch.full_like(x, 0.6))
    assert torch.allclose(module.corrected(photo)[0, 0, 0, [0, -1]], torch.tensor([0.63, 0.6]))
    half = corrector(lambda x: curves.multiply_odds(x, 0.5))
    assert (half(photo[..., :20]) - half.correct(photo[..., :20]).photo).mean() > 0.01
    double = corrector(lambda x: curves.multiply_odds(x, 2))
    assert torch.allclose(double(photo), double.correct(photo).photo, atol=1e-6)


@pytest.mark.parametrize(("stops", "share"), [(-0.25, 0), (-0.45, 0.5), (-0.65, 1), (-2, 1), (0.25, 1), (0.45, 1)])
def test_a_photo_is_not_darkened_by_little_except_in_training(monkeypatch, stops, share):
    monkeypatch.setattr("models.corrector.HELD_BACK", 0)
    photo = torch.rand(2, 3, 40, 60) * 0.9
    photo[..., :20], photo[..., 20:30] = 1, 0  # have no say
    module = corrector(lambda x: curves.multiply_odds(x, 2**stops), size=60)
    changed = module.corrected(photo) - photo
    assert torch.allclose(changed, share * (curves.multiply_odds(photo, 2**stops) - photo), atol=0.02 * abs(stops))
    assert torch.allclose(module(photo), photo, atol=1e-6) == (share == 0)
    assert not torch.allclose(module.correct(photo).photo, photo, atol=1e-6)


@pytest.mark.parametrize(
    ("darker", "brighter", "share"),
    [(0.25, 0.25, 1), (0.25, 0.15, 0.5), (0.2, 0.05, 0), (0.15, 0.25, 1), (0.9, 0.7, 1)],  # 0.25: half, a half darker
)
def test_a_photo_partly_darkened_is_left_alone_in_part(monkeypatch, darker, brighter, share):
    monkeypatch.setattr("models.corrector.HELD_BACK", 0)
    photo = torch.full((1, 3, 40, 40), 0.5)  # where a stop of the odds is ln 2 / 4
    change = torch.full_like(photo, brighter)
    change[..., ::2, :] = -darker
    wish = photo + change * math.log(2) / 4
    changed = corrector(lambda x: wish.repeat(len(x), 1, 1, 1), size=40).corrected(photo) - photo
    assert torch.allclose(changed, share * (wish - photo), atol=0.002)


def test_each_photo_of_a_batch_is_left_alone_for_itself():
    photo = torch.rand(2, 3, 40, 60)
    module = corrector(lambda x: curves.multiply_odds(x, torch.tensor([0.9, 0.25] * 2)[:, None, None, None]))
    same, darker = (module(photo) - photo).abs().amax((1, 2, 3))
    assert same < 1e-6 and darker > 0.2


@pytest.mark.parametrize(
    ("most", "clipped", "right"),
    [(0.3, 0, 0), (0.475, 0, 0.5), (0.8, 0, 1), (0.8, 0.005, 0.5), (0.8, 0.02, 0), (0.3, 0.02, 0)],
)
def test_a_photo_is_probably_right_if_its_lights_are_exposed_and_not_clipped(most, clipped, right):
    small = torch.full((1, 3, 40, 50), 0.1)
    small[:, 0, ::2] = most * 2 ** (1 / 16)  # of half of the pixels, in one channel
    small.flatten(2)[:, 1, : round(clipped * 2000)] = 1
    assert is_right(torch.cat((small, small / 9))).tolist() == pytest.approx([right, 0], abs=0.01)


def test_a_careful_corrector_changes_by_half_what_is_probably_right():
    photo = torch.rand(3, 3, 40, 60) * 0.9
    photo[1] /= 3  # too dark
    photo[2, :, :10] = 1  # clipped
    module = corrector(lambda x: curves.multiply_odds(x, 2), size=60)
    full, half = module(photo), module(photo, strength=0.5)
    module.careful = True
    careful = module(photo)
    assert torch.allclose(careful[0], half[0], atol=1e-6) and (full[0] - half[0]).mean() > 0.05
    assert torch.equal(careful[1:], full[1:])


def test_a_mirror_image_becomes_the_mirror_image():
    photo = torch.rand(2, 3, 48, 30)
    one_sided = corrector(lambda x: x.lerp(x.sqrt(), torch.linspace(0, 1, x.shape[3])))
    assert torch.allclose(one_sided(photo).flip(3), one_sided(photo.flip(3)), atol=1e-6)
    small = shrink(photo, 32)
    assert torch.allclose(one_sided.corrected(small), small.lerp(small.sqrt(), 0.5), atol=1e-6)
    assert torch.equal(one_sided.correct(photo).outputs[0][..., 0], small[..., 0])  # a step has one of them


def test_a_network_may_be_shown_a_brighter_copy():
    photo = torch.rand(2, 3, 20, 30) * 0.2 + 0.3
    given = []
    module = corrector(lambda x: given.append(x[:2]) or torch.full_like(x, 0.55))  # and their mirror images
    module(photo)
    module.network.shown_brighter = 1.5
    whole = module(photo)
    done = module.correct(photo, stops=torch.tensor([0.0, 2.0]))
    odds = [x / (1 - x) for x in (photo, *given)]
    assert torch.equal(given[0], photo) and torch.allclose(odds[2], 2**1.5 * odds[0], rtol=1e-4)
    assert torch.allclose(odds[3], torch.tensor([1.0, 4.0])[:, None, None, None] * odds[0], rtol=1e-4)
    assert torch.equal(done.small, given[2])
    assert torch.allclose(done.photo, whole, atol=1e-6)  # the network makes the same of all


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((300, 400), (42, 56)),
        ((200, 300), (40, 60)),
        ((900, 1600), (40, 71)),
        ((600, 200), (80, 27)),
        ((30, 45), (30, 45)),
    ],
)
def test_small_copies_of_long_photos_are_larger_up_to_twice_the_least_size(size, expected):
    module = corrector(lambda x: x.sqrt(), size=56)
    module.least_size = 40
    assert module.small_copy(torch.rand(1, 3, *size)).shape[-2:] == expected
    predictor = Predictor(module.network, 56, least_size=40)
    assert predictor.fit(Image.fromarray(np.zeros((*size, 3), np.uint8))).shape[-2:] == expected


@pytest.mark.parametrize(
    ("size", "longest", "expected"), [((60, 90), 45, (30, 45)), ((7, 900), 90, (1, 90)), ((9, 9), 64, (9, 9))]
)
def test_small_copies_keep_the_shape(size, longest, expected):
    assert shrink(torch.rand(1, 3, *size), longest).shape[-2:] == expected


def test_a_narrow_photo_is_reduced_row_by_row():
    photo = torch.linspace(0, 1, 480)[None, None, :, None].expand(1, 3, 480, 3).contiguous()
    assert (shrink(photo, 48)[0, 0, :, 0] - torch.linspace(0.01, 0.99, 48)).abs().max() < 0.01


@pytest.mark.parametrize(("size", "smaller"), [((1212, 2828), (24, 56)), ((300, 97), (56, 18)), ((64, 64), (63, 64))])
def test_products_shrink_as_torch_does(size, smaller):
    photo = torch.rand(1, 3, *size)
    expected = F.interpolate(photo, smaller, mode="bilinear", antialias=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert (shrink_by_products(photo, smaller) - expected).abs().max() < 1e-6
        half = shrink_by_products(photo.half(), smaller)
    assert half.dtype == torch.float16 and (half - expected).abs().max() < 1e-3


@pytest.mark.parametrize(("longest", "is_by_products"), [(101, False), (56, True)])
def test_a_gpu_shrinks_large_photos_by_products(longest, is_by_products, monkeypatch):
    taken = []
    monkeypatch.setattr(
        "models.corrector.shrink_by_products", lambda photo, size: taken.append(size) or photo[..., : size[1]]
    )
    with FakeTensorMode():
        assert shrink(torch.empty(1, 3, 2000, 3000, device="cuda"), longest).shape[-1] == longest
    assert bool(taken) == is_by_products


@pytest.mark.parametrize("b", [1, 2, 7, 8, 64])
def test_whole_numbers_are_rounded_as_python_does(b):
    assert [curves.rounded(a, b) for a in range(1000)] == [round(a / b) for a in range(1000)]
