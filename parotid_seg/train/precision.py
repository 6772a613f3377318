"""Which number format training computes in."""

from __future__ import annotations

import torch


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether a device has arithmetic for bfloat16. A CPU without it emulates it, at a tenth of float32's speed."""
    if device.type != "cpu":
        return True
    return any(has is True for name, has in torch.cpu.get_capabilities().items() if "bf16" in name)


def mixed_precision(device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 where the device has it, else a context that leaves everything in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=computes_in_bfloat16(device))
