"""The block formats: their layout, and how weights go in and out of them. Knows nothing of models, files or engines."""

from __future__ import annotations

from ggpy.quant.block_format import BlockFormat
from ggpy.quant.formats import FORMATS, by_id

__all__ = ["FORMATS", "BlockFormat", "by_id"]
