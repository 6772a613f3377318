"""How a training begins: matrices decay, and classifiers call little but background."""

from pathlib import Path
from typing import Any

import pytest
import torch

from parotid_seg.train.checkpoint import build_network
from parotid_seg.train.network import parameter_groups
from parotid_seg.train.settings import load_config
from parotid_seg.train.supervised import Supervised


@pytest.fixture(params=[False, True])
def model(request: pytest.FixtureRequest, small_config: Path) -> Supervised:
    return Supervised(build_network(load_config("compact", small_config), 1, 3).unet, encoder=request.param)


def test_matrices_decay_and_every_parameter_is_in_one_group(model: Supervised) -> None:
    groups: list[Any] = parameter_groups(model, 0.05)
    decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    assert len(decays) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert decays[id(parameter)] == (0.05 if parameter.ndim > 1 else 0.0), name


def test_a_new_network_calls_each_structure_rarely(model: Supervised) -> None:
    torch.manual_seed(0)
    for logits in model(torch.rand(2, 3, 32, 32)):
        shares = logits.softmax(dim=1).mean(dim=(0, 2, 3))
        assert shares[0] > 0.85
        assert (shares[1:] > 0.002).all()
