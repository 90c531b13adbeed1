import json
import os
import signal
import tarfile

import numpy as np
import pytest
import torch
from conftest import picture
from test_parallel import EXACT, FORKED, SMALL, children_of, wait_for_checkpoint, words
from test_train import run, same

from data import EpochBatches, PhotoDataset, ShardError
from data.cache import PhotoCache
from data.shards import as_file, main, open_shards, pack
from utils.config import ConfigError, load_config
from utils.training.checkpoint import load_checkpoint

NO_JITTER = (0.0, 0.0, 0.0, 0.0)


@pytest.fixture
def shards(photos):
    """Three shards of the ten training photos, each with its index."""
    found = pack(photos / "train", photos / "shards" / "train", megabytes=1)
    assert len(found) == 1  # of small photos
    lengths = sorted(path.stat().st_size for path in (photos / "train").rglob("*.jpg"))
    return pack(photos / "train", photos / "shards" / "train", megabytes=4 * lengths[-1] / 1e6)


def shard_order(shards, seed=1, epoch=1, views=1):
    batches = EpochBatches(views * sum(shards), 1, seed=seed, shards=shards)
    batches.epoch = epoch
    return [key[1] for batch in batches for key in batch]


def test_views_of_shards_are_those_of_the_folder(photos, shards, tmp_path):
    assert len(shards) >= 3
    options = {"jitter": NO_JITTER, "seed": 3, "crop_min_area": 0.5}
    folder = PhotoDataset(photos / "train", (24, 32), **options)
    packed = PhotoDataset(list(map(str, shards)), (24, 32), **options, cache=PhotoCache(tmp_path / "c", limit=10**8))
    assert sum(packed.shards) == len(packed) == 10 and packed.sizes == folder.sizes
    assert [name.split("/", 1)[1] for name in packed.names] == folder.names
    for _ in range(2):  # the second time from the cache
        for index in range(10):
            assert torch.equal(folder[1, index][0][0], packed[1, index][0][0])


def test_an_index_says_what_the_shard_says(shards):
    members, _ = open_shards(shards)
    for path in shards:
        with tarfile.open(path) as archive:  # anyone can read it
            of_shard = [member for member in members if member.shard == path]
            assert [entry.name for entry in archive] == [member.name for member in of_shard]
            for member in of_shard:
                assert archive.extractfile(member.name).read() == member.read()
    for path in shards:
        os.remove(f"{path}.json")
    assert open_shards([shards[0].parent / "*.tar"]) == (members, [])


def test_the_same_photos_make_the_same_shards(photos, shards):
    before = [path.read_bytes() for path in shards]
    assert main([str(photos / "train"), str(photos / "again" / "a"), "--megabytes", "1000"]) == 0
    assert main([str(photos / "train"), str(photos / "again" / "b"), "--megabytes", "1000"]) == 0
    first, second = ((photos / "again" / f"{name}-000000.tar").read_bytes() for name in "ab")
    assert first == second and before == [path.read_bytes() for path in shards]


def test_an_epoch_passes_over_all_views_and_mixes_few_shards_at_a_time():
    shards = [3, 5] * 40
    starts = np.cumsum([0, *shards])
    for views in (1, 2):
        order = np.array(shard_order(shards, views=views))
        assert sorted(order) == list(range(views * sum(shards)))
        of_shard = np.searchsorted(starts, order % sum(shards), side="right") - 1
        spans = [np.ptp(np.flatnonzero(of_shard == shard)) + 1 for shard in range(len(shards))]
        assert max(spans) <= views * 16 * 5 < views * sum(shards) / 2
    assert shard_order(shards) != shard_order(shards, epoch=2) != shard_order(shards, seed=2)
    resumed = EpochBatches(sum(shards), 7, seed=1, shards=shards)
    whole = list(resumed)
    resumed.first_batch = 20
    assert list(resumed) == whole[20:]
    parts = [list(EpochBatches(sum(shards), 7, seed=1, shards=shards, rank=r, processes=2)) for r in (0, 1)]
    assert [sorted(a + b) for a, b in zip(*parts, strict=True)] == [sorted(batch) for batch in whole]


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="reads the processes from /proc")
def test_two_processes_killed_resume_to_the_same_end(small_config_path, photos, shards, fork):
    listed = json.dumps([str(path) for path in shards])
    options = (*EXACT, *SMALL, f"train_data_dir={listed}", "begin_use_adv_loss_epoch=99", "epochs=4")
    whole = fork("train", *words(small_config_path, *options, f"model_save_dir={photos / 'whole'}"), before=FORKED)
    killed = words(small_config_path, *options, "checkpoint_every_steps=1")
    process = fork("train", *killed, before=FORKED)
    wait_for_checkpoint(process, photos)
    for rank in children_of(process):
        os.kill(rank, signal.SIGKILL)
    assert process.wait() == 1
    assert load_checkpoint(photos / "run" / "last.pt")["epoch"] <= 4, "it was over before it could be killed"
    process = fork("train", *killed, before=FORKED)
    output, errors = process.communicate()
    assert process.returncode == 0 and "resuming in epoch" in errors, errors
    assert whole.wait() == 0
    runs = [load_checkpoint(photos / name / "last.pt") for name in ("whole", "run")]
    assert same(runs[0]["generator"], runs[1]["generator"])


def test_shards_that_cannot_be_used_are_named(photos, shards, small_config_path, capsys):
    with pytest.raises(ShardError, match="none.tar: No such file"):
        open_shards([photos / "none.tar"])
    with pytest.raises(ShardError, match=r"no\*.tar: no shards of this name"):
        open_shards([photos / "no*.tar"])
    shards[0].write_bytes(shards[0].read_bytes()[:-512])
    with pytest.raises(ShardError, match="its index says .*: delete .*json, or pack the shard again"):
        open_shards(shards)
    assert run(small_config_path, f"train_data_dir={json.dumps([str(shards[0])])}") == 2
    assert "pack the shard again" in capsys.readouterr().err
    (photos / "shards" / "x.tar").write_text("no tar file, whatever its name says" * 40)
    with pytest.raises(ShardError, match="x.tar: not a tar file"):
        open_shards([photos / "shards" / "x.tar"])
    with pytest.raises(ShardError, match="no photos to pack"):
        pack(photos / "shards", photos / "shards" / "none")
    with pytest.raises(ShardError, match="listed twice"):
        open_shards([*shards[1:], shards[-1]])
    for wrong in ("[]", '["a.zip"]', "[1]"):
        with pytest.raises(ConfigError, match="a folder, or a list of shards"):
            load_config(small_config_path, [f"train_data_dir={wrong}"])


def test_a_photo_that_is_none_is_named_and_the_others_are_used(photos, tmp_path):
    (tmp_path / "shard").mkdir()
    picture(40, 30).save(tmp_path / "shard" / "good.png")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "shard" / "good.png", "a/good.png")
        (tmp_path / "bad.jpg").write_text("not a photo")
        archive.add(tmp_path / "bad.jpg", "bad.jpg")
        archive.add(tmp_path / "bad.jpg", "good.json")
    members, failures = open_shards([tmp_path / "x.tar"])
    assert [(member.name, member.size) for member in members] == [("a/good.png", (40, 30))]
    assert [path for path, _ in failures] == [f"{tmp_path / 'x.tar'}/bad.jpg"]
    with as_file(members[0]) as path:
        assert path.read_bytes() == (tmp_path / "shard" / "good.png").read_bytes() and path.suffix == ".png"


def test_a_photo_to_validate_on_is_found_in_a_shard(photos, shards, small_config_path, capsys):
    copied = photos / "valid" / "copy.jpg"
    copied.write_bytes((photos / "train" / "train3.jpg").read_bytes())
    assert run(small_config_path, f"train_data_dir={json.dumps([str(path) for path in shards])}") == 2
    assert "copy.jpg is also in the training set" in capsys.readouterr().err


def test_a_set_packed_again_leaves_nothing_of_the_old_one(photos, shards, monkeypatch, capsys):
    assert len(shards) >= 3
    prefix = photos / "shards" / "train"
    kept = shards[-1].read_bytes()
    (again,) = pack(photos / "train", prefix)
    assert f"deleted {shards[-1]}: of an earlier set" in capsys.readouterr().err
    assert sorted(path.name for path in prefix.parent.iterdir()) == [again.name, f"{again.name}.json"]
    assert len(open_shards([photos / "shards" / "*.tar"])[0]) == 10
    shards[-1].write_bytes(kept)  # as a kill before its deletion leaves it
    with pytest.raises(ShardError, match=r"is in .*train-000000.tar too: pack the folder again"):
        open_shards([photos / "shards" / "*.tar"])
    first = min((photos / "train").rglob("*.jpg"))
    first.rename(first.with_name("zz.jpg"))

    def killed(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("data.shards.write_text", killed)
        pack(photos / "train", prefix)
    members, failures = open_shards([again])  # the new shard, without the old one's index
    assert not failures and "zz.jpg" in {member.name.rpartition("/")[2] for member in members}
