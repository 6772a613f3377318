"""Parotid gland masks from head-and-neck scans: train, export, run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parotid_seg.api import Segmenter, segment
    from parotid_seg.runtime.segmenter import Segmentation

__all__ = ["Segmentation", "Segmenter", "segment"]


def __getattr__(name: str) -> Any:
    """Import the public names only when they are used, so that the command line starts at once."""
    if name == "Segmentation":
        from parotid_seg.runtime.segmenter import Segmentation

        return Segmentation
    if name in __all__:
        from parotid_seg import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
