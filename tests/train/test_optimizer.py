"""The optimizer's groups: classifiers learn faster, matrices decay, nothing is left out or counted twice."""

import pytest
import torch

from parotid_seg.errors import InputError
from parotid_seg.train.checkpoint import build_network
from parotid_seg.train.config import SegmentConfig
from parotid_seg.train.loop import parameter_groups
from parotid_seg.train.segment import Supervised
from parotid_seg.train.settings import load_config


@pytest.mark.parametrize("deep", [False, True])
def test_groups(small_config, deep):
    model = Supervised(build_network(load_config("compact", small_config), 1, 3).unet, encoder=deep)
    groups = parameter_groups(model, 0.05, (model.unet.classify, model.classify), 10.0)
    rates = {id(parameter): group["rate"] for group in groups for parameter in group["params"]}
    decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    assert len(rates) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == (10.0 if "classify" in name else 1.0), name
        assert decays[id(parameter)] == (0.05 if parameter.ndim > 1 else 0.0), name
    assert groups[0]["rate"] == 1.0  # whose rate the records tell
    torch.optim.AdamW(groups, lr=0.0)


def test_a_rate_that_is_none():
    with pytest.raises(InputError, match="classifier_rate of a stage: found 0, expected a positive number"):
        SegmentConfig(classifier_rate=0)
