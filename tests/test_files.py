import dataclasses
import json
import os
import stat
import threading
from types import SimpleNamespace

import pytest
import torch
from conftest import REPOSITORY
from safetensors.torch import save_file

from models import build_generator
from utils.config import load_config
from utils.files import atomic_path, remove_unfinished, sha256, write_text
from utils.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from utils.weights import WeightsError, load_weights, save_weights

ARCHITECTURE = {"layer_count_of_every_unet": [1, 1], "first_layer_out_channels_of_every_unet": [4, 4]}


def test_atomic_write_is_whole_or_nothing(tmp_path):
    path = tmp_path / "f.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["f.txt"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_kill_during_a_checkpoint_leaves_the_previous_one(tmp_path, fork):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"step": 1})
    program = f"""
from pathlib import Path
from utils.training import checkpoint
os.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)  # the last moment before the rename
checkpoint.save_checkpoint(Path({str(path)!r}), {{"step": 2}})
"""
    assert fork("train", before=program).wait() == -9
    assert load_checkpoint(path)["step"] == 1


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"x" * 100])
def test_damaged_checkpoint_is_named(tmp_path, damage):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"weights": torch.rand(1000)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match="last.pt: damaged"):
        load_checkpoint(path)


def test_checkpoint_executes_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"version": 1, "x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="evil.pt"):
        load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_checkpoint_into_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_checkpoint(tmp_path / "absent" / "last.pt", {})


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "w.safetensors"
    generator = build_generator(SimpleNamespace(**ARCHITECTURE))
    save_weights(path, generator.state_dict(), architecture=ARCHITECTURE, working_size=96, training={"epoch": 3})
    return path


def test_weights_carry_their_architecture(weights):
    loaded = load_weights(weights)
    build_generator(loaded.architecture).load_state_dict(loaded.state)
    assert (loaded.working_size, loaded.training) == (96, {"epoch": 3})
    assert all(tensor.dtype == torch.float32 for tensor in loaded.state.values())
    digest, name = (weights.parent / "w.safetensors.sha256").read_text().split()
    assert name == "w.safetensors" and len(digest) == 64


def test_one_flipped_bit_is_found(weights):
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    with pytest.raises(WeightsError, match="damaged: SHA-256"):
        load_weights(weights)


def test_missing_digest_missing_file_and_foreign_files_are_named(weights, tmp_path):
    with pytest.raises(WeightsError, match="absent.safetensors: No such file"):
        load_weights(tmp_path / "absent.safetensors")
    with pytest.raises(WeightsError, match=r"last.pt: not a weights file"):
        load_weights(tmp_path / "last.pt")
    save_file({"x": torch.zeros(1)}, weights)
    (tmp_path / "w.safetensors.sha256").write_text(f"{sha256(weights)}  w.safetensors\n")
    with pytest.raises(WeightsError, match="not written by this project"):
        load_weights(weights)
    (tmp_path / "w.safetensors.sha256").unlink()
    with pytest.raises(WeightsError, match="digest w.safetensors.sha256 is missing"):
        load_weights(weights)


def test_released_weights_are_what_their_digest_and_card_say():
    loaded = load_weights(REPOSITORY / "weights" / "msec.safetensors")
    generator = build_generator(loaded.architecture)
    generator.load_state_dict(loaded.state)
    card = (REPOSITORY / "weights" / "README.md").read_text(encoding="utf-8")
    assert f"{sum(parameter.numel() for parameter in generator.parameters()):,} parameters" in card
    assert loaded.working_size == loaded.training["config"]["working_size"]
    for path in (REPOSITORY / "weights").glob("*.safetensors"):
        loaded = load_weights(path)
        build_generator(loaded.architecture).load_state_dict(loaded.state)
        assert f"`{path.name}`" in card and loaded.training["config"]["train_data_dir"] == "data/train"


def test_the_released_weights_are_what_conf_json_trains():
    """But for the number of loading processes, which changes no bit, and keys that came later, at their defaults."""
    loaded = load_weights(REPOSITORY / "weights" / "msec.safetensors")
    header, config = loaded.training["config"], load_config(REPOSITORY / "conf.json")
    assert loaded.least_size == config.least_size == 40
    current = json.loads(json.dumps(config.to_dict()))
    defaults = {item.name: item.default for item in dataclasses.fields(config)}
    for key in current.keys() - {"num_workers"}:
        assert current[key] == (header[key] if key in header else defaults[key]), key
    assert header["seed"] == 0 and header["init_weights"] == ""


def test_threads_do_not_loosen_the_umask(tmp_path):
    before = os.umask(0o022)
    os.umask(before)

    def work(index):
        for _ in range(50):
            write_text(tmp_path / f"{index}.txt", "x")

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = os.umask(0o022)
    os.umask(after)
    assert after == before


def test_unfinished_files_of_dead_processes_are_removed_and_of_live_ones_kept(tmp_path):
    (tmp_path / ".unfinished-dead.jpg").write_bytes(b"half")
    (tmp_path / ".other").write_bytes(b"mine")
    with atomic_path(tmp_path / "a.txt") as temporary:
        remove_unfinished(tmp_path)
        assert temporary.exists() and not (tmp_path / ".unfinished-dead.jpg").exists()
        temporary.write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other", "a.txt"]
    remove_unfinished(tmp_path / "absent")
