"""The weights of one of our model files (.onnx) under the names of the network that is trained.

A model file has every weight of the trained network under its name in torch, some matrices transposed or in parts,
biases of relative positions as the matrices they stand for (see `export.window_order`), and batch norms folded into
their convolutions. `network_weights` undoes that, and `unfold_norms` gives batch norms a scale again, which training
needs. Reading the file needs the package onnx.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from parotid_seg.contract import METADATA_KEY, Contract
from parotid_seg.errors import InputError, ModelError, RecordError
from parotid_seg.models import PACKAGED, model_file
from parotid_seg.records import read_bytes
from parotid_seg.train.network import SwinUnet
from parotid_seg.train.settings import check_init

MOST_BYTES = 2**31 - 1
Weights = dict[str, Tensor]


class ModelWeights(NamedTuple):
    """The content of a model file.

    Attributes:
        contract: its contract.
        stored: its constants by name, FP32.
    """

    contract: Contract
    stored: Weights


def is_model(source: str) -> bool:
    """Whether a source of initial weights is a model file."""
    return source == PACKAGED or source.endswith(".onnx")


def read_model_weights(source: str) -> ModelWeights:
    """Read the contract and the constants of a model file.

    Args:
        source: `PACKAGED`, or a file.

    Raises:
        OptionError: if there is no such file.
        InputError: if it is not one of our model files, was changed, is quantised, or the package onnx is missing.
    """
    path = model_file(source)
    check_init(source)
    try:
        import onnx
        from onnx.numpy_helper import to_array
    except ModuleNotFoundError as error:
        line = "pip install 'parotid-seg[train,export]'"
        raise InputError(f"--init {source}: reading a model file needs the package {error.name}: {line}") from error
    try:
        model = onnx.load_model_from_string(read_bytes(path, MOST_BYTES))
    except RecordError as error:
        raise InputError(f"--init {source}: {error.reason}") from error
    except Exception as error:  # protobuf's error for other bytes
        raise InputError(f"--init {source}: not an ONNX model") from error
    texts = {entry.key: entry.value for entry in model.metadata_props}
    if METADATA_KEY not in texts:
        raise InputError(f"--init {source}: an ONNX model, but without parotid-seg's contract in its metadata")
    try:
        contract = Contract.from_json(texts[METADATA_KEY], where=f"--init {source}")
    except ModelError as error:
        raise InputError(error.reason) from error
    graph = model.graph.SerializeToString(deterministic=True)
    if hashlib.sha256(graph).hexdigest() != contract.graph_sha256:
        raise InputError(f"--init {source}: its graph is not the exported one; the file was changed or damaged")
    if contract.precision == "int8":
        raise InputError(
            f"--init {source}: its weights are quantised to INT8; expected an fp32 or fp16 model, or best.pt"
        )
    if any(each.data_location == onnx.TensorProto.EXTERNAL for each in model.graph.initializer):
        raise InputError(f"--init {source}: its weights lie in another file (external data), expected all within it")
    constants = {_plain(each.name): to_array(each) for each in model.graph.initializer}
    floats = {name: value.astype("float32") for name, value in constants.items() if value.dtype.kind in "fV"}
    return ModelWeights(contract, {name: torch.from_numpy(value) for name, value in floats.items()})


def network_weights(source: str, model: ModelWeights, unet: SwinUnet) -> Weights:
    """The state of a network that computes what a model file computes, in evaluation.

    Args:
        source: for messages.
        model: the file's content.
        unet: a network of the run's sizes.

    Raises:
        InputError: if the file's network has other sizes, or windows that do not divide its grid.
    """
    if not any(name.endswith(".position_bias") for name in model.stored):
        raise InputError(
            f"--init {source}: the windows of its network do not divide its grid, and such a file cannot be trained "
            "on; expected its best.pt"
        )
    state = {}
    for name, old in unet.state_dict().items():
        layer = name.rpartition(".")[0]
        try:
            value = _weight(name, old, unet.get_submodule(layer), model.stored)
        except (KeyError, RuntimeError) as error:
            raise InputError(_other_network(source, name, str(error))) from error
        if value.shape != old.shape and not layer.startswith("classify"):  # other labels are allowed
            raise InputError(_other_network(source, name, f"{tuple(value.shape)} in place of {tuple(old.shape)}"))
        state[name] = value
    return state


@torch.no_grad()
def unfold_norms(unet: SwinUnet, images: Iterable[Tensor]) -> None:
    """Give batch norms from `network_weights` the mean and the variance of their input as their own.

    In evaluation the network computes the same as before. In training, when a batch's own mean and variance are taken,
    it then computes nearly the same as well; without this, the scale of every folded norm would be lost.

    Args:
        unet: changed in place.
        images: batches (N, K, G, G) in 0..1 of what the network will be trained on.
    """
    norms = [module for module in unet.modules() if isinstance(module, nn.BatchNorm2d)]
    sums: dict[nn.Module, Tensor] = {
        norm: torch.zeros(3, norm.num_features, dtype=torch.float64, device=norm.weight.device) for norm in norms
    }

    def add(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].double()
        sums[norm] += torch.stack(
            [torch.ones_like(values).sum((0, 2, 3)), values.sum((0, 2, 3)), values.square().sum((0, 2, 3))]
        )

    hooks = [norm.register_forward_pre_hook(add) for norm in norms]
    training = unet.training
    unet.eval()
    for batch in images:
        unet(batch)
    unet.train(training)
    for hook in hooks:
        hook.remove()
    for norm in norms:
        count, total, squares = sums[norm]
        mean, variance = total / count, squares / count - (total / count).square()
        norm.weight.copy_((variance.clamp(min=0.0) + norm.eps).sqrt())
        norm.bias.add_(mean)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance.clamp(min=0.0))


def _plain(name: str) -> str:
    """The name of a constant, whatever type it is stored in."""
    return name.removesuffix(".fp16").removesuffix(".float16")


def _weight(name: str, old: Tensor, module: nn.Module, stored: Weights) -> Tensor:
    """One entry of the network's state.

    Raises:
        KeyError, RuntimeError: if the file has none, or one of another size.
    """
    layer, _, last = name.rpartition(".")
    at = f"unet.{layer}"
    if isinstance(module, nn.BatchNorm2d):
        shift = stored[f"{at}/Conv.constant"]
        values = {"weight": torch.ones_like(shift), "bias": shift, "running_mean": torch.zeros_like(shift)}
        return values.get(last, torch.full_like(shift, 1.0 - module.eps) if last == "running_var" else old)
    if last == "relative_position_bias_table":
        return _table(module, stored[f"{at}.position_bias"])
    if layer.endswith(".qkv"):
        parts = (f"{at.removesuffix('qkv')}{part}.{last}" for part in ("queries", "keys", "values"))
        return torch.cat([_stored(part, stored) for part in parts])
    if layer in ("expand_half", "expand_full"):
        by_place = stored[f"unet.{name}"].permute(1, 2, 3, 0) if last == "weight" else stored[f"{at}/Add.constant"]
        return by_place[..., :2, :2].reshape(old.shape) if last == "bias" else by_place.reshape(old.shape)
    if layer.endswith(".expand.expand"):
        return _stored(f"unet.{name}", stored).reshape(4, -1, old.shape[1]).transpose(0, 1).reshape(old.shape)
    return _stored(f"unet.{name}", stored)


def _stored(name: str, stored: Weights) -> Tensor:
    """A weight, whose matrix may be stored transposed."""
    return stored[name] if name in stored else stored[f"{name}.T"].T.contiguous()


def _table(attention: Any, bias: Tensor) -> Tensor:
    """Biases of relative positions: each is at many places of the matrix of a window (windows, heads, tokens, tokens).

    Of shifted windows the first has no mask.
    """
    table = torch.zeros_like(attention.relative_position_bias_table.detach())
    table[attention.relative_position_index.flatten()] = bias[0].permute(1, 2, 0).flatten(0, 1)
    return table


def _other_network(source: str, name: str, reason: str) -> str:
    return (
        f"--init {source}: its network has other sizes than this run's ({name}: {reason}); give the settings that it "
        "was trained with (--preset, --config), or its best.pt"
    )
