"""Settings: presets, TOML over them, and every wrong value named."""

from pathlib import Path

import pytest

from parotid_seg.errors import InputError
from parotid_seg.train.config import NetworkConfig, SegmentConfig, TrainConfig
from parotid_seg.train.settings import load_config, to_toml


def test_resolved_settings_read_back_equal(tmp_path: Path) -> None:
    changed = load_config("compact", seed=7)
    path = tmp_path / "config.toml"
    path.write_text(to_toml(changed))
    assert load_config("compact", path) == changed
    assert changed.seed == 7


def test_toml_over_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("seed = 3\n[segment]\nepochs = 2\nlearning_rate = 1\n[grid]\noffsets_mm = [-3, 0, 3]\n")
    config = load_config("compact", path)
    assert (config.seed, config.segment.epochs, config.segment.learning_rate) == (3, 2, 1.0)
    assert config.grid.offsets_mm == (-3.0, 0.0, 3.0)
    assert config.network == TrainConfig().network


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epochs = 2", "unknown key 'epochs'"),
        ("[segment]\nepoch = 2", "unknown key 'epoch'"),
        ("[segment]\nepochs = 'two'", "Expected `int`, got `str`"),
        ("segment = 2", "expected a table"),
        ("window_hu = 3", "Expected `array`, got `int`"),
        ("not toml", "not TOML"),
        ("[segment]\nepochs = 0", "at least 1"),
        ("[grid]\nsize = 100", "expected a multiple of 16"),
        ("[network]\nheads = [3, 4, 8]", "does not divide"),
        ("stages = [1]", "stages: found '\\[1\\]'"),
        ("transfer = ['head']", "transfer: found 'head'"),
    ],
)
def test_wrong_settings(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        load_config("compact", path)


def test_unknown_preset_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--preset"):
        load_config("huge")
    with pytest.raises(InputError, match="cannot be read"):
        load_config("compact", tmp_path / "gone.toml")


def test_calm_epochs_halve_all_but_mirroring() -> None:
    augment = TrainConfig().augment
    assert augment.halved().rotation_deg == augment.rotation_deg / 2
    assert augment.halved().mirror_probability == augment.mirror_probability


def test_shares_and_stages() -> None:
    with pytest.raises(InputError, match="share"):
        SegmentConfig(gland_share=0.8, border_share=0.3)
    with pytest.raises(InputError, match="depths"):
        NetworkConfig(depths=(2, 2), heads=(2, 4, 8))
