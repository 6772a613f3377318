"""First weights from other models: what fits is taken, everything else is accounted for, nothing fits is an error."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformer

from parotid_seg.errors import InputError
from parotid_seg.train.checkpoint import Checkpoint, build_network, save_checkpoint
from parotid_seg.train.config import TrainConfig
from parotid_seg.train.network import SwinUnet
from parotid_seg.train.settings import load_config
from parotid_seg.train.transfer import part_of, start_from
from tests.command_line import Run


@pytest.fixture
def config(small_config: Path) -> TrainConfig:
    return load_config("compact", small_config)


@pytest.fixture
def net(config: TrainConfig) -> SwinUnet:
    return build_network(config, 1, 3).unet


def swin(config: TrainConfig, **changes: Any) -> SwinTransformer:
    network = config.network
    settings = {"depths": network.depths, "num_heads": network.heads, "window_size": network.window}
    settings |= {"img_size": config.grid.size, "embed_dim": network.embed_dim, "num_classes": 5}
    return SwinTransformer(**{**settings, **changes})


def official(model: SwinTransformer) -> dict[str, dict[str, torch.Tensor]]:
    """The form of the official repository's files: under "model", downsampling one stage earlier, buffers included."""
    weights = {}
    for name, value in model.state_dict().items():
        words = name.split(".")
        if "downsample" in words:
            words[1] = str(int(words[1]) - 1)
        weights[".".join(words).replace("head.fc.", "head.")] = value
    weights["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(4)
    return {"model": weights}


@pytest.mark.parametrize("form", [official, lambda model: model.state_dict()])
def test_an_encoder_file_fills_the_encoder_and_is_mirrored_into_the_decoder(
    config: TrainConfig, net: SwinUnet, tmp_path: Path, form: Callable[..., Any]
) -> None:
    source = swin(config)
    path = tmp_path / "swin.pth"
    torch.save(form(source), path)
    transfer = start_from(str(path), net, ("encoder", "decoder"))
    weights, own = source.state_dict(), net.state_dict()
    for name, value in weights.items():
        if name.startswith(("norm.", "head.")):
            assert any(left.startswith(f"encoder.{name.split('.')[0]}") for left in transfer.left_out)
        elif name == "patch_embed.proj.weight":
            assert value.shape[1] == own[f"encoder.{name}"].shape[1] == 3
        else:
            torch.testing.assert_close(own[f"encoder.{name}"], value)
    torch.testing.assert_close(own["decoder.0.blocks.0.attn.qkv.weight"], weights["layers.0.blocks.0.attn.qkv.weight"])
    trained = [name for name in weights if not name.startswith(("norm.", "head."))]
    blocks = [name for name in weights if name.startswith("layers.0.blocks")]
    assert len(transfer.taken) == len(trained) + len(blocks)
    assert set(transfer.taken) | set(transfer.random) == set(own)
    assert "classify.weight" in transfer.random


def test_only_the_part_that_was_asked_for_is_filled(config: TrainConfig, net: SwinUnet, tmp_path: Path) -> None:
    torch.save(swin(config).state_dict(), tmp_path / "swin.pth")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    transfer = start_from(str(tmp_path / "swin.pth"), net, ("encoder",))
    assert {part_of(name) for name in transfer.taken} == {"encoder"}
    for name, value in net.state_dict().items():
        if name not in transfer.taken:
            torch.testing.assert_close(value, before[name])
    assert any("only encoder was asked for" in reason for reason in transfer.left_out.values())


def test_other_window_channels_and_depth(config: TrainConfig, net: SwinUnet, tmp_path: Path) -> None:
    """A wider window is interpolated, more blocks than the model has are named, channels are adapted."""
    wide = swin(config, window_size=7, depths=(1, 3))
    torch.save(official(wide), tmp_path / "swin.pth")
    transfer = start_from(str(tmp_path / "swin.pth"), net, ("encoder",))
    assert "encoder.layers.0.blocks.0.attn.relative_position_bias_table" in transfer.taken
    assert transfer.left_out["encoder.layers.1.blocks.2.norm1.weight"] == "the model has no such weight"
    many = build_network(load_config("compact"), 1, 3).unet
    filters = torch.rand(64, 3, 4, 4)
    torch.save({"patch_embed.proj.weight": filters}, tmp_path / "filters.pth")
    start_from(str(tmp_path / "filters.pth"), many, ("encoder",))
    found = many.encoder.patch_embed.proj.weight
    torch.testing.assert_close(found[:, 3:6], filters * 3 / found.shape[1])


GLANDS = ("background", "parotid_left", "parotid_right")


@pytest.mark.parametrize(
    ("labels", "parts", "new"),
    [
        (GLANDS, ("encoder", "decoder"), set()),
        (GLANDS, ("encoder",), {"decoder", "classifier"}),
        (("background", "tumour", "gland"), ("encoder", "decoder"), {"classifier"}),
        (("background", *(f"organ{index}" for index in range(7))), ("encoder", "decoder"), {"classifier"}),
    ],
)
def test_our_checkpoint_fills_what_is_asked_for_and_the_classifier_only_of_the_same_labels(
    config: TrainConfig, net: SwinUnet, tmp_path: Path, labels: tuple[str, ...], parts: tuple[str, ...], new: set[str]
) -> None:
    source = build_network(config, 1, len(labels))
    save_checkpoint(Checkpoint(config, labels, ("CT",), {}, source.state_dict(), {}), tmp_path / "best.pt")
    transfer = start_from(str(tmp_path / "best.pt"), net, parts, labels=GLANDS)
    own, given = net.state_dict(), source.unet.state_dict()
    for name in transfer.taken:
        torch.testing.assert_close(own[name], given[name])
    assert {part_of(name) for name in transfer.random} == new
    assert set(transfer.left_out) == set(transfer.random)


def test_the_same_channels_in_another_order_are_refused(config: TrainConfig, tmp_path: Path) -> None:
    path, channels = tmp_path / "best.pt", ("T1", "T2")
    weights = build_network(config, 2, 3).state_dict()
    save_checkpoint(Checkpoint(config, GLANDS, channels, {}, weights, {}), path)
    net = build_network(config, 2, 3).unet
    words = r"best.pt: found the channels T2, T1, expected them in its order: T1, T2"
    with pytest.raises(InputError, match=words):
        start_from(str(path), net, ("encoder",), channels=channels[::-1])
    for given in (channels, ("T1", "FLAIR")):
        assert start_from(str(path), net, ("encoder",), channels=given).channels == channels


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "expected scratch, packaged, imagenet or a file"),
        (b"text", "expected a file written by torch.save"),
        ({"model": {}}, "found no weights"),
        ({"epoch": 3}, "found no weights"),
        ({"conv1.weight": torch.zeros(3)}, "no weight fits the model's encoder: the model has no such weight"),
        ({"layers.0.blocks.0.norm1.weight": torch.zeros(3)}, r"its shape \(3,\) differs from the model's \(16,\)"),
    ],
)
def test_a_start_that_fits_nothing_is_an_error(
    net: SwinUnet, tmp_path: Path, content: bytes | dict[str, Any] | None, words: str
) -> None:
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(InputError, match=words):
        start_from(str(path), net, ("encoder", "decoder"))


def test_imagenet_weights_are_fetched_by_timm_for_the_published_widths(
    net: SwinUnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"embed_dim 16, expected one of 96, 128, 192"):
        start_from("imagenet", net, ("encoder",))
    config = load_config("compact")
    paper = SwinUnet(
        config.network.__class__(embed_dim=96, depths=(2, 2, 2, 2), heads=(3, 6, 12, 24), window=7), 224, 3, 3
    )
    real, asked = timm.create_model, []

    def create(name: str, pretrained: bool) -> Any:
        asked.append((name, pretrained))
        return real(name, pretrained=False)

    monkeypatch.setattr(timm, "create_model", create)
    transfer = start_from("imagenet", paper, ("encoder", "decoder"))
    assert asked == [("swin_tiny_patch4_window7_224.ms_in1k", True)]
    assert transfer.left_out["encoder.layers.2.blocks.5.norm1.weight"] == "the model has no such weight"
    assert sum(part_of(name) == "encoder" for name in transfer.taken) > 100

    def offline(name: object, pretrained: object) -> None:
        raise RuntimeError("no route to host\nand more")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(InputError, match=r"cannot be fetched \(no route to host\); without internet"):
        start_from("imagenet", paper, ("encoder",))


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
def test_train_prints_and_saves_the_account(
    command: Run, balls: Path, short_config: Path, config: TrainConfig, tmp_path: Path
) -> None:
    torch.save(official(swin(config)), tmp_path / "swin.pth")
    run = ("train", balls, "--out", tmp_path / "run", "--config", short_config, "--device", "cpu")
    done = command(*run, "--init", tmp_path / "swin.pth", "--transfer", "encoder", "--max-minutes", 0.001)
    assert done.returncode == 0, done.stderr
    assert f"weights from {tmp_path / 'swin.pth'}" in done.stdout
    account = json.loads((tmp_path / "run" / "transfer.json").read_text())
    assert account["parts"] == ["encoder"]
    assert len(account["taken"]) > 20
    wrong = command(*run[:3], tmp_path / "other", *run[4:], "--init", tmp_path / "gone.pth")
    assert wrong.returncode == 2
    assert "expected scratch, packaged, imagenet or a file" in wrong.stderr
    parts = command(*run[:3], tmp_path / "other", *run[4:], "--transfer", "head")
    assert parts.returncode == 2
    assert "expected one or both of: encoder, decoder" in parts.stderr
