import base64
import functools
import http.server
import io
import json
import os
import re
import struct
import threading
import time
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, chromium, picture
from PIL import ExifTags, Image, ImageChops, ImageCms, ImageOps, PngImagePlugin

import export
from models import build_generator
from utils.photos.predictor import Predictor
from utils.weights import save_weights

pytestmark = pytest.mark.xdist_group("page")  # one browser, in this order

ARCHITECTURE = {"model": "msec", "layer_count_of_every_unet": [1, 1], "first_layer_out_channels_of_every_unet": [4, 4]}
EXAMPLES = sorted((REPOSITORY / "data" / "examples").glob("*.jpg"))
P3 = (0.51512, 0.2412, -0.00105, 0.29198, 0.69225, 0.04189, 0.1571, 0.06657, 0.78407)
"""The primaries of Display P3, adapted to D50: X, Y, Z of red, green and blue."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A small network whose correction differs from place to place and between the channels."""
    torch.manual_seed(3)
    network = build_generator(SimpleNamespace(**ARCHITECTURE))
    with torch.no_grad():
        for unet in network.unets:
            unet.head.weight.normal_(std=0.25)
            unet.head.bias.copy_(torch.tensor([0.15, 0.05, -0.05]))
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    sizes = {"working_size": 96, "least_size": 72}  # of which photos of 3:2 make 108
    save_weights(path, network.state_dict(), architecture=ARCHITECTURE, training={}, **sizes)
    return path


class Server(http.server.ThreadingHTTPServer):
    """A web server that keeps what it was asked for."""

    def __init__(self, folder=None):
        self.asked, self.is_off, self.lacks = [], False, ""

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(handler):
                self.asked.append(handler.path)
                is_lacking = self.lacks and handler.path.endswith(self.lacks)
                super().do_GET() if folder and not (self.is_off or is_lacking) else handler.send_error(503)

            do_CONNECT = do_POST = do_GET

            def log_message(handler, *words):
                pass

        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
        threading.Thread(target=self.serve_forever, daemon=True).start()


@pytest.fixture(scope="module")
def site(weights, tmp_path_factory):
    for name in ("onnx", "onnxruntime"):
        pytest.importorskip(name)
    if not (REPOSITORY / "page" / "node_modules").is_dir():
        pytest.skip("no page/node_modules: npm ci --prefix page")
    folder = tmp_path_factory.mktemp("page") / "site"
    assert export.main([str(weights), "--page", str(folder)]) == 0
    for path in folder.rglob("*"):
        os.utime(path, (0, 0))  # long ago: a browser asks a server no more after what it keeps
    with Server(str(folder)) as server:
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def page(site, tmp_path_factory):
    """A browser with the page open, whose requests to elsewhere end in `page.elsewhere`."""
    quiet = "disable-background-networking", "disable-component-update", "disable-sync", "no-first-run"
    software = "enable-unsafe-swiftshader", "enable-unsafe-webgpu"
    # optimising what runs once takes longer than it saves
    plain = "js-flags=--no-wasm-tier-up --no-wasm-dynamic-tiering"
    options, start = chromium("window-size=1200,900", *software, plain, *quiet)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    downloads = tmp_path_factory.mktemp("downloads")
    several = "profile.default_content_setting_values.automatic_downloads"
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads), several: 1})
    with Server() as elsewhere:
        options.add_argument(f"--proxy-server=127.0.0.1:{elsewhere.server_port}")  # not asked for loopback addresses
        with start(options) as browser:
            browser.elsewhere, browser.downloads = elsewhere.asked, downloads
            browser.get(f"http://127.0.0.1:{site.server_port}/")
            until(browser, "document.documentElement.dataset.ready === ''")
            browser.execute_async_script("navigator.serviceWorker.ready.then(arguments[0])")
            yield browser
        elsewhere.shutdown()


def until(page, script, seconds=60):
    from selenium.webdriver.support.wait import WebDriverWait

    return WebDriverWait(page, seconds, 0.05).until(lambda _: page.execute_script(f"return {script}"))


def add(page, *files):
    count = len(page.find_elements("css selector", "#photos li"))
    page.find_element("id", "files").send_keys("\n".join(map(str, files)))
    until(page, f"document.querySelectorAll('#photos li').length === {count + len(files)}")
    settled = "e => e.matches('.failed') || e.firstChild.firstChild.width > 1"
    until(page, f"[...document.querySelectorAll('#photos li')].every({settled})")


def press(page, name):
    page.execute_script(f"document.getElementById('{name}').click()")


def choose(page, name, value):
    script = "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
    page.execute_script(script + "for (const n of ['input', 'change']) e.dispatchEvent(new Event(n))", name, str(value))


def downloaded(page, name):
    path, end = page.downloads / name, time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, f"{name} was not saved: {page.find_element('id', 'status').text}"
        time.sleep(0.02)
    data = path.read_bytes()
    path.unlink()
    return data


def clear(page):
    page.execute_script("for (const e of document.querySelectorAll('.remove')) e.click()")


def p3_profile():
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for index in range(struct.unpack_from(">I", data, 128)[0]):
        name, place = struct.unpack_from(">4sI", data, 132 + 12 * index)
        if name in (b"rXYZ", b"gXYZ", b"bXYZ"):
            first = 3 * [b"rXYZ", b"gXYZ", b"bXYZ"].index(name)
            struct.pack_into(">3i", data, place + 8, *(round(65536 * value) for value in P3[first : first + 3]))
    return bytes(data)


def share_within(actual, expected, limit):
    """The share of the values of two pictures that differ by no more than a limit."""
    assert actual.size == expected.size and actual.mode == expected.mode
    counts = np.reshape(ImageChops.difference(actual, expected).histogram(), (-1, 256))
    return counts[:, : limit + 1].sum() / counts.sum()


def test_the_page_makes_what_predict_makes(page, weights, tmp_path):
    with Image.open(EXAMPLES[3]) as example:
        example.resize((2400, 1800), Image.Resampling.BILINEAR).save(tmp_path / "large.jpg", quality=90)
        example.convert("L").save(tmp_path / "grey.jpg", quality=95)
        example.resize((3, 2)).save(tmp_path / "tiny.png")
        wide = example.resize((300, 200)).point(lambda value: min(2 * value, 255))
        wide.save(tmp_path / "wide.png", icc_profile=p3_profile())
    clear_ = Image.new("RGBA", (120, 90), (255, 255, 255, 0))
    clear_.paste(picture(60, 90).convert("RGBA"), (0, 0))  # a canvas knows no colour of what is not seen
    clear_.save(tmp_path / "clear.png")
    ImageOps.expand(wide, 40, "white").save(tmp_path / "framed.png")
    ImageOps.expand(wide.convert("L").convert("RGB"), (0, 50)).save(tmp_path / "film.png")
    wide.save(tmp_path / "turned.webp", lossless=True, exif=exif_with(6))
    wide.save(tmp_path / "late.png", exif=exif_with(6), dpi=(300, 150))
    data = (tmp_path / "late.png").read_bytes()
    place, end = data.index(b"eXIf") - 4, data.index(b"IEND") - 4
    length = 12 + int.from_bytes(data[place : place + 4], "big")
    (tmp_path / "late.png").write_bytes(
        data[:place] + data[place + length : end] + data[place : place + length] + data[end:]
    )
    wide.convert("P").save(tmp_path / "moves.gif", save_all=True, append_images=[wide.rotate(90).convert("P")])
    wide.save(tmp_path / "moves.webp", save_all=True, append_images=[wide.rotate(90)])
    hdr = PngImagePlugin.PngInfo()
    hdr.add(b"cICP", bytes((9, 16, 0, 1)))
    wide.save(tmp_path / "hdr.png", pnginfo=hdr)
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "grey.jpg").read_bytes()[:300])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "camera.tif").write_bytes(b"II*\0" + bytes(100))
    names = (
        "large.jpg",
        "grey.jpg",
        "tiny.png",
        "wide.png",
        "clear.png",
        "turned.webp",
        "late.png",
        "framed.png",
        "film.png",
    )
    good = [*EXAMPLES, *(tmp_path / name for name in names)]
    bad = ("broken.jpg", "empty.jpg", "camera.tif", "moves.webp", "hdr.png", "moves.gif")
    add(page, *good, *(tmp_path / name for name in bad))
    failures = [element.text for element in page.find_elements("css selector", ".failed .title")]
    assert re.match(r"broken\.jpg: .*damaged", failures[0]) and failures[1] == "empty.jpg: the file is empty"
    assert failures[2].startswith("camera.tif: ") and "TIFF" in failures[2]
    assert "several pictures" in failures[3] and "HDR colours (PQ)" in failures[4]
    assert "several pictures" in failures[5]
    choose(page, "strength", 80)
    choose(page, "exposure", 0.5)
    press(page, "all")
    choose(page, "format", "PNG")
    press(page, "save-zip")
    archive = zipfile.ZipFile(io.BytesIO(downloaded(page, "corrected.zip")))
    assert archive.testzip() is None
    assert archive.namelist() == [path.with_suffix(".png").name for path in good]
    assert "17 photos saved, 6 could not be" in page.find_element("id", "status").text
    predictor = Predictor.from_weights(weights, "cpu")
    for path in good:
        with Image.open(path) as photo, Image.open(archive.open(path.with_suffix(".png").name)) as actual:
            upright = ImageOps.exif_transpose(photo)
            expected = predictor.predict(upright, strength=0.8, exposure=0.5)
            if path.name == "grey.jpg":
                expected = expected.convert("RGB")
                assert (np.ptp(np.asarray(actual.convert("RGB")), axis=2) == 0).all()
            if path.name == "clear.png":
                assert np.array_equal(actual.getchannel("A"), expected.getchannel("A"))
                actual, expected = (Image.fromarray(np.asarray(image)[:, :60, :3]) for image in (actual, expected))
            if path.name == "late.png":
                assert [round(dots) for dots in actual.info["dpi"]] == [150, 300]
            actual_ = actual.convert("RGB")
            assert share_within(actual_, expected, 2) > 0.99, path.name
            before = upright.convert("RGB").crop((0, 0, *expected.size))
            assert path.name == "tiny.png" or share_within(before, expected, 5) < 0.7
            assert actual.info.get("icc_profile") == photo.info.get("icc_profile"), path.name
    clear(page)


def test_nothing_is_asked_of_others_and_the_policy_holds(page, site):
    script = """const done = arguments[0], script = document.createElement('script');
    script.textContent = 'window.inlined = 1';
    document.body.append(script);
    setTimeout('window.evaluated = 1');  // by a timer, as what a driver runs may evaluate
    const tell = fetched => setTimeout(() => done([window.inlined ?? 0, window.evaluated ?? 0, fetched]), 20);
    fetch('http://elsewhere.test/').then(() => tell(1), () => tell(0))"""
    assert page.execute_async_script(script) == [0, 0, 0]
    image = "const i = new Image(), d = arguments[0]; i.onload = () => d(1); i.onerror = () => d(0); i.src = 'http://elsewhere.test/a'"
    assert page.execute_async_script(image) == 0
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    urls = [sent["params"]["request"]["url"] for sent in messages if sent["method"] == "Network.requestWillBeSent"]
    own = f"http://127.0.0.1:{site.server_port}/"
    assert any(url == own + "main.js" for url in urls)
    assert {url for url in urls if not url.startswith((own, f"blob:{own}"))} <= {
        "http://elsewhere.test/",
        "http://elsewhere.test/a",
    }
    hosts = {re.split("[/:]", asked.removeprefix("http://"))[0] for asked in page.elsewhere}
    services = (".google.com", ".googleapis.com", ".gvt1.com")  # what Chromium asks on its own account
    assert [host for host in hosts if not host.endswith(services)] == []
    errors = [entry["message"] for entry in page.get_log("browser") if entry["level"] == "SEVERE"]
    assert all("Content Security Policy" in error or "elsewhere.test" in error for error in errors), errors
    names = {path.split("?")[0].lstrip("/") for path in site.asked}
    assert {"model.onnx", "worker.js", "ort-wasm-simd-threaded.wasm", "files.js"} <= names


def colour(page, share, size):
    """The colour on the screen at a share of the photo's width, a third down, and where on the photo that is."""
    shot = Image.open(io.BytesIO(page.find_element("id", "viewer").screenshot_as_png)).convert("RGB")
    scale = min(shot.width / size[0], shot.height / size[1], 1)
    column, row = int(share * size[0]), size[1] // 3
    left, top = ((room - scale * length) / 2 for room, length in zip(shot.size, size, strict=True))
    pixel = shot.getpixel((int(left + scale * column), int(top + scale * row)))
    return np.array(pixel).astype(int), (row, column)


def see(page, weights, tmp_path):
    """Assert that the screen shows a photo before and after, as predict.py makes it, wherever the sliders are."""
    from selenium.webdriver import Keys

    predictor = Predictor.from_weights(weights, "cpu")

    def show(tint):
        flat = Image.new("RGB", (700, 500), tint)
        flat.save(tmp_path / "flat.png")
        add(page, tmp_path / "flat.png")
        until(page, "!document.getElementById('split').hidden")
        return flat

    def expect(flat, split, strength, exposure):
        corrected = np.asarray(predictor.predict(flat, strength=strength, exposure=exposure)).astype(int)
        for share, wanted in ((split - 0.1, np.asarray(flat).astype(int)), (split + 0.1, corrected)):
            end = time.monotonic() + 10  # a worker draws when it is done
            while True:
                actual, place = colour(page, share, flat.size)
                if np.abs(actual - wanted[place]).max() <= 2:
                    break
                assert time.monotonic() < end, (share, actual, wanted[place])

    flat = show((90, 70, 60))
    expect(flat, 0.5, 1, 0)
    choose(page, "exposure", 1)
    choose(page, "strength", 50)
    expect(flat, 0.5, 0.5, 1)
    split = page.find_element("id", "split")
    split.send_keys(Keys.ARROW_RIGHT * 3)
    assert float(split.get_attribute("value")) == pytest.approx(65)
    press(page, "reset")
    expect(flat, 0.65, 1, 0)
    clear(page)
    expect(show((8, 2, 12)), float(split.get_attribute("value")) / 100, 1, 0)  # colour next to black fades
    clear(page)


def test_the_view_is_what_is_saved(page, weights, tmp_path):
    see(page, weights, tmp_path)
    assert "WebGL2; " in page.find_element("id", "engine").text


def test_a_phone_and_photos_that_are_dropped_and_pasted(page):
    add(page, *EXAMPLES[:2])
    device = {"deviceScaleFactor": 2, "mobile": True}
    for width, height, least in ((390, 844, 250), (320, 568, 100), (667, 375, 150), (568, 320, 100)):
        page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**device, "width": width, "height": height})
        script = "return [document.documentElement.scrollWidth, document.getElementById('viewer').clientHeight]"
        across, down = page.execute_script(script)
        assert across <= width and down >= least, (width, height)
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    clear(page)
    drop = """const data = new DataTransfer(), bytes = Uint8Array.from(atob(arguments[0]), c => c.charCodeAt(0));
    data.items.add(new File([bytes], arguments[1], {type: 'image/png'}));
    dispatchEvent(arguments[1] === 'dropped.png' ? new DragEvent('drop', {dataTransfer: data})
      : new ClipboardEvent('paste', {clipboardData: data}))"""
    data = io.BytesIO()
    picture(40, 30).save(data, "PNG")
    for name in ("dropped.png", "pasted.png"):
        page.execute_script(drop, base64.b64encode(data.getvalue()).decode(), name)
        until(page, f"[...document.querySelectorAll('.title')].some(e => e.textContent === '{name}')")
    clear(page)


def test_webgpu_is_used_where_it_works(page, site, weights, tmp_path):
    address, runtime = f"http://127.0.0.1:{site.server_port}/?webgpu", "ort-wasm-simd-threaded.jspi.wasm"
    if not page.execute_async_script("(navigator.gpu?.requestAdapter() ?? Promise.resolve()).then(arguments[0])"):
        pytest.skip("this Chromium has no WebGPU")
    assert not any(asked.endswith(runtime) for asked in site.asked)  # nobody fetches what he does not use
    for site.lacks, engine in ((runtime, r"WebAssembly, .*, as WebGPU failed \("), ("", "WebGPU; ")):
        page.get(address)
        until(page, "document.documentElement.dataset.ready === ''")
        assert re.match(engine, page.find_element("id", "engine").text)
    with Image.open(EXAMPLES[2]) as example:
        example.resize((16, 16)).save(tmp_path / "small.png")  # as the page's trial: software compiles every size anew
    add(page, tmp_path / "small.png")
    choose(page, "format", "PNG")
    until(page, "!document.getElementById('save').disabled")
    press(page, "save")
    with Image.open(io.BytesIO(downloaded(page, "small_corrected.png"))) as actual:
        expected = Predictor.from_weights(weights, "cpu").predict(Image.open(tmp_path / "small.png"))
        assert share_within(actual.convert("RGB"), expected, 2) > 0.99
    assert page.find_element("id", "engine").text.startswith("WebGPU; ")
    clear(page)
    page.get(address.removesuffix("?webgpu"))
    until(page, "document.documentElement.dataset.ready === ''")


def exif_with(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Make] = "Maker"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExifImageWidth] = 320
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    return exif


def test_without_a_network_photos_are_corrected_and_keep_what_belongs_to_them(page, site, weights, tmp_path):
    until(page, "navigator.serviceWorker.controller?.scriptURL.endsWith('?wasm')")  # all is kept
    site.asked.clear()
    page.refresh()
    until(page, "document.documentElement.dataset.ready === ''")
    end = time.monotonic() + 20
    while "/files.js" not in site.asked:  # which would tell of a new version
        assert time.monotonic() < end
        time.sleep(0.02)
    site.is_off = True
    page.get(f"http://127.0.0.1:{site.server_port}/?plain")  # and without WebGL2
    until(page, "document.documentElement.dataset.ready === ''")
    threads = min(page.execute_script("return navigator.hardwareConcurrency"), 4)
    assert ("one thread" if threads == 1 else f"{threads} threads") in page.find_element("id", "engine").text
    assert page.execute_script("return crossOriginIsolated")  # so that WebAssembly may have threads
    see(page, weights, tmp_path)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6" dc:x="kept"/></x:xmpmeta>'
    photo, path = picture(320, 200).point(lambda value: value // 2), tmp_path / "wide.jpg"
    kept = {"icc_profile": p3_profile(), "exif": exif_with(6), "xmp": xmp, "dpi": (300, 300), "comment": b"kept"}
    photo.save(path, quality=97, subsampling=0, **kept)
    add(page, path)
    until(page, "!document.getElementById('save').disabled")
    assert page.find_element("id", "facts").text == "200 × 320, Display P3"
    choose(page, "format", "")
    choose(page, "quality", 100)
    press(page, "save")
    data = downloaded(page, "wide_corrected.jpg")
    with Image.open(io.BytesIO(data)) as actual, Image.open(path) as original:
        exif = actual.getexif()
        assert actual.format == "JPEG" and actual.size == (200, 320) and exif.get(ExifTags.Base.Orientation, 1) == 1
        assert exif[ExifTags.Base.Make] == "Maker" and exif.get_ifd(ExifTags.IFD.GPSInfo)[1] == "N"
        assert exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExifImageWidth] == 200
        assert actual.info["icc_profile"] == kept["icc_profile"] and actual.info["comment"] == b"kept"
        assert actual.info["dpi"] == (300, 300) and actual.info["xmp"] == xmp.replace(b'"6"', b'"1"')
        upright = original.transpose(Image.Transpose.ROTATE_270)
        upright.info["icc_profile"] = kept["icc_profile"]
        expected = Predictor.from_weights(weights, "cpu").predict(upright)
        assert share_within(actual.convert("RGB"), expected, 4) > 0.98
    add(page, EXAMPLES[0])
    until(page, "!document.getElementById('save').disabled")
    press(page, "save")
    with Image.open(io.BytesIO(downloaded(page, f"{EXAMPLES[0].stem}_corrected.jpg"))) as actual:
        assert "icc_profile" not in actual.info
    page.find_elements("css selector", ".pick")[0].click()
    until(page, "!document.getElementById('split').hidden && !document.getElementById('save').disabled")
    choose(page, "strength", 0)
    press(page, "save")
    assert downloaded(page, "wide_corrected.jpg") == path.read_bytes()
    clear(page)
