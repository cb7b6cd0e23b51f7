"""Texts to vectors over a model that embeds them: what `LLM.embed` does."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from ggpy import arguments
from ggpy.engine.embed import Embedder, Rows, TokenizedText, normalized, pool
from ggpy.errors import GGPYError
from ggpy.outputs import EmbeddingOutput, EmbeddingRequestOutput
from ggpy.progress import requests_bar
from ggpy.prompts import several

if TYPE_CHECKING:
    from ggpy.llm import LLM
    from ggpy.models.base import HyperParameters

#: The ways of pooling that callers may ask for.
POOLINGS = ("mean", "cls", "last", "none")


def embed(
    llm: LLM, prompts: Any, pooling: str | None, normalize: bool, dimensions: int | None, progress: bool
) -> list[EmbeddingRequestOutput]:
    """The embeddings of prompts, in their order. The lock is held a step at a time, so that thousands of texts keep
    nobody waiting. Raises GGPYError."""
    if pooling is not None and arguments.text("pooling", pooling) not in POOLINGS:
        raise arguments.wrong("pooling", pooling, "'mean', 'cls' (the first token's row), 'last' or 'none' (all rows)")
    arguments.flag("normalize", normalize)
    arguments.flag("progress", progress)
    if dimensions is not None:
        dimensions = arguments.whole("dimensions", dimensions, 1, 1 << 20, "a number of dimensions from 1")
    llm.check_open()
    own = _own_pooling(llm.runtime.hparams, llm.path.name)
    given = [llm.encode(prompt) for prompt in several("prompts", prompts)]
    embedder = Embedder(llm.runtime, llm.runtime.n_types)
    many = len(given) > 1
    for place, (_, ids) in enumerate(given):
        embedder.check(ids, f"Text {place + 1} of {len(given)}" if many else "The text")
    texts = [TokenizedText(ids) for _, ids in given]
    wanted = pooling or own
    by_model = wanted == own != "none"
    found: list[Rows | None] = [None] * len(texts)
    with requests_bar(len(texts), unit="texts/s") if progress else nullcontext(lambda n: None) as advance:
        for step in embedder.steps(texts):
            with llm.lock:
                llm.check_open()
                rows = embedder.run([texts[place] for place in step], pooled=by_model)
            for place, row in zip(step, rows, strict=True):
                vector = row if by_model else pool(row, wanted)
                if dimensions is not None:
                    vector = cut(vector, dimensions)
                found[place] = normalized(vector) if normalize else vector
                advance(1)
    return [
        EmbeddingRequestOutput(text, ids, EmbeddingOutput(row))
        for (text, ids), row in zip(given, found, strict=True)
        if row is not None
    ]


def _own_pooling(hparams: HyperParameters, name: str) -> str:
    """How a model that embeds texts was trained to pool. Raises GGPYError for another one."""
    if hparams.pooling is None:
        raise GGPYError(
            f"{name} is a {hparams.arch} model that writes text; embed takes a model made for it, such as "
            "all-MiniLM-L6-v2."
        )
    if hparams.pooling == "rank":
        raise GGPYError(f"{name} ranks documents by a query and embeds none; use LLM.rank (ggpy rank).")
    return hparams.pooling


def cut(vector: Rows, dimensions: int) -> Rows:
    """The first dimensions, which models trained so (Matryoshka, arXiv 2205.13147) keep most in."""
    n = vector.shape[-1]
    if dimensions > n:
        raise GGPYError(f"dimensions is {dimensions}, but the model's embeddings have {n}; ask for no more than these.")
    return vector[..., :dimensions]
