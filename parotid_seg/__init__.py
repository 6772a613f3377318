"""Parotid gland masks from head-and-neck scans: train, export, run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from parotid_seg.version import VERSION as __version__  # noqa: N811

# onnxruntime from 1.29 on tells Microsoft about machine and model, unless this is set before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from parotid_seg.api import Segmenter, segment
    from parotid_seg.runtime.segmentation.segment import Segmentation

__all__ = ["Segmentation", "Segmenter", "__version__", "segment"]


def __getattr__(name: str) -> Any:
    """Import the public names only when they are used, so that the command line starts at once."""
    if name == "Segmentation":
        from parotid_seg.runtime.segmentation.segment import Segmentation

        return Segmentation
    if name in __all__:
        from parotid_seg import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
