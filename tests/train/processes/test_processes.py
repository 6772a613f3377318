"""What two processes compute together, in double precision, against one with the whole batch."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from parotid_seg.errors import InputError
from parotid_seg.train.config import ContrastConfig, NetworkConfig
from parotid_seg.train.moco import MomentumContrast, Pair
from parotid_seg.train.network import SwinUnet
from parotid_seg.train.parallel import Processes, common_batch_norm, join
from parotid_seg.train.supervised import segmentation_loss
from tests.processes.forked import Forked
from tests.processes.ports import free_port

pytestmark = pytest.mark.slow


COUNT = 2
ALONE = Processes(0, 1, torch.device("cpu"))
SMALL = ContrastConfig(hidden=32, features=16, batch_size=4, points=6, queue=12, apart_mm=60.0)
CONTRASTS = {
    "slices": dataclasses.replace(SMALL, dense_share=0.0),
    "places of one image": dataclasses.replace(SMALL, dense_share=1.0),
    "places of all images": dataclasses.replace(SMALL, dense_share=1.0, dense_negatives="batch"),
    "both": dataclasses.replace(SMALL, dense_share=0.3, dense_negatives="batch"),
}


def draw(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def part(values: torch.Tensor, processes: Processes) -> torch.Tensor:
    own = len(values) // processes.count
    return values[processes.rank * own : (processes.rank + 1) * own]


def gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.grad for name, value in module.named_parameters() if value.grad is not None}


def contrast(config: ContrastConfig, processes: Processes) -> dict[str, Any]:
    torch.manual_seed(0)
    network = NetworkConfig(embed_dim=16, depths=(1, 1), heads=(2, 4), window=4, stem=(8, 16), drop_path=0.0)
    moco = MomentumContrast(SwinUnet(network, 32, 3, 3), config, processes)
    at = [torch.randint(0, 32, (4, 6, 2), generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    pair = Pair(draw(4, 3, 32, 32), draw(4, 3, 32, 32).flip(0), at[0], at[1], 200 * draw(4, 6, 2))
    wrapped = processes.wrapped(moco)
    for _ in range(2):  # the second time the queue holds keys of both processes
        moco.zero_grad()
        loss, figures = wrapped(Pair(*(part(each, processes) for each in pair)))
        loss.backward()
    return {"loss": processes.mean({"": loss.item()})[""], **figures, **gradients(moco), "queue": moco.queue}


def segmentation(processes: Processes, ignored: int = 0) -> dict[str, Any]:
    """With one channel more some of each pixel is ignored, of the first images more than of the last."""
    torch.manual_seed(0)
    net = nn.Conv2d(3, 4, 3)
    targets, contoured = draw(6, 4 + ignored, 14, 14), draw(6, 4) > 0.3
    targets[:3, 4:] += 3
    targets = targets.softmax(dim=1)
    contoured[:, 0] = True
    wrapped = processes.wrapped(net)
    loss = segmentation_loss(
        wrapped(part(draw(6, 3, 16, 16), processes)), part(targets, processes), part(contoured, processes), 0.4,
        processes.sum,
    )  # fmt: skip
    loss.backward()
    return {"loss": processes.mean({"": loss.item()})[""], **gradients(net)}


def batch_norm(kind: type[nn.BatchNorm1d] | type[nn.BatchNorm2d], affine: bool, processes: Processes) -> dict[str, Any]:
    torch.manual_seed(0)
    norm = kind(5, affine=affine)
    if affine:
        nn.init.uniform_(norm.weight)
        nn.init.uniform_(norm.bias)
    net: nn.Module = nn.Sequential(norm)
    net = common_batch_norm(net) if processes.count > 1 else net
    shape = (8, 5) if kind is nn.BatchNorm1d else (8, 5, 4, 3)
    scale = torch.tensor([1.0, 1.0, 100.0, 1e-3, 1.0]).view(1, 5, *[1] * (len(shape) - 2))
    inputs = part(30 + scale * draw(*shape), processes).requires_grad_()
    outputs = net(inputs)
    (outputs * part(draw(*shape).flip(0), processes)).sum().backward()
    learnt = {name: processes.sum(value) for name, value in gradients(net).items()}
    return {"outputs": outputs, "inputs": inputs.grad, **learnt, **dict(net.named_buffers())}


def hardly_varying_features(processes: Processes) -> torch.Tensor:
    """In single precision: 300 + 1e-3 x something."""
    net = nn.Sequential(nn.BatchNorm1d(6)).float()
    net = common_batch_norm(net) if processes.count > 1 else net
    return net(part(300 + 1e-3 * draw(8, 6), processes).float()).detach()


def work(rank: int, folder: Path) -> None:
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": (folder / "port").read_text()}
    environment |= {"RANK": str(rank), "WORLD_SIZE": str(COUNT), "LOCAL_WORLD_SIZE": str(COUNT)}
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    with mock.patch.dict("os.environ", environment):
        processes = join("cpu")
    found: dict[str, Any] = {}
    with mock.patch("torch.autocast"), mock.patch("torch.Tensor.float", torch.Tensor.double):
        for name, config in CONTRASTS.items():
            found[name] = contrast(config, ALONE), contrast(config, processes)
        found["segmentation"] = segmentation(ALONE), segmentation(processes)
        found["segmentation, ignored"] = segmentation(ALONE, ignored=1), segmentation(processes, ignored=1)
        for kind in (nn.BatchNorm1d, nn.BatchNorm2d):
            for affine in (False, True):
                found[f"{kind.__name__} {affine}"] = (
                    batch_norm(kind, affine, ALONE),
                    batch_norm(kind, affine, processes),
                )
    found["hardly varying"] = hardly_varying_features(ALONE), hardly_varying_features(processes)
    found["here"] = processes.here
    found["from first"] = processes.broadcast_from_rank0(lambda: rank)
    found["collected"] = processes.collected([rank, rank + 10])
    processes.assert_equal("settings", 1)
    try:
        processes.assert_equal("settings", rank)
        found["agree"] = ""
    except InputError as error:
        found["agree"] = str(error)
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("processes")
    (folder / "port").write_text(str(free_port()))
    processes = [Forked(partial(work, rank, folder)) for rank in range(COUNT)]
    for process in processes:
        _, stderr = process.communicate()
        assert process.returncode == 0, stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(COUNT)]


@pytest.mark.parametrize("name", [*CONTRASTS, "segmentation", "segmentation, ignored"])
def test_loss_and_gradient_are_those_of_the_whole_batch(found: list[dict[str, Any]], name: str) -> None:
    (alone, _), _ = found[0][name], found[1][name]
    assert len(alone) > 2
    for rank in range(COUNT):
        _, together = found[rank][name]
        assert together.keys() == alone.keys()
        torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-12)
    assert all(value.norm() > 1e-6 for key, value in alone.items() if key.endswith("weight"))


def test_places_of_other_processes_are_negatives(found: list[dict[str, Any]]) -> None:
    loss = {name: found[0][name][1]["loss"] for name in CONTRASTS}
    assert loss["places of all images"] > loss["places of one image"] + 0.1


@pytest.mark.parametrize("kind", ["BatchNorm1d", "BatchNorm2d"])
@pytest.mark.parametrize("affine", [False, True])
def test_the_common_batch_norm_is_that_of_the_whole_batch(found: list[dict[str, Any]], kind: str, affine: bool) -> None:
    alone = found[0][f"{kind} {affine}"][0]
    for rank in range(COUNT):
        processes = Processes(rank, COUNT, torch.device("cpu"))
        together = found[rank][f"{kind} {affine}"][1]
        assert together.keys() == alone.keys()
        for name, value in alone.items():
            wanted = part(value, processes) if name in ("outputs", "inputs") else value
            torch.testing.assert_close(together[name], wanted, rtol=1e-9, atol=1e-9)


def test_the_common_batch_norm_of_features_that_hardly_vary(found: list[dict[str, Any]]) -> None:
    together = torch.cat([each["hardly varying"][1] for each in found])
    torch.testing.assert_close(together, found[0]["hardly varying"][0], rtol=0, atol=0.05)


def test_what_the_first_process_has_and_what_all_have(found: list[dict[str, Any]]) -> None:
    assert [each["from first"] for each in found] == [0, 0]
    assert [each["collected"] for each in found] == [[0, 10, 1, 11]] * 2
    assert [each["here"] for each in found] == [2, 2]
    assert [each["agree"] for each in found] == [
        "",
        "settings: found others in process 1 than in process 0, expected the same on every machine",
    ]


def test_a_batch_that_cannot_be_split() -> None:
    with pytest.raises(InputError, match="expected a multiple of the 3 processes"):
        Processes(0, 3, torch.device("cpu")).share(8)
    assert list(Processes(1, 2, torch.device("cpu")).share(8)) == [4, 5, 6, 7]
