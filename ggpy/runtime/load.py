"""Opening a model: the user's choice of devices and layers, and a file's tokenizer, template and runtime."""

from __future__ import annotations

import os
import re
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggpy import arguments
from ggpy.errors import GGPYError, quoted
from ggpy.host.cores import cpus

if TYPE_CHECKING:
    from ggpy.gguf.file import GGUFFile
    from ggpy.host.memory import KVMemory
    from ggpy.notes import Notify
    from ggpy.runtime.runtime import Runtime
    from ggpy.text.chat_template import ChatTemplate
    from ggpy.text.tokenizer import Tokenizer


@dataclass
class Model:
    """An opened model: its file, tokenizer, template and runtime."""

    file: GGUFFile
    tokenizer: Tokenizer
    template: ChatTemplate | None
    runtime: Runtime

    def close(self) -> None:
        self.runtime.close()
        self.file.close()


def find_device(asked: str, notify: Notify | None = None) -> str:
    """The device that "cpu", "cuda", "cuda:1" or "auto" stands for; raises GGPYError for anything else. A note says
    why "auto" is the CPU."""
    if arguments.text("device", asked) == "auto":
        from ggpy.cuda.driver import unusable

        why = unusable()
        if why and notify:
            notify(f"device auto takes the CPU: {why}")
        return "cpu" if why else "cuda"
    kind, colon, list_ = asked.partition(":")
    numbers = list_.split(",") if colon else []
    named = all(number.isascii() and number.isdecimal() and len(number) < 5 for number in numbers)
    named = named and len(set(map(int, numbers))) == len(numbers)
    if asked != "cpu" and not (kind == "cuda" and named):
        raise GGPYError(
            f"device is {quoted(asked, 80)}, but it must be 'cpu', 'cuda', 'cuda:1' for a second GPU, 'cuda:0,1' for "
            "both, or 'auto'."
        )
    return asked


def find_gpu_layers(asked: int | str | None) -> int | None:
    """The number of layers that "auto" (None: as many as fit), "all" or a number stands for."""
    if asked is None:
        return None
    if isinstance(asked, str):
        if asked == "auto":
            return None
        if asked in ("all", "-1"):
            return sys.maxsize
        if asked.isascii() and asked.isdecimal():
            return int(asked) if len(asked) < 19 else sys.maxsize
    words = "a number of layers from 0, 'auto' or 'all'"
    n = arguments.whole("n_gpu_layers", asked, -1, sys.maxsize, words)
    return sys.maxsize if n < 0 else n


_UNITS = {"": 1, **{unit: 1 << 10 * (i + 1) for i, unit in enumerate("KMGT")}}
_AMOUNT = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*(%|[KMGT]?)(?:i?B)?", re.ASCII | re.IGNORECASE)


def find_kv_memory(asked: int | float | str | None) -> KVMemory | None:
    """The limit that a number or a text stands for: "2G", "512 MiB" and whole numbers are bytes, the units powers of
    1024; "50%", "0.5" and fractions up to 1.0 are a share. Raises GGPYError for anything else."""
    words = "bytes (2G, 512M, 1073741824) or a share of the memory that weights leave free (50%, 0.5)"
    if asked is None or not isinstance(asked, str):
        if isinstance(asked, float):
            return arguments.number("kv_memory", asked, 1e-6, 1.0, words)
        return None if asked is None else arguments.whole("kv_memory", asked, 1, sys.maxsize, words)
    match = _AMOUNT.fullmatch(asked.strip())
    if match:
        number, unit = float(match[1]), match[2].upper()
        if unit == "%" or (not unit and "." in match[1]):
            number /= 100 if unit == "%" else 1
            if 1e-6 <= number <= 1 and not asked.strip().upper().endswith("B"):
                return number
        elif (n_bytes := int(number * _UNITS[unit])) >= 1:
            return min(n_bytes, sys.maxsize)
    raise arguments.wrong("kv_memory", asked, words)


def find_cache_ram(asked: int | str | None) -> int | None:
    """The bytes that a number or a text, "2G" or "0", stands for. Raises GGPYError for anything else."""
    if isinstance(asked, str):
        match = _AMOUNT.fullmatch(asked.strip())
        if match and match[2] != "%":
            return min(int(float(match[1]) * _UNITS[match[2].upper()]), sys.maxsize)
    elif asked is None:
        return None
    return arguments.whole("cache_ram", asked, 0, sys.maxsize, "bytes: 2G, 512M, 1073741824, or 0 for none")


def load_model(
    path: Path,
    n_ctx: int | None,
    n_threads: int | None,
    notify: Notify,
    beside: Runtime | None = None,
    chat_template: str | os.PathLike[str] | None = None,
    draft: Path | None = None,
    head: bool = False,
    **placing: Any,
) -> Model:
    """Open a file with its tokenizer, chat template and runtime; nothing stays open where one of them fails. beside: a
    runtime with which this one shares threads. chat_template: in place of the file's own, as of `find_template`.
    draft, head: a model, or the file's own head, that is to draft tokens, and needs memory, too. placing: the arguments
    of `Placement` beside the file."""
    from ggpy.gguf.file import GGUFFile
    from ggpy.text.chat_template import ChatTemplate, find_template
    from ggpy.text.tokenizer import Tokenizer

    with ExitStack() as undo:
        file = GGUFFile(path)
        undo.callback(file.close)
        chosen = None if chat_template is None else find_template(file, chat_template)
        from ggpy.runtime.drafter import drafter_of
        from ggpy.runtime.placement import Placement
        from ggpy.runtime.runtime import Runtime

        if n_threads and n_threads > cpus():
            notify(f"{cpus()} threads run, not {n_threads}: on {cpus()} CPUs more would only take turns")
            n_threads = cpus()
        with drafter_of(draft, head, placing.get("n_slots", 1), n_threads) as drafter:
            placement = Placement(file, n_threads=n_threads, drafter=drafter, **placing)
            context = placement.context(n_ctx, notify)
            # The runtime first: its threads pack the weights while this one reads the vocabulary.
            runtime = Runtime(file, context, n_threads, notify, placement, beside)
        undo.callback(runtime.close)
        tokenizer = Tokenizer.from_gguf(file)
        check_rows(file, tokenizer)
        if tokenizer.note is not None:
            notify(tokenizer.note)
        template = ChatTemplate.from_gguf(file, tokenizer, chosen)
        undo.pop_all()
        return Model(file, tokenizer, template, runtime)


def load_draft(path: Path, target: Model, notify: Notify) -> Model:
    """Open a model that is to draft tokens for another one, loaded with this `draft`: on the CPU, on the other's
    threads, with as many slots. Raises GGPYError where their vocabularies differ."""
    runtime, said = target.runtime, f"the draft model {path.name}: "
    draft = load_model(
        path, runtime.draft_ctx, runtime.n_threads, lambda note: notify(said + note), runtime, n_slots=runtime.n_slots
    )
    difference = target.tokenizer.difference(draft.tokenizer)
    if difference is not None:
        draft.close()
        raise GGPYError(
            f"{path.name} cannot draft for {target.file.path.name}, as their vocabularies differ: {difference}; take a"
            " smaller model of the same family."
        )
    return draft


def check_rows(file: GGUFFile, tokenizer: Tokenizer) -> None:
    """Check that model and vocabulary belong together: else answers would fail midway, or be wrong silently."""
    n_rows = file.tensors["token_embd.weight"].shape[0]
    if n_rows != tokenizer.n_vocab:
        raise GGPYError(
            f"{file.path}: the tensor 'token_embd.weight' has {n_rows} rows, but the vocabulary has "
            f"{tokenizer.n_vocab} tokens; the file's tokenizer is not this model's."
        )
