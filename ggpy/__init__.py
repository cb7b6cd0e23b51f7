"""ggpy: convert language models to GGUF and run them, in pure Python.

The public names load on first use, so that importing `ggpy` costs nothing and file-only commands never import numba.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # as type checkers read it, without importing typing
__version__ = "0.1.0"
__all__ = [
    "LLM",
    "AsyncLLM",
    "BeamSearchParams",
    "GGPYError",
    "GGUFFile",
    "SamplingParams",
    "StructuredOutputsParams",
    "Tokenizer",
    "__version__",
]

if TYPE_CHECKING:
    from typing import Any

    from ggpy.async_llm import AsyncLLM
    from ggpy.engine.beam_search import BeamSearchParams
    from ggpy.errors import GGPYError
    from ggpy.gguf.file import GGUFFile
    from ggpy.llm import LLM
    from ggpy.sampling.sampling_params import SamplingParams
    from ggpy.sampling.structured import StructuredOutputsParams
    from ggpy.text.tokenizer import Tokenizer

# Installed, the other rooms (quant, models, …) are folders in here. In a checkout they stand beside this one, and a
# Python started there finds this folder before the installed package.
_here = os.path.dirname(os.path.abspath(__file__))
_beside = os.path.dirname(_here)
if not os.path.isdir(os.path.join(_here, "quant")) and os.path.isfile(os.path.join(_beside, "quant", "packed.py")):
    __path__.append(_beside)

_HOMES = {
    "LLM": "ggpy.llm",
    "AsyncLLM": "ggpy.async_llm",
    "BeamSearchParams": "ggpy.engine.beam_search",
    "GGPYError": "ggpy.errors",
    "GGUFFile": "ggpy.gguf.file",
    "SamplingParams": "ggpy.sampling.sampling_params",
    "StructuredOutputsParams": "ggpy.sampling.structured",
    "Tokenizer": "ggpy.text.tokenizer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ggpy' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
