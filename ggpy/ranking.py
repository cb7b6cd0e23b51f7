"""Documents in the order in which they answer a query: what `LLM.rank` does, with rerankers of two kinds.

A cross-encoder reads query and document together and has a classifier behind it, whose number is the score. Qwen3's
reranker is asked in words whether the document answers the query: its score is how much likelier "yes" is than "no";
its file has the two rows of the output matrix as a classifier, or the whole matrix.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from ggpy import arguments
from ggpy.engine.embed import Embedder, TokenizedText
from ggpy.errors import GGPYError
from ggpy.gguf.metadata import TypedMetadata
from ggpy.models.qwen3 import INSTRUCTION, RERANK_TEMPLATE
from ggpy.outputs import RankOutput
from ggpy.progress import requests_bar

if TYPE_CHECKING:
    from ggpy.gguf.file import GGUFFile
    from ggpy.llm import LLM
    from ggpy.models.base import HyperParameters
    from ggpy.text.tokenizer import Tokenizer

_TEMPLATE_KEY = "tokenizer.chat_template.rerank"
_YES = ("yes", "true", "relevant")


class Ranker:
    """Scores of documents by one model. Raises GGPYError for a model that is no reranker."""

    def __init__(self, file: GGUFFile, tokenizer: Tokenizer, hparams: HyperParameters) -> None:
        self._tokenizer, self._hparams = tokenizer, hparams
        metadata = TypedMetadata(file.metadata, str(file.path), hparams.arch)
        self._classifies = hparams.pooling == "rank"
        own = metadata.find(_TEMPLATE_KEY, str)
        named = "rerank" in (metadata.find("general.name", str) or "").lower() or "rerank" in file.path.name.lower()
        if not self._classifies and not (hparams.writes_text and (named or own)):
            raise GGPYError(
                f"{file.path.name} is a {hparams.arch} model that "
                + ("writes text" if hparams.writes_text else "embeds texts")
                + "; rank takes a reranker, such as bge-reranker-v2-m3 or Qwen3-Reranker-0.6B."
            )
        asks = own is not None or hparams.arch.startswith("qwen3") or not self._classifies
        self._template = (own or RERANK_TEMPLATE) if asks else None
        for field in ("{query}", "{document}"):
            if self._template is not None and field not in self._template:
                raise GGPYError(
                    f"{file.path}: the template under {_TEMPLATE_KEY!r} has no {field}; ggpy cannot use it."
                )
        labels = metadata.strings("{arch}.classifier.output_labels") or []
        #: Of two labels, which one says that the document answers.
        self._yes = 0 if (labels and labels[0].lower() in _YES) or (not labels and asks) else 1
        self._words: tuple[int, int] | None = None
        if not self._classifies:
            found = [tokenizer.token_id(word) for word in ("yes", "no")]
            if found[0] is None or found[1] is None:
                raise GGPYError(
                    f"{file.path.name} has no tokens 'yes' and 'no', by which rerankers of its kind answer."
                )
            self._words = found[0], found[1]

    @property
    def takes_instruction(self) -> bool:
        return self._template is not None

    def tokenize(self, query: str, document: str, instruction: str | None) -> TokenizedText:
        """Query and document as the model reads them."""
        if self._template is None:
            ids, second = self._tokenizer.tokenize_pair(query, document)
            return TokenizedText(ids, second)
        template = self._template.replace(INSTRUCTION, "{instruction}")
        if instruction is not None and "{instruction}" not in template:
            raise GGPYError("The file's template for reranking has no place for an instruction; leave it out.")
        parts = {"{instruction}": instruction or INSTRUCTION, "{query}": query, "{document}": document}
        return TokenizedText(self._tokenizer.tokenize_chat(_filled(template, parts)))

    def score(self, rows: Sequence[np.ndarray]) -> list[float]:
        """The classifier's number of each row; of two labels how much more the one that says yes has."""
        for row in rows[:1]:
            if row.size > 2:
                raise GGPYError(f"The model's classifier has {row.size} labels; a reranker has one, or yes and no.")
        return [float(row[self._yes] - row[1 - self._yes]) if row.size == 2 else float(row[0]) for row in rows]

    def run(self, llm: LLM, texts: Sequence[TokenizedText], progress: bool) -> list[float]:
        """The score of each text, in their order; the lock is held a step at a time."""
        embedder = Embedder(llm.runtime, llm.runtime.n_types)
        for place, text in enumerate(texts):
            embedder.check(text.token_ids, f"Document {place + 1} of {len(texts)} with its query")
        scores = [0.0] * len(texts)
        with requests_bar(len(texts), unit="texts/s") if progress else nullcontext(lambda n: None) as advance:
            steps = embedder.steps(texts) if self._classifies else ([place] for place in range(len(texts)))
            for step in steps:
                with llm.lock:
                    llm.check_open()
                    if self._words is None:
                        found = self.score(embedder.run([texts[place] for place in step]))
                    else:
                        logits = llm.engine.last_logits(texts[step[0]].token_ids)
                        found = [float(logits[self._words[0]] - logits[self._words[1]])]
                for place, score in zip(step, found, strict=True):
                    scores[place] = score
                    advance(1)
        return scores


def rank(
    llm: LLM,
    query: str,
    documents: Any,
    top_n: int | None = None,
    normalize: bool = True,
    instruction: str | None = None,
    progress: bool = False,
    most: int | None = None,
) -> list[RankOutput]:
    """Documents with their scores for a query, the best first. most: tokens of one with the query. Raises GGPYError."""
    arguments.text("query", query)
    words = "a list of texts"
    texts = arguments.several("documents", documents, words)
    if not all(isinstance(text, str) for text in texts):
        raise arguments.wrong("documents", documents, words)
    arguments.flag("normalize", normalize)
    arguments.flag("progress", progress)
    if top_n is not None:
        top_n = arguments.whole("top_n", top_n, 1, 1 << 31, "a number of documents from 1")
    if instruction is not None:
        arguments.text("instruction", instruction)
    llm.check_open()
    ranker = Ranker(llm.file, llm.tokenizer, llm.runtime.hparams)
    if instruction is not None and not ranker.takes_instruction:
        raise GGPYError(f"{llm.path.name} is told no instruction; leave it out.")
    pairs = [ranker.tokenize(query, text, instruction) for text in texts]
    if most is not None and (longest := max((len(pair.token_ids) for pair in pairs), default=0)) > most:
        raise GGPYError(f"A document has {longest} tokens with its query, but the most are {most}; shorten it.")
    return ranked(texts, pairs, ranker.run(llm, pairs, progress), normalize)[:top_n]


def ranked(
    documents: Sequence[str], texts: Sequence[TokenizedText], scores: Sequence[float], normalize: bool
) -> list[RankOutput]:
    """Documents with their scores, the best first; of equal ones the earlier."""
    values = np.array(scores, np.float64)
    if normalize:  # of yes and no this is the softmax of both
        values = 1 / (1 + np.exp(-np.clip(values, -700, 700)))
    outputs = [
        RankOutput(place, float(value), document, len(text.token_ids))
        for place, (value, document, text) in enumerate(zip(values, documents, texts, strict=True))
    ]
    return sorted(outputs, key=lambda output: (-scores[output.index], output.index))


def _filled(template: str, parts: dict[str, str]) -> str:
    """A template with its fields replaced at once: what a field is replaced by may look like another one."""
    return re.sub("|".join(map(re.escape, parts)), lambda match: parts[match[0]], template)
