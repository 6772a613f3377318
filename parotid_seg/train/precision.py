"""The number format of training."""

from __future__ import annotations

import torch


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether a device supports bfloat16 arithmetic. A CPU without it emulates it at a tenth of float32's speed."""
    if device.type != "cpu":
        return True
    return any(has is True for name, has in torch.cpu.get_capabilities().items() if "bf16" in name)


def mixed_precision(device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 if the device supports it, else a context that keeps float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=computes_in_bfloat16(device))
