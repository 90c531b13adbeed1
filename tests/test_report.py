import base64
import html
import io
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import picture
from PIL import Image

import predict
from models import build_generator
from utils.photos.report import Report
from utils.weights import save_weights

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


def test_a_run_that_breaks_off_leaves_no_half_page(tmp_path):
    with pytest.raises(KeyboardInterrupt), Report.open(tmp_path / "index.html") as report:
        report.add_failure("a.jpg", "broken")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver")
    driver = shutil.which("chromedriver")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not driver or not chromium:
        pytest.skip("no Chromium with its driver here")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1000,900"):
        options.add_argument(f"--{word}")
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as opened:
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


def test_histograms_show_what_was_changed():
    from utils.photos.report import _histogram

    dark = _histogram(Image.fromarray(np.full((9, 9, 3), 10, np.uint8)))
    assert dark[2] == 1 and sum(dark) == 1
