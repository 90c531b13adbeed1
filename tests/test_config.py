import json

import pytest
from conftest import REPOSITORY

from utils.config import Config, ConfigError, config_of_checkpoint, load_config
from utils.configuration_page import configuration_page


def write(tmp_path, values, **changes):
    path = tmp_path / "c.json"
    path.write_text(json.dumps({**values, **changes}))
    return path


def test_repository_config_holds_exactly_the_required_keys_or_known_ones():
    config = load_config(REPOSITORY / "conf.json")
    assert config.layer_count_of_every_unet == (4, 3, 3, 3)
    assert Config(**{k: tuple(v) if isinstance(v, list) else v for k, v in config.to_dict().items()}) == config


def test_overrides_are_typed(small_config_path):
    overrides = ["epochs=7", "image_size=[256,128]", "init_lr=1", "train_data_dir=photos/7", "CUDA_VISIBLE_DEVICES=0,1"]
    config = load_config(small_config_path, overrides)
    assert (config.epochs, config.image_size, config.init_lr) == (7, (256, 128), 1)
    assert (config.train_data_dir, config.CUDA_VISIBLE_DEVICES) == ("photos/7", "0,1")
    assert load_config(small_config_path, ["CUDA_VISIBLE_DEVICES=1"]).CUDA_VISIBLE_DEVICES == "1"
    assert load_config(small_config_path, ['precision="float32"']).precision == "float32"
    assert load_config(small_config_path, ["precision=float32"]).precision == "float32"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epoch": 3}, ["epoch = 3", "did you mean epochs?"]),
        ({"cuda_visible_devices": "0"}, ["did you mean CUDA_VISIBLE_DEVICES?"]),
        ({"epochs": 0}, ["epochs = 0", "at least 1"]),
        ({"camera_ev_least": 6}, ["camera_ev_least = 6", "camera_ev_min = -5", "lower it"]),
        ({"epochs": 2.5}, ["epochs = 2.5", "whole number"]),
        ({"epochs": True}, ["epochs = true", "whole number"]),
        ({"epochs": "3"}, ['epochs = "3"', "whole number"]),
        ({"epochs": None}, ["epochs = null"]),
        ({"init_lr": "fast"}, ['init_lr = "fast"', "from 0 to 1"]),
        ({"init_lr": -1}, ["init_lr = -1", "from 0 to 1"]),
        ({"init_lr": float("nan")}, ["init_lr = NaN", "from 0 to 1"]),
        ({"init_lr": float("inf")}, ["init_lr = Infinity"]),
        ({"init_lr": 1e-6, "final_lr": 1e-4}, ["final_lr = 0.0001", "init_lr = 1e-06"]),
        ({"image_size": 256}, ["image_size = 256", "two whole numbers"]),
        ({"image_size": [256]}, ["image_size = [256]", "two whole numbers"]),
        ({"image_size": [256, 8]}, ["image_size = [256, 8]", "from 16 to 8192"]),
        ({"image_size": [256, False]}, ["image_size = [256, false]"]),
        ({"discriminator_image_size": [128, 128]}, ["discriminator_image_size", "from 256 to 8192"]),
        ({"layer_count_of_every_unet": [1, 2, 3]}, ["layer_count_of_every_unet", "laplacian_level_count = 2"]),
        ({"layer_count_of_every_unet": []}, ["layer_count_of_every_unet = []"]),
        ({"color_jitter_contrast": 1.5}, ["color_jitter_contrast = 1.5", "from 0 to 1"]),
        ({"train_data_dir": 5}, ["train_data_dir = 5", "text"]),
        ({"train_data_dir": "a\0b"}, ["train_data_dir", "null bytes"]),
        ({"model_save_dir": ""}, ["model_save_dir", "empty"]),
        ({"CUDA_VISIBLE_DEVICES": "0, 1"}, ['CUDA_VISIBLE_DEVICES = "0, 1"', '"0,1"']),
        ({"precision": "half"}, ['precision = "half"', "bfloat16"]),
        ({"precision": ["auto"]}, ['precision = ["auto"]']),
    ],
)
def test_bad_values_are_refused_with_key_value_and_remedy(tmp_path, small_config, changes, words):
    path = write(tmp_path, small_config, **changes)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "not JSON"),
        (b"[]", "must hold one object"),
        (b"{,}", "line 1, column 2"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"epochs": 3, "epochs": 4}', r"epochs is given 2 times \(3, 4\)"),
        (b'{"epochs": ' + b"1" * 5000 + b"}", "not usable JSON"),
        (b'{"epochs": 3}', "missing image_size, "),
    ],
)
def test_bad_files_are_refused(tmp_path, text, words):
    path = tmp_path / "c.json"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=words):
        load_config(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="absent.json: cannot be read: No such file"):
        load_config(tmp_path / "absent.json")


def test_byte_order_mark_is_fine(tmp_path, small_config):
    path = tmp_path / "c.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(small_config).encode())
    assert load_config(path).epochs == 2


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("epochs", "KEY=VALUE"),
        ("epoch=3", "did you mean epochs"),
        ("epochs=three", 'epochs = "three"'),
        ("epochs=NaN", "epochs = NaN"),
        ("epochs=" + "[" * 100_000, r"epochs = "),
    ],
)
def test_bad_overrides_are_refused(small_config_path, override, words):
    with pytest.raises(ConfigError, match=words):
        load_config(small_config_path, [override])


def test_the_table_of_keys_is_not_stale():
    shown = json.loads((REPOSITORY / "conf.json").read_text())
    page = (REPOSITORY / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == configuration_page(shown), "run: python -m utils.configuration_page > docs/configuration.md"
    for name in Config.__dataclass_fields__:
        assert page.count(f"| `{name}` |") == 1


def test_a_key_that_has_gone_says_so(small_config, tmp_path):
    path = tmp_path / "conf.json"
    path.write_text(json.dumps({**small_config, "colour_weight": 0.0}))
    with pytest.raises(ConfigError, match="colour_weight was removed.*delete"):
        load_config(path)
    assert config_of_checkpoint({**small_config, "colour_weight": 0.0}, "last.pt").batch_size == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [(["hdri_dir=x"], "needs degradation"), (["scene_share=0.2"], "needs scenes")],
)
def test_scenes_are_part_of_a_mixture(small_config_path, options, words):
    with pytest.raises(ConfigError, match=words):
        load_config(small_config_path, options)
