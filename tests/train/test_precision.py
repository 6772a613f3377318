"""Training computes in bfloat16 only where the device has arithmetic for it."""

import pytest
import torch

from parotid_seg.train.network import computes_in_bfloat16, mixed_precision


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx2": True, "avx512_bf16": True, "amx_bf16": False}, True),
        ({"cpu_name": "bf16"}, False),
    ],
)
def test_a_cpu_computes_in_bfloat16_if_it_can(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool | str], expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    cpu = torch.device("cpu")
    assert computes_in_bfloat16(cpu) is expected
    weights, images = torch.rand(4, 4), torch.rand(2, 4)
    with mixed_precision(cpu):
        assert (images @ weights).dtype == (torch.bfloat16 if expected else torch.float32)


def test_a_gpu_computes_in_bfloat16() -> None:
    assert computes_in_bfloat16(torch.device("cuda"))
