"""Texts to vectors over a model that embeds them: what `LLM.embed` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

from ggpy import arguments
from ggpy.engine.embed import Embedder, Rows, TokenizedText, normalized, pool
from ggpy.errors import GGPYError
from ggpy.outputs import EmbeddingOutput, EmbeddingRequestOutput
from ggpy.progress import requests_bar

if TYPE_CHECKING:
    import threading

#: The ways of pooling that callers may ask for.
POOLINGS = ("mean", "cls", "last", "none")


def check_embeds(arch: str, pooling: str | None, name: str) -> None:
    """Raise GGPYError for a model that does not embed texts; `pooling` as in `HyperParameters`."""
    if pooling is None:
        raise GGPYError(
            f"{name} is a {arch} model that writes text; embed takes a model made for it, such as all-MiniLM-L6-v2."
        )
    if pooling == "rank":
        raise GGPYError(f"{name} ranks documents by a query and embeds none; use LLM.rank (ggpy rank).")


def check_pooling(pooling: str | None) -> None:
    if pooling is not None and arguments.text("pooling", pooling) not in POOLINGS:
        raise arguments.wrong("pooling", pooling, "'mean', 'cls' (the first token's row), 'last' or 'none' (all rows)")


def embed(
    embedder: Embedder,
    lock: threading.RLock,
    check_open: Callable[[], None],
    given: Sequence[tuple[str | None, list[int]]],
    own_pooling: str,
    pooling: str | None,
    normalize: bool,
    dimensions: int | None,
    progress: bool,
) -> list[EmbeddingRequestOutput]:
    """The embeddings of texts, tokenized already, in their order. The lock is held a step at a time, so that thousands
    of texts keep nobody waiting; `check_open` is called in it before each."""
    many = len(given) > 1
    for place, (_, ids) in enumerate(given):
        embedder.check(ids, f"Text {place + 1} of {len(given)}" if many else "The text")
    texts = [TokenizedText(ids) for _, ids in given]
    wanted = pooling or own_pooling
    by_model = wanted == own_pooling != "none"
    found: list[Rows | None] = [None] * len(texts)
    with requests_bar(len(texts), unit="texts/s") if progress else nullcontext(lambda n: None) as advance:
        for step in embedder.steps(texts):
            with lock:
                check_open()
                rows = embedder.run([texts[place] for place in step], pooled=by_model)
            for place, row in zip(step, rows, strict=True):
                vector = row if by_model else pool(row, wanted)
                if dimensions is not None:
                    vector = _cut(vector, dimensions)
                found[place] = normalized(vector) if normalize else vector
                advance(1)
    return [
        EmbeddingRequestOutput(text, ids, EmbeddingOutput(row))
        for (text, ids), row in zip(given, found, strict=True)
        if row is not None
    ]


def _cut(vector: Rows, dimensions: int) -> Rows:
    """The first dimensions, which models trained so (Matryoshka, arXiv 2205.13147) keep most in."""
    n = vector.shape[-1]
    if dimensions > n:
        raise GGPYError(f"dimensions is {dimensions}, but the model's embeddings have {n}; ask for no more than these.")
    return vector[..., :dimensions]
