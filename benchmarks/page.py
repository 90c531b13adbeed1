"""Time the page in headless Chromium: loading, correcting a photo, saving it, the sliders; memory and size.

examples:
  python export.py --page site && python benchmarks/page.py site PHOTO.jpg
"""

import argparse
import functools
import http.server
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

SLIDE = """const done = arguments[0], slider = document.getElementById('exposure'), count = 90, times = [];
const step = now => {
  times.push(now);
  if (times.length > count) {
    slider.dispatchEvent(new Event('change'));
    return done(1000 * count / (times[count] - times[0]));
  }
  slider.value = 2 * Math.sin(times.length / 10);
  slider.dispatchEvent(new Event('input'));
  requestAnimationFrame(step);
};
requestAnimationFrame(step);"""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path, help="folder that export.py --page wrote")
    parser.add_argument("photo", type=Path, help="a JPEG of 12 megapixels, say")
    arguments = parser.parse_args()
    sizes = {path.name: path.stat().st_size for path in arguments.site.iterdir()}
    own = sum(size for name, size in sizes.items() if not name.startswith(("model.onnx", "ort")))
    print(f"size: {sum(sizes.values()) / 1e6:.1f} MB, the page itself {own / 1e3:.0f} kB")
    with tempfile.TemporaryDirectory() as folder, served(arguments.site) as url:
        with Image.open(arguments.photo) as photo:
            scale = (2e6 / (photo.width * photo.height)) ** 0.5
            small = Path(folder) / "two_megapixels.jpg"
            photo.resize((round(photo.width * scale), round(photo.height * scale))).save(small, quality=92)
        copies = [Path(shutil.copy(arguments.photo, Path(folder) / f"copy{index}.jpg")) for index in range(3)]
        with opened(folder) as browser:
            browser.get(url)
            print(f"ready: {until(browser, ready):.2f} s after the page")
            print(browser.find_element("id", "engine").text)
            print(f"first photo on the screen: {seconds(browser, copies[:1], shown):.2f} s")
            print(f"each of the next two: {seconds(browser, copies[1:], listed) / 2:.2f} s")
            started = time.monotonic()
            browser.execute_script("document.getElementById('save').click()")
            until(browser, lambda _: any(Path(folder).glob("*_corrected.jpg")))
            print(f"saved: {time.monotonic() - started:.2f} s")
            browser.execute_script("for (const e of document.querySelectorAll('.remove')) e.click()")
            print(f"2 MP on the screen: {seconds(browser, [small], shown):.2f} s")
            print(f"sliders: {browser.execute_async_script(SLIDE):.0f} frames a second")
            print(f"peak of the page's process: {peak_memory(browser.service.process.pid) / 1e6:.0f} MB")


def seconds(browser: Any, files: list[Path], done: Callable[[Any], bool]) -> float:
    """Add photos and return how long it takes until they are done."""
    started = time.monotonic()
    browser.find_element("id", "files").send_keys("\n".join(map(str, files)))
    until(browser, done)
    return time.monotonic() - started


def ready(browser: Any) -> bool:
    """Tell whether the network is loaded."""
    return bool(browser.execute_script("return document.documentElement.dataset.ready === ''"))


def shown(browser: Any) -> bool:
    """Tell whether a photo is on the screen."""
    script = "return !document.getElementById('split').hidden && document.querySelectorAll('.pick').length > 0"
    return bool(browser.execute_script(script))


def listed(browser: Any) -> bool:
    """Tell whether every photo is corrected."""
    return bool(browser.execute_script("return [...document.querySelectorAll('.pick canvas')].every(e => e.width > 1)"))


def until(browser: Any, done: Callable[[Any], bool]) -> float:
    """Wait until something is done and return the seconds."""
    from selenium.webdriver.support.wait import WebDriverWait

    started = time.monotonic()
    WebDriverWait(browser, 120, 0.02).until(done)
    return time.monotonic() - started


def peak_memory(driver: int) -> int:
    """Return the largest peak in bytes of the processes that show pages, below the driver's."""
    peaks = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            status = dict(
                line.split(":\t", 1) for line in (folder / "status").read_text().splitlines() if ":\t" in line
            )
        except OSError:  # it has ended
            continue
        if b"renderer" in b" ".join(words) and is_below(int(folder.name), driver):
            peaks.append(int(status["VmHWM"].split()[0]) * 1024)
    return max(peaks)


def is_below(process: int, ancestor: int) -> bool:
    """Tell whether a process was started by another, or by what that started."""
    while process > 1:
        if process == ancestor:
            return True
        try:
            process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return False


@contextmanager
def opened(downloads: str) -> Iterator[Any]:
    """Open Chromium without a window."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    words = ["headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1400,900", "enable-unsafe-swiftshader"]
    for word in words:
        options.add_argument(f"--{word}")
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    options.add_experimental_option("prefs", {"download.default_directory": downloads})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver"))) as browser:
        yield browser


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder, as `python -m http.server` does, without its log."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


if __name__ == "__main__":
    main()
