import pickle
import struct
import threading
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import picture
from PIL import Image, ImageCms, ImageFilter

from models import build_generator
from utils.colour import from_linear, to_linear
from utils.device import Arithmetic
from utils.photos.colour_codes import PRIMARIES, _profile, with_srgb_curves
from utils.photos.predictor import Predictor, reduced, without_frame
from utils.weights import WeightsError, save_weights

ARCHITECTURE = {"layer_count_of_every_unet": [1, 1], "first_layer_out_channels_of_every_unet": [4, 4]}


GREY_STOP = 2.02463
"""By what a stop multiplies the odds of a grey card."""


def predictor(function=None, size=64, **options):
    """The identity, or a network that computes `function`."""
    network = build_generator(SimpleNamespace(**ARCHITECTURE))
    if function is not None:
        network.forward = lambda photo: [function(photo)]  # type: ignore[method-assign]
    return Predictor(network, size, Arithmetic("float32", "cpu"), **options)


def more(odds):
    """A change that local curves can follow exactly, if it is up and less than a stop: the odds times a number."""
    return lambda x: odds * x / (1 + (odds - 1) * x)


def test_the_correction_is_applied_at_full_size():
    photo = np.array(picture(500, 333)) // 2
    before = photo.copy()
    expected = more(1.8)(photo / 255) * 255
    assert np.abs(predictor(more(1.8)).predict(photo) - expected).max() <= 1
    assert np.array_equal(photo, before)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [0, 1, 3, 4])
def test_arrays_keep_shape_depth_and_transparency(dtype, channels):
    white = np.iinfo(dtype).max
    shape = (90, 120) if channels == 0 else (90, 120, channels)
    photo = np.random.default_rng(0).integers(white // 8, white // 2, shape).astype(dtype)
    assert np.array_equal(predictor().predict(photo), photo)
    brighter = predictor(more(1.5)).predict(photo)
    assert brighter.dtype == dtype and brighter.shape == shape
    colours = slice(None) if channels < 4 else (..., slice(3))
    assert np.abs(brighter[colours] / white - more(1.5)(photo[colours] / white)).max() < 0.01
    if channels == 4:
        assert np.array_equal(brighter[..., 3], photo[..., 3])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "array"])
def test_what_is_not_seen_does_not_steer(mode):
    seen, alpha = picture(90, 60), np.zeros((60, 90), np.uint8)
    alpha[:40, :50] = 255
    results = []
    for hidden in (0, 255):
        pixels = np.where(alpha[..., None] > 0, np.asarray(seen), hidden).astype(np.uint8)
        photo = Image.fromarray(np.dstack((pixels, alpha)))
        if mode == "P":
            photo = photo.quantize(255)
        elif mode == "LA":
            photo = Image.merge("LA", (Image.fromarray(pixels).convert("L"), photo.getchannel("A")))
        result = predictor(more(1.7)).predict(np.asarray(photo) if mode == "array" else photo)
        results.append(np.asarray(result if mode == "array" else result.convert("RGBA")))
    first, second = (result.astype(int)[:40, :50] for result in results)
    assert np.abs(first - second).max() <= (60 if mode == "P" else 0)  # a palette differs by what else is in it
    assert first[..., :3].mean() > np.asarray(seen)[:40, :50].mean() + 5


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "1", "CMYK"])
def test_images_keep_size_profile_and_transparency(mode):
    image = picture(90, 60).convert(mode)
    image.info["icc_profile"] = b"broken"
    result = predictor(more(1.5)).predict(image)
    assert result.size == image.size
    assert result.info.get("icc_profile") == (None if mode == "CMYK" else b"broken")  # CMYK becomes sRGB
    assert result.mode == {"P": "RGB", "1": "L", "CMYK": "RGB"}.get(mode, mode)
    expected = more(1.5)(np.array(image.convert("RGB")) / 255) * 255
    assert np.abs(np.array(result.convert("RGB")) - expected).max() <= 2


@pytest.mark.parametrize(
    ("photo", "words"),
    [
        (np.zeros((9, 9, 3), np.float32), "uint8 or uint16"),
        (np.zeros((9, 9, 2), np.uint8), "2 channels"),
        ([[0]], "an array is expected"),
        (np.zeros((2, 9, 9, 3), np.uint8), "shape"),
        (np.zeros((0, 9, 3), np.uint8), "shape"),
    ],
)
def test_other_arrays_are_refused(photo, words):
    with pytest.raises(ValueError, match=words):
        predictor().predict(photo)


def test_strength_is_checked_and_zero_is_exact():
    photo = np.array(picture(90, 60))
    assert np.array_equal(predictor(lambda x: 2 * x).predict(photo, strength=0), photo)
    image = Image.fromarray(photo)
    assert np.array_equal(np.array(predictor(lambda x: 2 * x).predict(image, strength=0)), photo)
    with pytest.raises(ValueError, match="from 0 to 1"):
        predictor().predict(photo, strength=1.1)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_careful_correction_is_half_of_it_where_the_photo_is_probably_right(mode):
    right = picture(90, 60).convert(mode)
    dark = right.point(lambda value: value / 4)
    full, careful = predictor(more(1.8)), predictor(more(1.8), careful=True)
    assert np.array_equal(careful.predict(right), full.predict(right, strength=0.5))
    assert np.array_equal(careful.predict(right, strength=0.4), full.predict(right, strength=0.2))
    assert np.array_equal(careful.predict(dark), full.predict(dark))
    batch = torch.rand(2, 3, 40, 50) * 0.9
    assert torch.allclose(careful.correct(batch), full.correct(batch, strength=0.5), atol=1e-6)


def test_exposure_is_checked_and_works_without_a_correction():
    photo = np.array(picture(90, 60))
    twice = predictor(more(1.5)).predict(photo, strength=0, exposure=1)
    assert np.abs(twice - more(GREY_STOP)(photo / 255) * 255).max() <= 1
    assert predictor(more(1.5)).predict(photo, exposure=-3).mean() < photo.mean()
    for wrong in (3.1, -4, float("nan")):
        with pytest.raises(ValueError, match="from -3 to 3"):
            predictor().predict(photo, exposure=wrong)


def swapped_profile():
    """A profile in which red and green have changed places."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return srgb.replace(b"rXYZ", b"tXYZ").replace(b"gXYZ", b"rXYZ").replace(b"tXYZ", b"gXYZ")


def linear_grey_profile():
    """A profile of grey whose values are in proportion to light."""
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, 256) + b"\0\0"
    tags = struct.pack(">I4sII4sII", 2, b"wtpt", 156, len(white), b"kTRC", 156 + len(white), len(curve))
    size = 156 + len(white) + len(curve)
    header = struct.pack(
        ">I4xI4s4s4s12x4s28x3i", size, 0x02100000, b"mntr", b"GRAY", b"XYZ ", b"acsp", 63190, 65536, 54061
    )
    return header.ljust(128, b"\0") + tags + white + curve


def test_the_network_sees_srgb_and_its_change_comes_back_in_the_photos_own_colours():
    image = Image.new("RGB", (60, 60), (200, 60, 50))
    image.info["icc_profile"] = swapped_profile()
    seen = []

    def brighten(x):
        seen.append(x[:, :, 30, 30])
        return more(4)(x)  # of every channel: curves of the channels are drawn together

    result = np.array(predictor(brighten).predict(image))[30, 30].astype(int)
    assert torch.allclose(255 * seen[0][0], torch.tensor([60.0, 200.0, 50.0]), atol=3)
    expected = 255 * more(4)(np.array([200, 60, 50]) / 255)
    assert np.abs(result - expected).max() <= 3
    assert np.array_equal(np.array(predictor().predict(image)), np.array(image))


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("colour", [0, 255])
@pytest.mark.parametrize("frame", [(60, 60, 60, 60), (50, 30, 0, 0), (0, 0, 70, 70)])
def test_a_frame_does_not_steer(depth, colour, frame):
    top, bottom, left, right = frame
    photo = np.array(picture(300, 200).filter(ImageFilter.BoxBlur(9))) // 2 + 60
    framed = np.pad(photo, ((top, bottom), (left, right), (0, 0)), constant_values=colour)

    def brighter(x):  # by as much as the whole is dark or bright
        return x + 3 * x * (1 - x) * (0.7 - x.mean((1, 2, 3), keepdim=True))

    if depth == 16:
        photo, framed = photo.astype(np.uint16) * 257, framed.astype(np.uint16) * 257
    alone, result = (predictor(brighter).predict(array) // (257 if depth == 16 else 1) for array in (photo, framed))
    inside = result[top : top + 200, left : left + 300]
    assert (
        np.abs(inside.astype(int) - alone).mean() < 4
        and (alone.mean() - photo.mean() / (257 if depth == 16 else 1)) > 10
    )
    rest = np.ones(framed.shape[:2], bool)
    rest[top : top + 200, left : left + 300] = False
    assert (result[rest] == colour).all()


@pytest.mark.parametrize("colour", [0, 255])
def test_a_background_is_no_frame(colour):
    rows, columns = np.mgrid[:90, :120]
    subject = ((rows - 45) ** 2 + (columns - 60) ** 2 < 35**2)[..., None]
    image = Image.fromarray(np.where(subject, 120, colour).astype(np.uint8).repeat(3, 2))
    for mixed in (False, True):
        assert without_frame(image, mixed=mixed) is image
        whole = Image.new("RGB", (90, 60), (colour,) * 3)
        assert without_frame(whole, mixed=mixed) is whole
        one_sided = Image.fromarray(
            np.pad(np.asarray(picture(60, 40)), ((9, 0), (0, 0), (0, 0)), constant_values=colour)
        )
        assert without_frame(one_sided, mixed=mixed) is one_sided


def test_photos_without_colours_stay_so():
    def tinted(x):
        return more(1.7)(x) + torch.tensor([0.05, 0, -0.05])[:, None, None] * x * (1 - x)

    grey = picture(90, 60).convert("L")
    result = np.asarray(predictor(tinted).predict(grey.convert("RGB")))
    assert (np.ptp(result, axis=2) == 0).all() and result.mean() > np.asarray(grey).mean() + 5
    assert np.abs(result[..., 0].astype(int) - np.asarray(predictor(tinted).predict(grey))).max() <= 1
    assert np.ptp(np.asarray(predictor(tinted).predict(picture(90, 60))), axis=2).max() > 0


def test_predictors_are_copied_and_pickled(tmp_path):
    path = tmp_path / "w.safetensors"
    network = build_generator(SimpleNamespace(**ARCHITECTURE))
    save_weights(path, network.state_dict(), architecture=ARCHITECTURE, working_size=48, training={})
    state = torch.get_rng_state()
    first = Predictor.from_weights(path, "cpu")
    assert torch.equal(state, torch.get_rng_state())
    photo = np.asarray(picture(90, 60))
    for other in (deepcopy(first), pickle.loads(pickle.dumps(first))):
        assert np.array_equal(other.predict(photo), first.predict(photo))


def test_linear_curves_are_told_in_all_their_forms():
    profile = _profile(*PRIMARIES[9], False, gamma=1.0)
    one = struct.pack(">i", 1 << 16)
    straight = b"para" + bytes(5) + b"\3\0\0" + one + one + bytes(4) + one + bytes(4)
    forms = {
        b"curv" + bytes(8): True,
        b"curv" + struct.pack(">IIH", 0, 1, 256): True,
        b"curv" + struct.pack(">IIHH", 0, 2, 0, 65535): True,
        b"para" + bytes(8) + one: True,
        straight: True,
        b"curv" + struct.pack(">IIH", 0, 1, 563): False,
        b"curv" + struct.pack(">IIHH", 0, 2, 0, 60000): False,
    }
    for form, is_linear in forms.items():
        changed = bytearray(profile + bytes(-len(profile) % 4))
        for i in range(profile[131]):
            if profile[132 + 12 * i : 136 + 12 * i] in (b"rTRC", b"gTRC", b"bTRC"):
                struct.pack_into(">II", changed, 136 + 12 * i, len(changed), len(form))
        assert (with_srgb_curves(bytes(changed + form)) is not None) == is_linear, form


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_linear_light_is_corrected_as_what_it_looks_like(mode):
    light = np.random.default_rng(0).uniform(0, 0.02, (60, 90, 3 if mode == "RGB" else 1))
    codes = from_linear(torch.tensor(light)).numpy()
    plain, linear = ((65535 * values).round().astype(np.uint16) for values in (codes, light))
    profile = _profile(*PRIMARIES[1], mode == "L", gamma=1.0)
    for photo, its in ((plain, None), (linear, profile)):
        predictor(more(1.7)).correct_in_place(photo, its, exposure=0.5)
    shown = from_linear(torch.tensor(linear / 65535)).numpy()
    assert np.abs(255 * shown - plain / 257).max() < 1.5 and (shown > codes).mean() > 0.95


def test_sliders_of_tensors_are_checked():
    for sliders, words in (({"strength": 2}, "strength 2: from 0 to 1"), ({"exposure": 5}, "exposure 5: from -3 to 3")):
        with pytest.raises(ValueError, match=words):
            predictor().correct(torch.rand(1, 3, 9, 9), **sliders)


def test_batches_of_tensors():
    batch = torch.rand(2, 3, 40, 50)
    assert torch.allclose(predictor().correct(batch), batch, atol=1e-6)
    assert torch.allclose(predictor(more(1.8)).correct(batch), more(1.8)(batch), atol=1e-3)
    assert torch.allclose(predictor(more(3)).correct(batch, strength=0, exposure=1), more(GREY_STOP)(batch), atol=5e-4)
    dark, module = torch.rand(1, 3, 40, 50) / 50 + 0.1, predictor(more(8))
    corrected = module.correct(dark)
    assert torch.allclose(corrected, module.corrector(dark))
    assert corrected.std() < 0.8 * more(8)(dark).std()  # grain is reduced
    file = module.predict((dark * 255).round().byte()[0].permute(1, 2, 0).numpy())
    assert np.abs(file.std() / 255 - corrected.std().item()) < 0.01
    least, most = predictor(lambda x: 3 * x - 1).correct(batch).aminmax()
    assert least >= 0 and most <= 1
    for wrong in (torch.rand(3, 40, 50), torch.rand(1, 4, 9, 9), torch.zeros(1, 3, 9, 9, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="are expected"):
            predictor().correct(wrong)


def test_networks_run_in_float32_unless_asked_otherwise_whatever_the_machine(monkeypatch):
    monkeypatch.setattr("utils.device.is_fast_with_bfloat16", lambda device: True)
    for arithmetic, expected in ((None, False), (Arithmetic("bfloat16", "cpu"), True)):
        calls, network = [], build_generator(SimpleNamespace(**ARCHITECTURE))
        network.forward = lambda x, calls=calls: [calls.append(torch.is_autocast_enabled("cpu")) or more(1.5)(x)]
        photo = np.array(picture(100, 80)) // 2
        result = Predictor(network, 64, arithmetic).predict(photo)
        assert calls == [expected] and np.abs(result - more(1.5)(photo / 255) * 255).max() <= 1


def test_a_network_whose_output_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        predictor(lambda x: x * float("nan")).predict(np.array(picture(50, 40)))


def test_threads_share_the_network_and_one_bad_photo_spoils_no_other():
    started, sizes = threading.Event(), []

    def forward(x):
        sizes.append(len(x))
        started.wait(5)  # meanwhile the other threads queue up
        bad = (x.mean(dim=(1, 2, 3)) > 0.9).float()[:, None, None, None]
        return more(2)(x) / (1 - bad)

    shared = predictor(forward)
    results = {}

    def work(value):
        try:
            results[value] = int(shared.predict(np.full((40, 60, 3), value, np.uint8))[5, 5, 0])
        except ValueError as error:
            results[value] = str(error)

    threads = [threading.Thread(target=work, args=(value,)) for value in (20, 40, 60, 80, 250)]
    for thread in threads:
        thread.start()
    while len(shared._waiting) < 4:
        pass
    started.set()
    for thread in threads:
        thread.join()
    assert {value: results[value] for value in (20, 40, 60, 80)} == {20: 37, 40: 69, 60: 97, 80: 122}
    assert "not finite" in results[250] and max(sizes) == 4 * 2  # photos and their mirror images


def test_without_memory_on_the_gpu_the_cpu_goes_on():
    calls = []

    def forward(x):
        calls.append(x.device.type)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("no memory")
        return x

    tried = predictor(forward)
    tried.arithmetic.device = SimpleNamespace(type="cuda")
    tried.arithmetic.memory_format = torch.contiguous_format
    batch = torch.rand(1, 3, 20, 20)
    tried._network_output = forward
    with pytest.warns(UserWarning, match="going on with the CPU"):
        result = tried._run(batch)
    assert torch.equal(result, batch) and tried.arithmetic.device.type == "cpu"


def test_weights_are_loaded_with_their_size_and_wrong_ones_named(tmp_path):
    network = build_generator(SimpleNamespace(**ARCHITECTURE))
    path = tmp_path / "w.safetensors"
    save_weights(path, network.state_dict(), architecture=ARCHITECTURE, working_size=77, training={})
    assert Predictor.from_weights(path, device="cpu").size == 77
    assert Predictor.from_weights(str(path), device="cpu", size=33).size == 33
    with pytest.raises(ValueError, match="cannot be used"):
        Predictor.from_weights(path, device="cuda:99")
    save_weights(path, {"other": torch.zeros(2)}, architecture=ARCHITECTURE, working_size=77, training={})
    with pytest.raises(WeightsError, match="do not fit"):
        Predictor.from_weights(path)


@pytest.mark.parametrize("size", [(1, 1), (3000, 2), (640, 480), (1000, 3000)])
def test_small_copies_have_the_right_size_and_mean_in_every_depth(size):
    image = picture(*size)
    pixels = np.array(image)
    copies = [reduced(image, 128), reduced(pixels, 128), reduced(pixels.astype(np.uint16) * 257, 128)]
    for copy in copies:
        assert max(copy.size) == min(max(size), 128) and abs(np.array(copy).mean() - pixels.mean()) < 2
        assert np.abs(np.array(copy).astype(int) - np.array(copies[0])).max() <= 1  # images and arrays agree
    copies[0].paste("red", (0, 0, 1, 1))
    assert np.array_equal(np.array(image), pixels)  # a copy it is


def test_images_of_16_bits_keep_them_and_others_are_refused():
    ramp = np.arange(4800, dtype=np.uint16).reshape(60, 80) * 10
    result = predictor(more(1.5)).predict(Image.fromarray(ramp))
    assert result.mode == "I;16" and len(np.unique(np.array(result))) > 4000
    assert np.abs(np.array(result) / 65535 - more(1.5)(ramp / 65535)).max() < 0.003
    linear = Image.fromarray(ramp)
    linear.info |= {"icc_profile": linear_grey_profile(), "dpi": (300, 300), "transparency": 7}
    result = predictor(more(1.5)).predict(linear)
    assert result.info == {"icc_profile": linear_grey_profile(), "dpi": (300, 300)}
    expected = to_linear(more(1.5)(from_linear(torch.from_numpy(ramp / 65535)))).numpy()
    assert np.abs(np.array(result) / 65535 - expected).max() < 0.02
    for mode in ("I", "F"):
        with pytest.raises(ValueError, match="8 or 16 bits"):
            predictor().predict(Image.new(mode, (9, 9)))
    premultiplied = picture(20, 20).convert("RGBA").convert("RGBa")
    assert predictor().predict(premultiplied).mode == "RGBA"


def test_without_memory_on_the_gpu_from_the_start_the_cpu_is_taken(monkeypatch):
    def place(self, network):
        if self.device.type != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return network

    monkeypatch.setattr(Arithmetic, "place", place)
    arithmetic = Arithmetic("float32", "cpu")
    arithmetic.device = SimpleNamespace(type="cuda")
    with pytest.warns(UserWarning, match="going on with the CPU"):
        assert Predictor(torch.nn.Identity(), 64, arithmetic).arithmetic.device.type == "cpu"
