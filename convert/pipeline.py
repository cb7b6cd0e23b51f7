"""A checkpoint folder becomes a GGUF file: everything is checked and planned first, then tensors stream through.

Worker threads read and encode chunks of rows (the quantizers run without the GIL), the calling thread writes them in
order, and only a few chunks are alive at any time.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ggpy.convert.checkpoint import Checkpoint
from ggpy.convert.generation_defaults import sampling_metadata
from ggpy.convert.pooling import add_pooling
from ggpy.convert.rerankers import add_reranker
from ggpy.convert.safetensors import SourceTensor
from ggpy.convert.tokenizer_export import export_tokenizer
from ggpy.convert.writer import ALIGNMENT, OutputTensor, is_gguf, write_gguf
from ggpy.errors import GGPYError, quoted
from ggpy.files import check_target
from ggpy.host.cores import usable_cpus
from ggpy.models import by_gguf_name, by_hf_name
from ggpy.models.hf import Layout, TensorRule
from ggpy.models.hf_keys import known_config
from ggpy.models.hf_sources import Read, Source, float32
from ggpy.quant import FORMATS
from ggpy.quant.recipes import FILE_TYPES, QUANTIZATION_VERSION, tensor_type

# Weights a chunk: long enough to keep a thread busy for milliseconds, short enough that a dozen are nothing.
_CHUNK_WEIGHTS = 1 << 21

# Buffers of the original implementations, computed there from the config and not weights.
_NO_WEIGHTS = re.compile(
    r"(^|\.)(rotary_emb\.(inv_freq|cos_cached|sin_cached)|attn\.(masked_)?bias|logn_tensor"
    r"|embeddings\.(position|token_type)_ids)$"
)


class Progress(Protocol):
    """An observer of a conversion."""

    def begin(self, path: Path, n_bytes: int, n_weights: int) -> None: ...
    def tensor(self, tensor: OutputTensor) -> None: ...
    def advance(self, n_weights: int) -> None: ...


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the file and its values: from the checkpoint, through `read`, or an array made from the config."""

    output: OutputTensor
    source: Source | np.ndarray
    read: Read | None = None

    @property
    def n_weights(self) -> int:
        return int(np.prod(self.output.shape, dtype=np.int64))

    @property
    def chunk_rows(self) -> int:
        return max(1, _CHUNK_WEIGHTS // self.output.shape[-1])

    def encode(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) as the file holds them, uint8 [stop - start, row_bytes]."""
        if isinstance(self.source, np.ndarray):
            rows = self.source.reshape(-1, self.output.shape[-1])[start:stop]
        else:
            assert self.read is not None
            rows = self.source.rows(self.read, start, stop)
            if self.source.format:
                return rows
        try:
            return self.output.format.quantize(np.ascontiguousarray(rows))
        except GGPYError as error:
            raise GGPYError(f"The tensor {self.output.name!r} cannot be converted: {error}") from error


@dataclass(frozen=True)
class Plan:
    """A conversion decided to the last byte."""

    metadata: dict[str, Any]
    tensors: list[PlannedTensor]
    notes: list[str]

    @property
    def n_weights(self) -> int:
        return sum(t.n_weights for t in self.tensors)


@dataclass(frozen=True)
class Summary:
    """The result of a conversion: `n_bytes` of file for `n_weights`, in `seconds`."""

    path: Path
    n_bytes: int
    n_weights: int
    seconds: float

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.n_bytes / self.n_weights


def convert(
    folder: Path,
    file_type: str,
    path: Path,
    *,
    pure: bool = False,
    n_threads: int | None = None,
    progress: Progress | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> Summary:
    """Convert the checkpoint in `folder` to a GGUF file at `path`; `file_type` is a key of FILE_TYPES.

    `pure` gives every matrix that type where its rows allow it; without it the recipe of that name keeps some tensors
    higher. `note` hears what the user should know. GGPYError for everything that stops it, such as a `path` that is
    a file of the checkpoint; `path` is then as it was.
    """
    began = time.monotonic()
    with Checkpoint(folder) as checkpoint:
        inputs = [] if is_gguf(path) else checkpoint.files()  # an earlier result in the folder is no part of it
        check_target(path, inputs)
        plan = plan_conversion(checkpoint, file_type, pure=pure)
        for text in plan.notes:
            note(text)
        outputs = [t.output for t in plan.tensors]
        with write_gguf(path, plan.metadata, outputs, inputs) as writer:
            if progress is not None:
                progress.begin(path, writer.total, plan.n_weights)
            for tensor, start, data in _encoded(plan.tensors, n_threads or usable_cpus()):
                if progress is not None and start == 0:
                    progress.tensor(tensor.output)
                writer.write(data)
                if progress is not None:
                    progress.advance(len(data) * tensor.output.shape[-1])
            n_bytes = writer.total
    return Summary(path, n_bytes, plan.n_weights, time.monotonic() - began)


def _encoded(tensors: list[PlannedTensor], n_threads: int) -> Iterator[tuple[PlannedTensor, int, np.ndarray]]:
    """Every chunk of every tensor in file order, encoded by `n_threads` threads that run a few chunks ahead."""
    chunks = (
        (tensor, start, min(start + tensor.chunk_rows, tensor.output.n_rows))
        for tensor in tensors
        for start in range(0, tensor.output.n_rows, tensor.chunk_rows)
    )
    ahead: deque[tuple[PlannedTensor, int, Future[np.ndarray]]] = deque()
    executor = ThreadPoolExecutor(n_threads, thread_name_prefix="convert")
    try:
        for tensor, start, stop in chunks:
            ahead.append((tensor, start, executor.submit(tensor.encode, start, stop)))
            if len(ahead) > 2 * n_threads + 1:
                done, at, future = ahead.popleft()
                yield done, at, future.result()
        while ahead:
            done, at, future = ahead.popleft()
            yield done, at, future.result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def plan_conversion(checkpoint: Checkpoint, file_type: str, *, pure: bool = False) -> Plan:
    """Check a checkpoint whole and decide every key and tensor of its GGUF file."""
    if file_type not in FILE_TYPES:
        raise GGPYError(f"There is no type {file_type!r}; choose one of {', '.join(FILE_TYPES)}.")
    model_class, config, config_notes = known_config(checkpoint.config)
    layout = by_hf_name(model_class, config).hf_layout(config)
    add_pooling(checkpoint, layout)
    tokenizer, tokenizer_notes = export_tokenizer(checkpoint, layout.n_vocab)
    add_reranker(checkpoint, layout, tokenizer)
    # What no reader could run is refused before a byte is written.
    by_gguf_name(layout.arch)(layout.metadata, layout.n_vocab).check(*layout.rope_factors)
    layout.take_predictor(checkpoint.tensors)
    found, stored = _match(checkpoint, layout)
    tied = not any(rule.target == "output.weight" for rule in found)
    n_layer = layout.metadata[f"{layout.arch}.block_count"]
    n_expert = layout.metadata.get(f"{layout.arch}.expert_count", 0)

    def read(name: str, start: int, stop: int) -> np.ndarray:
        return stored[name].rows(start, stop)

    tensors = []
    for name, values in layout.generated.items():
        tensors.append(PlannedTensor(OutputTensor(name, values.shape, FORMATS["F32"]), values))
    for rule in found:
        if rule.values.format:  # blocks that are quantized already stay what they are in files of any type
            chosen = FORMATS[rule.values.format]
        else:
            chosen = tensor_type(
                file_type, rule.target, rule.shape, tied=tied, n_layer=n_layer, n_expert=n_expert, pure=pure
            )
        tensors.append(PlannedTensor(OutputTensor(rule.target, rule.shape, chosen), rule.values, read))
    sampling, sampling_notes = sampling_metadata(checkpoint)
    metadata = {
        "general.architecture": layout.arch,
        "general.type": "model",
        **sampling,
        "general.name": checkpoint.folder.resolve().name,
        "general.size_label": _size_label(tensors, n_expert),
        **layout.metadata,
        "general.file_type": FILE_TYPES[file_type],
        **tokenizer,
        "general.quantization_version": QUANTIZATION_VERSION,
        "general.alignment": ALIGNMENT,
    }
    return Plan(
        metadata,
        tensors,
        [*checkpoint.notes, *config_notes, *layout.notes, *tokenizer_notes, *sampling_notes],
    )


def _match(checkpoint: Checkpoint, layout: Layout) -> tuple[list[TensorRule], dict[str, SourceTensor]]:
    """The rules of the layout whose sources are there, and the sources by name. GGPYError for one that is missing,
    misshapen, or left over."""
    tensors = _full_names(checkpoint, layout)
    plain = {rule.target: rule.source for rule in layout.tensors if isinstance(rule.source, str)}
    head, embeddings = plain.get("output.weight"), plain.get("token_embd.weight", "")
    if head is not None and layout.tied and head in tensors:
        if embeddings not in tensors:  # of two names for one tensor a checkpoint may have kept the other
            tensors[embeddings] = tensors.pop(head)
        elif _equal(tensors[head], tensors[embeddings]):
            del tensors[head]
        else:
            layout.notes.append(
                f"config.json ties the output to the embeddings, but the checkpoint has a {head!r} that differs; it is"
                " kept, as transformers does."
            )
    found, used = [], {}
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    for rule in (rule.chosen(shapes) for rule in layout.tensors):
        if not rule.required and not any(name in tensors for name in rule.names):
            continue
        for part in rule.values.stored():
            source = tensors.get(part.name)
            if source is None:
                if rule.target == "output.weight":
                    raise GGPYError(
                        f"The checkpoint lacks {head!r}, and its config.json does not tie the output to the embeddings"
                        " ('tie_word_embeddings'): a model without a head, as embedders are, writes no text."
                    )
                raise GGPYError(f"The checkpoint lacks the tensor {part.name!r}, which its config.json calls for.")
            if source.shape != part.shape:
                raise GGPYError(
                    f"The tensor {source.name!r} in {source.file.path.name} has the shape {list(source.shape)}"
                    f"; config.json calls for {list(part.shape)}."
                )
            source.check_type(raw=part.raw)
            used[part.name] = source
        found.append(rule)
    unknown = [tensor.name for name, tensor in tensors.items() if name not in used and not _NO_WEIGHTS.search(name)]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise GGPYError(
            f"The checkpoint holds the tensor {quoted(unknown[0])}{more}, which GGUF's {layout.arch} has no place for"
            "; the model is not the plain kind that its config.json names."
        )
    return found, used


def _full_names(checkpoint: Checkpoint, layout: Layout) -> dict[str, SourceTensor]:
    """The tensors under the names that the layout knows them by, without those that are no part of the file: models
    saved without their head lack its prefix."""
    known = {name for rule in layout.tensors for name in rule.names}
    tensors: dict[str, SourceTensor] = {}
    for stored, tensor in checkpoint.tensors.items():
        name = stored
        for pattern, other in layout.renames:
            name = re.sub(pattern, other, name)
        names = (name, layout.prefix + name, name.removeprefix(layout.prefix))
        full = next((candidate for candidate in names if candidate in known), name)
        reason = next((reason for pattern, reason in layout.left_out if re.match(pattern, name)), None)
        if full not in known and reason is not None:
            if reason not in layout.notes:
                layout.notes.append(reason)
            continue
        if full in tensors:
            raise GGPYError(
                f"The checkpoint holds both {quoted(tensors[full].name)} and {quoted(stored)}, the same part of a"
                " model."
            )
        tensors[full] = tensor
    return tensors


def _equal(a: SourceTensor, b: SourceTensor) -> bool:
    """True where two matrices hold the same weights, compared a chunk of rows at a time."""
    if a.shape != b.shape:
        return False
    step = max(1, _CHUNK_WEIGHTS // max(1, a.shape[-1] if a.shape else 1))
    chunks = ((at, min(at + step, a.n_rows)) for at in range(0, a.n_rows, step))
    return all(np.array_equal(float32(a.rows(*chunk)), float32(b.rows(*chunk))) for chunk in chunks)


def _size_label(tensors: list[PlannedTensor], n_expert: int) -> str:
    """The label of a model: with experts, their number and the size of one with all that is shared."""
    experts = [t for t in tensors if t.output.name.endswith("_exps.weight")]
    n_all, n_experts = (sum(t.n_weights for t in some) for some in (tensors, experts))
    if not experts:
        return size_label(n_all)
    return f"{n_expert}x{size_label(n_all - n_experts + n_experts // max(1, n_expert))}"


def size_label(n_weights: int) -> str:
    """Parameters in two digits or more, as in GGUF's naming convention: 135M, 1.8B."""
    for scale, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if n_weights > scale or scale == 1e3:
            digits = max(2 - len(str(round(n_weights / scale)).lstrip("0")), 0)
            return f"{n_weights / scale:.{digits}f}{suffix}"
    raise AssertionError
