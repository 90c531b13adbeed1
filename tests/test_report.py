import base64
import html
import io
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import chromium, picture
from PIL import Image

import predict
from models import build_generator, curves, grain
from utils.photos.report import Report, _encode
from utils.weights import save_weights

pytestmark = pytest.mark.xdist_group("report")  # one browser

ARCHITECTURE = {"layer_count_of_every_unet": [1, 1], "first_layer_out_channels_of_every_unet": [4, 4]}


def rows(page):
    found = re.findall(r'<script class="photo" type="text/plain" data-facts="(.*?)">\n(.*?)\n</script>', page, re.S)
    return {
        facts["name"]: (facts, body.split()) for facts, body in ((json.loads(html.unescape(f)), b) for f, b in found)
    }


def test_predict_writes_a_page_that_needs_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "w.safetensors"
    network = build_generator(SimpleNamespace(**ARCHITECTURE))
    save_weights(weights, network.state_dict(), architecture=ARCHITECTURE, working_size=64, training={})
    name = '<b> "a" & é.png'
    picture(1500, 1000).save(tmp_path / name)
    (tmp_path / "empty.jpg").write_bytes(b"")
    for seconds_are_known in (True, False):  # the second run finds the photo done
        assert predict.main([name, "empty.jpg", "-o", "out", "-w", str(weights), "--report"]) == 1
        page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
        facts, pictures = rows(page)[name]
        assert (facts["width"], facts["height"]) == (1500, 1000) and (facts["seconds"] > 0) == seconds_are_known
        assert abs(sum(facts["before"]) - 1) < 0.01 and len(facts["after"]) == 64
        for picture_ in pictures:
            with Image.open(io.BytesIO(base64.b64decode(picture_))) as small:
                assert small.format == "JPEG" and small.size == (960, 640)
        assert rows(page)["empty.jpg"][0]["reason"] == "the file is empty"
        assert not re.search(r"(src|href)=|https?://(?!www\.w3\.org/2000/svg)|url\(", page), "nothing from elsewhere"


def test_photos_of_an_earlier_run_have_sliders_where_its_settings_are_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    network = build_generator(SimpleNamespace(**ARCHITECTURE))
    save_weights(
        tmp_path / "w.safetensors", network.state_dict(), architecture=ARCHITECTURE, working_size=64, training={}
    )
    words = ["a.png", "grey.png", "-o", "out", "-w", "w.safetensors", "--exposure", "1"]
    picture(150, 100).save("a.png")
    picture(150, 100).convert("L").save("grey.png")
    assert predict.main(words) == 0
    for exposure, expected in (("1", True), ("0.5", False)):
        assert predict.main([*words[:-1], exposure, "--report"]) == 0
        found = rows((tmp_path / "out" / "index.html").read_text(encoding="utf-8"))
        assert [("curves" in facts) for facts, _ in found.values()] == [expected, expected]


def test_a_run_that_breaks_off_leaves_no_half_page(tmp_path):
    with pytest.raises(KeyboardInterrupt), Report.open(tmp_path / "index.html") as report:
        report.add_failure("a.jpg", "broken")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def browser():
    options, start = chromium("disable-gpu", "window-size=1000,900")
    with start(options) as opened:
        yield opened


def colour(browser, element, share):
    """The colour on the screen at a share of an element's width, in the middle of its height."""
    picture_ = Image.open(io.BytesIO(element.screenshot_as_png)).convert("RGB")
    return picture_.getpixel((int(share * picture_.width), picture_.height // 2))


def test_the_slider_is_dragged_and_keyed_in_a_real_browser(tmp_path, browser):
    from selenium.webdriver import ActionChains, Keys

    with Report.open(tmp_path / "index.html") as report:
        for index in range(60):
            pictures = Image.new("RGB", (300, 200), "red"), Image.new("RGB", (300, 200), "lime")
            report.add(f"photo {index}.jpg", (3000, 2000), 0.5, *pictures)
        report.add_failure("broken.jpg", "the file is empty")
    browser.get((tmp_path / "index.html").as_uri())
    articles = browser.find_elements("css selector", "article")
    assert [a.find_element("css selector", "h2").text for a in articles[:4]] == [
        "broken.jpg", "photo 0.jpg", "photo 1.jpg", "photo 2.jpg",
    ]  # fmt: skip
    assert 2 <= len(browser.find_elements("css selector", ".pair img")) < 60  # the others when they come near
    pair = articles[1].find_element("css selector", ".pair")
    slider = pair.find_element("css selector", "input")

    def colours(share):
        red, green = ((share_, colour(browser, pair, share_)) for share_ in (share - 0.05, share + 0.05))
        assert red[1][0] > 200 > 60 > red[1][1] and green[1][1] > 200 > 60 > green[1][0], (red, green)

    colours(0.5)
    ActionChains(browser).move_to_element(slider).click_and_hold().move_by_offset(-pair.size["width"] // 4, 0).perform()
    ActionChains(browser).release().perform()
    assert float(slider.get_attribute("value")) == pytest.approx(25, abs=3)
    colours(0.25)
    slider.send_keys(Keys.ARROW_RIGHT * 10)
    assert float(slider.get_attribute("value")) == pytest.approx(75, abs=3)
    colours(0.75)
    browser.execute_script("window.scrollTo(0, document.body.scrollHeight)")
    last = articles[-1].find_element("css selector", ".pair")
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(browser, 5).until(lambda _: last.find_elements("css selector", "img"))
    assert browser.get_log("browser") == []
    browser.set_window_size(500, 800)  # the narrowest that the browser allows
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")


def shown(browser, pair):
    """The pixels of what the sliders have made of a photo."""
    from selenium.webdriver.support.wait import WebDriverWait

    canvas = WebDriverWait(browser, 10).until(lambda _: pair.find_elements("css selector", "canvas.after"))[0]
    data = browser.execute_script("return arguments[0].toDataURL('image/png')", canvas)
    return np.array(Image.open(io.BytesIO(base64.b64decode(data.split(",")[1]))).convert("RGB")).astype(int)


def test_sliders_of_strength_and_exposure_correct_the_pages_pictures(tmp_path, browser):
    from selenium.webdriver import Keys
    from selenium.webdriver.support.wait import WebDriverWait

    def as_tensor(image):
        return torch.from_numpy(np.array(image).reshape(280, 420, -1)).permute(2, 0, 1)[None] / 255

    def corrected(mode, strength, exposure):
        adjusted = curves.adjust(maps[mode], strength, exposure)
        # grain itself the page leaves alone
        faded = grain.fade(copies[mode], grain.lifts_at(adjusted, copies[mode]))
        result = 255 * curves.apply(faded, adjusted)[0]
        return np.broadcast_to(result.permute(1, 2, 0).numpy(), (280, 420, 3))

    before, copies, maps = {}, {}, {}
    for mode in ("RGB", "L"):
        image = picture(420, 280).point(lambda value: value // 2).convert("RGB")
        image.paste((4, 0, 8), (0, 0, 200, 100))  # a tint next to black, which fades where it is lifted
        image = image.convert(mode)
        before[mode] = image.convert("RGB")
        small = torch.nn.functional.interpolate(as_tensor(image), (80, 120), mode="area")
        maps[mode] = curves.fit(small, small.sqrt())
        copies[mode] = as_tensor(Image.open(io.BytesIO(base64.b64decode(_encode(before[mode])))).convert(mode))
    with Report.open(tmp_path / "index.html", strength=0.72, exposure=0.5, careful=True) as report:
        for index in range(20):
            mode = "RGB" if index % 2 == 0 else "L"
            after = Image.fromarray(corrected(mode, 0.72, 0.5).round().astype(np.uint8))
            report.add(f"photo {index}.jpg", (420, 280), 0.5, before[mode], after, maps[mode][0])
        report.add("without curves.jpg", (420, 280), 0.5, before["RGB"], after)
    browser.set_window_size(1000, 900)
    browser.get((tmp_path / "index.html").as_uri())
    pairs = browser.find_elements("css selector", ".pair")
    strength, exposure, settings = (browser.find_element("id", name) for name in ("strength", "exposure", "settings"))

    def wait_for(*, strength, exposure, pairs):
        assert settings.text == f"--careful --strength {strength} --exposure {exposure} --overwrite"
        for mode, pair in pairs.items():
            expected = corrected(mode, strength, exposure)
            close = lambda _, pair=pair, expected=expected: np.abs(shown(browser, pair) - expected).mean() < 1  # noqa: E731
            WebDriverWait(browser, 10).until(close)
            assert np.abs(shown(browser, pair) - expected).max() < 6

    def line():
        return browser.find_element("css selector", ".after-line").get_attribute("d")

    first = {"RGB": pairs[0], "L": pairs[1]}
    assert settings.text == "--careful --strength 0.72 --exposure 0.5 --overwrite"
    assert not browser.find_elements("css selector", "canvas")  # the file itself
    lines = [line()]
    exposure.send_keys(Keys.HOME)
    wait_for(strength=0.72, exposure=-3, pairs=first)
    lines.append(line())
    exposure.send_keys(Keys.END, Keys.ARROW_LEFT * 20)
    wait_for(strength=0.72, exposure=2, pairs=first)
    move = "arguments[0].value = 0; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))"
    browser.execute_script(move, exposure)
    wait_for(strength=0.72, exposure=0, pairs=first)
    lines.append(line())
    assert len(set(lines)) == 3  # histograms follow
    strength.send_keys(Keys.HOME)
    wait_for(strength=0, exposure=0, pairs=first)
    browser.execute_script("window.scrollTo(0, document.body.scrollHeight)")  # what comes later has it too
    wait_for(strength=0, exposure=0, pairs={"L": pairs[-2]})
    assert not pairs[-1].find_elements("css selector", "canvas")  # without curves
    assert strength.is_displayed() and strength.rect["y"] >= browser.execute_script("return window.scrollY")
    browser.find_element("css selector", "button").click()
    assert settings.text == "--careful --strength 0.72 --exposure 0.5 --overwrite"
    WebDriverWait(browser, 10).until(lambda _: not browser.find_elements("css selector", "canvas"))
    assert browser.get_log("browser") == []


def test_predict_puts_its_settings_and_curves_into_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = build_generator(SimpleNamespace(**ARCHITECTURE))
    save_weights(
        tmp_path / "w.safetensors", network.state_dict(), architecture=ARCHITECTURE, working_size=64, training={}
    )
    picture(300, 200).save("a.jpg")
    picture(200, 300).convert("L").save("b.png")
    words = ["a.jpg", "b.png", "-o", "out", "-w", "w.safetensors", "--report"]
    for _ in range(2):  # the second run finds the photos done
        assert predict.main([*words, "--strength", "0.4", "--exposure", "-1", "--careful"]) == 0
        page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
        assert '{"strength": 0.4, "exposure": -1.0, "careful": true}' in page
        for name, knots in (("a.jpg", [3, 22, 32]), ("b.png", [1, 32, 22])):
            facts = rows(page)[name][0]
            assert facts["knots"] == knots
            assert len(base64.b64decode(facts["curves"])) == 6 * np.prod(knots)  # three maps of two bytes


def test_histograms_show_what_was_changed():
    from utils.photos.report import _histogram

    dark = _histogram(Image.fromarray(np.full((9, 9, 3), 10, np.uint8)))
    assert dark[2] == 1 and sum(dark) == 1
