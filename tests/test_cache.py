import multiprocessing
import os
import shutil

import numpy as np
import pytest
from conftest import picture
from PIL import Image

from data import PhotoCache, PhotoDataset
from data import cache as module
from utils.photos.reading import PhotoError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photos").mkdir()
    for index in range(6):
        picture(200, 150, seed=index).save(tmp_path / "photos" / f"{index}.jpg", quality=95)
    return tmp_path / "photos"


@pytest.fixture(autouse=True)
def any_disk(monkeypatch):
    """How full the disk is that the tests run on does not matter."""
    monkeypatch.setattr(module, "SPARE_DISK", 0)


def entries(path):
    return sorted(path.glob("*.npy"))


def test_a_view_is_the_same_with_and_without_the_cache(folder, tmp_path):
    options = {"jitter": (0.0, 0.0, 0.0, 0.0), "seed": 0, "crop_min_area": 0.3}
    plain = PhotoDataset(folder, (48, 40), **options)
    cached = PhotoDataset(folder, (48, 40), **options, cache=PhotoCache(tmp_path / "cache", 10**9))
    for _ in range(2):  # filling it, and from it
        for index in range(6):
            assert (plain[1, index][0][0] == cached[1, index][0][0]).all()
    assert len(entries(tmp_path / "cache")) == 6


def test_a_photo_is_decoded_once(folder, tmp_path, monkeypatch):
    decoded = []
    original = module.read_photo
    monkeypatch.setattr(module, "read_photo", lambda *a: decoded.append(a) or original(*a))
    for _ in range(2):  # a later run reads what an earlier one wrote
        cache = PhotoCache(tmp_path / "cache", 10**9)
        for _ in range(3):
            image = cache.read(folder / "0.jpg", 64)
    assert len(decoded) == 1 and min(image.size) == 64
    shutil.copy(folder / "0.jpg", folder / "copy.jpg")  # the same content
    cache.read(folder / "copy.jpg", 64)
    assert len(decoded) == 1
    cache.read(folder / "0.jpg", 100)  # another size
    assert len(decoded) == 2


def test_an_edited_photo_is_a_new_one(folder, tmp_path):
    cache = PhotoCache(tmp_path / "cache", 10**9)
    before = np.asarray(cache.read(folder / "0.jpg", 64))
    Image.new("RGB", (200, 150), (255, 0, 0)).save(folder / "0.jpg")
    assert (np.asarray(cache.read(folder / "0.jpg", 64)) != before).any()


def test_a_small_photo_is_not_enlarged(folder, tmp_path):
    assert PhotoCache(tmp_path / "cache", 10**9).read(folder / "0.jpg", 400).size == (200, 150)


@pytest.mark.parametrize("damage", [b"", b"junk", None])
def test_a_damaged_entry_is_replaced(folder, tmp_path, damage):
    cache = PhotoCache(tmp_path / "cache", 10**9)
    before = np.asarray(cache.read(folder / "0.jpg", 64))
    [entry] = entries(tmp_path / "cache")
    whole = entry.read_bytes()
    entry.write_bytes(whole[:-100] if damage is None else damage)
    assert (np.asarray(cache.read(folder / "0.jpg", 64)) == before).all()
    assert entry.read_bytes() == whole


def test_the_cache_is_bounded_and_what_is_not_used_makes_room(folder, tmp_path):
    size = 64 * 85 * 3
    earlier = PhotoCache(tmp_path / "cache", int(4.5 * size))
    for index in range(6):
        earlier.read(folder / f"{index}.jpg", 64)
    kept = entries(tmp_path / "cache")
    assert len(kept) == 4  # the first four stay: an epoch passes over all photos in turn
    for path in kept:
        os.utime(path, (1, 1))  # as if from long ago
    later = PhotoCache(tmp_path / "cache", int(4.5 * size))
    later.read(folder / "0.jpg", 64)
    for index in (4, 5):
        later.read(folder / f"{index}.jpg", 64)
    assert len(entries(tmp_path / "cache")) == 4
    names = {path.name for path in entries(tmp_path / "cache")}
    assert {f"{later._digest(folder / f'{i}.jpg')}-64.npy" for i in (0, 4, 5)} <= names


def test_a_disk_that_is_nearly_full_is_left_alone(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SPARE_DISK", 10**18)
    assert PhotoCache(tmp_path / "cache", 10**9).read(folder / "0.jpg", 64).size == (85, 64)
    assert not entries(tmp_path / "cache")


def test_a_folder_that_cannot_be_made_is_done_without(folder, tmp_path):
    (tmp_path / "file").write_text("")
    assert PhotoCache(tmp_path / "file" / "cache", 10**9).read(folder / "0.jpg", 64).size == (85, 64)


def test_unreadable_photos_raise_the_same_error(folder, tmp_path):
    (folder / "0.jpg").write_bytes((folder / "0.jpg").read_bytes()[:500])
    for limit in (0, 10**9):
        with pytest.raises(PhotoError, match="damaged or cut short"):
            PhotoCache(tmp_path / "cache", limit).read(folder / "0.jpg", 64)
        with pytest.raises(PhotoError, match="No such file"):
            PhotoCache(tmp_path / "cache", limit).read(folder / "absent.jpg", 64)


def fill(folder, cache, failures):
    reader = PhotoCache(cache, 10**9)
    for _ in range(5):
        for index in range(6):
            if reader.read(folder / f"{index}.jpg", 64).size != (85, 64):
                failures.put(index)


def test_processes_may_share_a_cache(folder, tmp_path):
    context = multiprocessing.get_context("fork")
    failures = context.Queue()
    processes = [context.Process(target=fill, args=(folder, tmp_path / "cache", failures)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert failures.empty() and len(entries(tmp_path / "cache")) == 6
    assert not list((tmp_path / "cache").glob(".unfinished-*"))
