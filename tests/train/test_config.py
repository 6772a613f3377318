"""Settings: presets, TOML over them, and every wrong value named."""

import dataclasses
from pathlib import Path

import pytest
import torch

from parotid_seg.errors import InputError, OptionError
from parotid_seg.train.checkpoint import Checkpoint, save_checkpoint
from parotid_seg.train.config import INITIAL, NetworkConfig, SegmentConfig, TrainConfig
from parotid_seg.train.settings import FEW, length_note, load_config, to_toml
from parotid_seg.train.time_limit import how_to_go_on, resume_advice


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
        ("epochs = 2", "epochs: unknown key"),
        ("[segment]\nepoch = 2", "segment.epoch: unknown key"),
        ("[segment]\nepochs = 'two'", 'segment.epochs: found "two", expected a whole number'),
        ("segment = 2", "expected a table"),
        ("window_hu = 3", "window_hu: found 3, expected a list of 2 numbers"),
        ("not toml", "not TOML"),
        ("[segment]\nepochs = 0", "segment.epochs: found 0, expected 1 to 1000000"),
        ("[grid]\nsize = 100", "expected a multiple of 16"),
        ("[network]\nheads = [3, 4, 8]", "does not divide"),
        ("stages = [1]", r"stages: found \[1\], expected a list of texts"),
        ("transfer = ['head']", "transfer: found 'head'"),
        ("transfer = ['encoder', 'encoder']", "transfer: found 'encoder, encoder'"),
        ("preset = 'huge'", 'preset: found "huge", expected one of: compact'),
        ("preset = []", r"preset: found \[\], expected one of: compact"),
        ("seed = true", "seed: found true, expected a whole number"),
        (f"seed = {10**300}", r"seed: found 10{59}\.\.\., expected 0 to 4294967295"),
        ("window_hu = [300, -200]", "expected two rising numbers"),
        ("[segment]\nlearning_rate = 1e400", "segment.learning_rate: found Infinity, expected finite numbers"),
        (f"[segment]\nlearning_rate = {10**400}", "segment.learning_rate: found 10+"),
        ("[segment]\nlearning_rate = 0", "segment.learning_rate: found 0.0, expected more than 0 and at most 1"),
        ("[segment]\ngradient_norm = 0", "segment.gradient_norm: found 0.0, expected more than 0"),
        ("[segment]\nwarmup_epochs = -1", "segment.warmup_epochs: found -1.0, expected 0 or more"),
        ("[contrast.first]\ncrop = 0", "contrast.first.crop: found 0.0, expected more than 0 and at most 1"),
        ("[network]\nstem = [0, 8]", r"network.stem: found \[0, 8\], expected 1 to 4096"),
        ("'a\u001b[31m' = 1", "not TOML: Found invalid character"),
        ('"a\\u001b[31m\\n" = 1', r": a\\u001b\[31m\\n: unknown key"),
        (f"seed = {'1' * 5000}", "not TOML: found a number of over 4300 digits"),
        ("x = " + "[" * 5000 + "]" * 5000, "not TOML: found too many lists and tables within each other"),
    ],
)
def test_wrong_settings(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as raised:
        load_config("compact", path)
    assert str(raised.value).startswith(f"--config: {path}: ")
    assert str(raised.value).isprintable()


def test_files_that_are_no_text_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b'init = "\xe9"')
    with pytest.raises(InputError, match="not TOML: found bytes at 8 that are not UTF-8"):
        load_config("compact", path)
    with pytest.raises(OptionError, match="found a folder, expected a regular file"):
        load_config("compact", tmp_path)
    path.write_bytes(b"\xef\xbb\xbfseed = 3")
    assert load_config("compact", path).seed == 3


def test_the_preset_of_a_file_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("preset = 'paper'\nseed = 3")
    assert load_config("compact", path) == load_config("paper", path) == load_config("paper", seed=3)
    with pytest.raises(OptionError, match=r"found few, but --config .* has the preset paper: give one of them"):
        load_config("few", path)


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


def test_few_is_a_short_training_of_the_same_network() -> None:
    few, compact = load_config("few"), load_config("compact")
    assert (few.network, few.grid, few.augment) == (compact.network, compact.grid, compact.augment)
    assert few.stages == ("segment",)
    assert few.segment.epochs * few.segment.images_per_epoch == 18_000


def test_a_long_training_on_few_patients_names_the_short_one() -> None:
    compact = TrainConfig()
    note = (
        "10 patients and 252,000 slices: --preset few trains on 18,000, without pre-training; with --init packaged, on "
        "fewer and from the packaged model"
    )
    assert length_note(compact, 10) == note
    assert length_note(compact, 160) == ""
    assert length_note(FEW, 10) == ""
    assert length_note(dataclasses.replace(compact, segment=SegmentConfig(epochs=2)), 10) == ""
    assert length_note(dataclasses.replace(compact, stages=("contrast",)), 10) == ""


def test_few_is_short_and_careful_with_initial_weights(tmp_path: Path) -> None:
    """Wherever they are named."""
    scratch, adapted = load_config("few"), load_config("few", init="packaged")
    assert adapted.segment.learning_rate < scratch.segment.learning_rate / 5
    assert load_config("few", init="scratch") == scratch
    path = tmp_path / "settings.toml"
    path.write_text('init = "packaged"\n[segment]\nepochs = 9')
    named = load_config("few", path)
    assert named == dataclasses.replace(adapted, segment=dataclasses.replace(adapted.segment, epochs=9))
    assert load_config("few", path, init="scratch").segment.learning_rate == scratch.segment.learning_rate
    assert load_config("compact", init="packaged").segment == load_config("compact").segment


def test_few_patients_have_short_epochs() -> None:
    adapted = load_config("few", init="packaged")
    lengths = {count: adapted.with_patients({"segment": count}).segment.images_per_epoch for count in (1, 8, 20, 500)}
    each = adapted.segment.images_per_patient
    assert lengths == {1: each, 8: 8 * each, 20: 20 * each, 500: 3000}
    compact = load_config("compact")
    assert compact.with_patients({"segment": 1, "contrast": 2}) == compact


def test_advice_after_an_early_end(tmp_path: Path) -> None:
    assert resume_advice(tmp_path) == f"{tmp_path} holds no finished epoch on this machine"
    start = tmp_path / "best.pt"
    for images, what in ((8, "the weights so far"), (0, "the model of --init, unchanged")):
        training, weights = {"epochs": 0, "images": images}, {"a": torch.zeros(1)}
        save_checkpoint(Checkpoint(load_config("compact"), ("background",), ("CT",), training, weights, {}), start)
        assert resume_advice(tmp_path).endswith(f"; {start} is there: {what}")
    (tmp_path / "contrast").mkdir()
    last = tmp_path / "contrast" / "last.pt"
    last.touch()
    assert resume_advice(tmp_path) == f"{last} is whole, and --resume goes on with it"
    best = last.with_name("best.pt")
    best.touch()
    assert resume_advice(tmp_path).endswith(f"--resume goes on with it; best so far: {best}")


def test_advice_after_max_minutes() -> None:
    run = Path("run")
    assert how_to_go_on(run, 3, "of epoch 2") == "best.pt is of epoch 2; --resume continues"
    so_far, initial, none = (how_to_go_on(run, 0, best) for best in ("the weights so far", INITIAL, ""))
    assert so_far.startswith(
        "run/best.pt is there: the weights so far; no epoch is finished, so --resume has nothing to"
    )
    assert so_far.endswith(
        "start again with more minutes, or train on with --init run/best.pt; either with another --out"
    )
    assert initial.startswith("run/best.pt is there: the model of --init, unchanged; ")
    assert initial.endswith("start again with more minutes")
    assert none.startswith("there is no best.pt, as no epoch is finished, so --resume has nothing to continue")
