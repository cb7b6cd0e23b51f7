"""The block formats: their layout, and how weights go in and out of them. Knows nothing of models, files or engines."""

from __future__ import annotations

from ggpy.quant.formats import FORMATS, BlockFormat, by_id

__all__ = ["FORMATS", "BlockFormat", "by_id"]
