import dataclasses
import functools
import gc
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked import Forked, start_server
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: the cores are shared out by running tests in parallel
# What imports torch is imported in the fixtures: the process that only hands out tests need not.
gc.disable()  # until all is imported: importing makes objects by the million, and no garbage


def pytest_collection_finish() -> None:
    """Collect garbage from now on, but never look at what was imported."""
    gc.freeze()
    gc.enable()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let the tests that fork run one after the other: they need one server, and times to kill at."""
    if "fork" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.xdist_group("fork"))


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth colourful picture with an edge: photo-like enough to learn from."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    waves = [np.sin(2 * np.pi * (rng.uniform(0.5, 3) * x + rng.uniform(0.5, 3) * y + rng.uniform())) for _ in range(3)]
    pixels = 0.5 + 0.3 * np.stack(waves, axis=-1)
    pixels[height // 3 : height // 2, width // 4 : width // 2] *= 0.4
    return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))


def chromium(*words: str) -> tuple[Any, Callable[[Any], Any]]:
    """Return options of headless Chromium, with these besides, and what starts one with options; skip without it."""
    webdriver = pytest.importorskip("selenium.webdriver")
    driver = shutil.which("chromedriver")
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not driver or not binary:
        pytest.skip("no Chromium with its driver here")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for word in ("headless=new", "no-sandbox", "disable-dev-shm-usage", *words):
        options.add_argument(f"--{word}")
    return options, lambda options: webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


@pytest.fixture(autouse=True)
def small_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let curves.png have few pixels: every run draws it after every epoch."""
    from utils.training import plots

    monkeypatch.setattr("utils.training.run_folder.draw_curves", functools.partial(plots.draw_curves, size=(140, 100)))


@pytest.fixture(autouse=True)
def cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run scripts on the CPU, in this process and in those it starts: bit-exactness is claimed there."""
    import torch

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("utils.device.choose_device", lambda: torch.device("cpu"))


def make_discriminator_thin(patch: Callable[[str, Any], None]) -> None:
    """Let the discriminator cost nothing: few channels, and photos of 32 px instead of 256."""
    from models import Discriminator
    from utils.training.objective import resize

    patch("models.discriminator.MIN_SIZE", 32)
    patch("models.Discriminator", functools.partial(Discriminator, channels=(2,) * 4))
    patch("train.resize", lambda photo, size: resize(photo, (32, 32)))


@pytest.fixture
def thin_discriminator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train with a small discriminator, where what is written and said is tested, and not what is learnt."""
    make_discriminator_thin(monkeypatch.setattr)


@pytest.fixture
def thin_prenet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let PReNet be small, where its training is tested, and not its size."""
    monkeypatch.setattr("models.prenet.CHANNELS", 4)
    monkeypatch.setattr("models.prenet.ITERATIONS", 2)


@pytest.fixture(scope="session")
def server() -> Iterator[Any]:
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    with start_server() as process:
        yield process
        process.stdin.close()


@pytest.fixture
def fork(server: Any, tmp_path: Path) -> Iterator[Callable[..., Forked]]:
    """Start a script: `fork("train", "--config", path)`; training has a thin discriminator."""
    started: list[Forked] = []

    def start(script: str, *words: object, folder: Path = REPOSITORY, before: str = "") -> Forked:
        log = tmp_path / f"process{len(started)}"
        started.append(Forked(server, log, script, list(map(str, words)), folder, before))
        return started[-1]

    yield start
    for process in started:
        process.end()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of train/ (10 photos, one in a sub-folder) and valid/ (3)."""
    for name, count in (("train", 10), ("valid", 3)):
        (tmp_path / name / "sub").mkdir(parents=True)
        for index in range(count):
            folder = tmp_path / name / ("sub" if index == 0 else "")
            picture(80 - 8 * (index % 3), 64, seed=index + 100 * (name == "valid")).save(
                folder / f"{name}{index}.jpg", quality=95
            )
    return tmp_path


@pytest.fixture
def small_config(photos: Path) -> dict:
    """The required keys of conf.json and the jitter's gamma, with a network and a run that take seconds."""
    from utils.config import Config

    values = json.loads((REPOSITORY / "conf.json").read_text())
    optional = {item.name for item in dataclasses.fields(Config) if item.default is not dataclasses.MISSING}
    return {
        **{key: value for key, value in values.items() if key not in optional - {"color_jitter_gamma"}},
        "image_size": [16, 24],
        "train_data_dir": str(photos / "train"),
        "valid_data_dir": str(photos / "valid"),
        "batch_size": 4,
        "epochs": 2,
        "begin_use_adv_loss_epoch": 2,
        "num_workers": 0,
        "model_save_dir": str(photos / "run"),
        "photo_cache_dir": str(photos / "cache"),
        "laplacian_level_count": 2,
        "layer_count_of_every_unet": [1, 1],
        "first_layer_out_channels_of_every_unet": [4, 4],
    }


@pytest.fixture
def small_config_path(small_config: dict, tmp_path: Path) -> Path:
    path = tmp_path / "conf.json"
    path.write_text(json.dumps(small_config))
    return path


@pytest.fixture(scope="session")
def kept_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def trained(small_config_path: Path, photos: Path, kept_runs: Path) -> Callable[..., Path]:
    """Leave the run of `small_config` for one epoch, with a thin discriminator, in its folder, and return the folder.

    `trained("conv=daconv")`: with these overrides. Every run is made once, and copied from then on.
    """

    def leave(*overrides: str) -> Path:
        kept = kept_runs / " ".join(("run", *overrides))
        if not kept.exists():
            import train

            words = [word for override in ("epochs=1", *overrides) for word in ("--set", override)]
            with pytest.MonkeyPatch.context() as patch:
                make_discriminator_thin(patch.setattr)
                assert train.main(["--config", str(small_config_path), *words]) == 0
            shutil.copytree(photos / "run", kept)
        else:
            shutil.copytree(kept, photos / "run")
        return photos / "run"

    return leave


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A folder of five pairs, inputs darker than targets by less and less."""
    for index in range(5):
        image = picture(90, 60 + index, seed=index)
        for name, level in (("input", 0.4 + 0.1 * index), ("gt", 1.0)):
            (tmp_path / "pairs" / name).mkdir(parents=True, exist_ok=True)
            image.point(lambda value, level=level: int(value * level)).save(tmp_path / "pairs" / name / f"{index}.png")
    return tmp_path / "pairs"
