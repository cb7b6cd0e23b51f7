"""How `LLM` opens a model: its parameters, checked, as arguments of `load_model`, and the engine over it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ggpy import arguments
from ggpy.engine.engine import Engine, speculates
from ggpy.errors import GGPYError
from ggpy.runtime.load import Model, find_cache_ram, find_device, find_gpu_layers, find_kv_memory, load_draft

if TYPE_CHECKING:
    from pathlib import Path

    from ggpy.engine.context_shift import ContextShift
    from ggpy.engine.speculative import SpeculativeConfig
    from ggpy.notes import Notify
    from ggpy.runtime.drafter import Drafter

MAX_PARALLEL = 1 << 16
MAX_CONTEXT = (1 << 31) - 1
MAX_THREADS = 1024  # more than any machine has cores; a slip such as -t 100000 would keep it busy for minutes


def load_options(
    *,
    n_ctx: Any,
    n_threads: Any,
    n_parallel: Any,
    cache_type_k: Any,
    cache_type_v: Any,
    device: Any,
    n_gpu_layers: Any,
    split_mode: Any,
    batch_invariant: bool,
    kv_memory: Any,
    cache_ram: Any,
    notify: Notify,
) -> dict[str, Any]:
    """Arguments of `load_model`, by their names, from parameters of `LLM`. Raises GGPYError."""
    words = f"a whole number from 1 to {MAX_PARALLEL}"
    n_slots = arguments.whole("n_parallel", n_parallel, 1, MAX_PARALLEL, words)
    if n_ctx is not None:
        n_ctx = arguments.whole("n_ctx", n_ctx, 1, MAX_CONTEXT, f"a whole number from 1 to {MAX_CONTEXT}")
    if n_threads is not None:
        words = f"a whole number from 1 to {MAX_THREADS}; take the number of cores"
        n_threads = arguments.whole("n_threads", n_threads, 1, MAX_THREADS, words)
    for name, value in (("cache_type_k", cache_type_k), ("cache_type_v", cache_type_v)):
        if value is not None:
            arguments.text(name, value)
    if arguments.text("split_mode", split_mode) not in ("layer", "row"):
        raise arguments.wrong("split_mode", split_mode, "'layer' or 'row', what several GPUs share of a model")
    device = find_device(device, notify)
    layers = find_gpu_layers(n_gpu_layers)
    if device == "cpu" and layers:
        notify("n_gpu_layers (-ngl) is of no effect without a GPU: ask for one with the device 'cuda'")
    return {
        "n_ctx": n_ctx,
        "n_threads": n_threads,
        "n_slots": n_slots,
        "cache_type_k": cache_type_k,
        "cache_type_v": cache_type_v,
        "device": device,
        "n_gpu_layers": layers,
        "split_mode": split_mode,
        "batch_invariant": batch_invariant,
        "kv_memory": find_kv_memory(kv_memory),
        "cache_ram": find_cache_ram(cache_ram),
        "engine": True,
        "notify": notify,
    }


def context_shift_of(context_shift: Any, n_keep: Any, notify: Notify) -> ContextShift | None:
    """How answers go on in a full context, from parameters of `LLM`; None: they end. Raises GGPYError."""
    if n_keep is not None:
        n_keep = arguments.whole("n_keep", n_keep, 0, MAX_CONTEXT, f"a whole number from 0 to {MAX_CONTEXT}")
    if not arguments.flag("context_shift", context_shift):
        if n_keep is not None:
            raise GGPYError("n_keep (--keep) says what stays in a full context; ask for context_shift with it.")
        return None
    from ggpy.engine.context_shift import ContextShift

    return ContextShift(n_keep, notify)


def speculation_of(speculative: Any, draft_model: Any, config: Any) -> SpeculativeConfig | None:
    """Who drafts tokens, from parameters of `LLM`; None: nobody. Raises GGPYError."""
    if speculative is None and draft_model is None and config is None:
        return None
    from ggpy.engine.speculative import speculative_config

    return speculative_config(speculative, draft_model, config)


@contextmanager
def open_drafter(
    speculation: SpeculativeConfig | None, file_type: str | None, n_slots: int, n_threads: int | None
) -> Iterator[Drafter | None]:
    """Who drafts for a model of so many slots, by its header, for sums before anything is loaded."""
    from ggpy.hub.header import open_header
    from ggpy.runtime.drafter import drafter_of

    model = open_header(speculation.model, file_type) if speculation and speculation.model else None
    head = speculation is not None and speculation.method == "mtp"
    with drafter_of(model, head, n_slots, n_threads) as drafter:
        yield drafter


def open_engine(
    model: Model,
    draft_path: Path | None,
    speculation: SpeculativeConfig | None,
    shift: ContextShift | None,
    notify: Notify,
) -> tuple[Engine, list[Model]]:
    """The engine over a model with who drafts for it, and the models to be closed with it, in their order. Where that
    fails, they are closed."""
    models, runtime = [model], model.runtime
    draft = head = None
    try:
        if speculation is not None and speculates(runtime):
            if draft_path is not None:
                models.insert(0, load_draft(draft_path, model, notify))
                draft = models[0].runtime
            elif speculation.method == "mtp":
                from ggpy.runtime.prediction_head import PredictionHead

                head = runtime.head = PredictionHead(runtime, notify)
        engine = Engine(
            runtime,
            model.tokenizer,
            runtime.chain_for,
            host_memory=runtime.host_memory,
            speculative=speculation,
            draft=draft,
            context_shift=shift,
            head=head,
        )
    except BaseException:
        for one in models:
            one.close()
        raise
    if speculation is not None and engine.speculator is None:
        notify("speculation is off: the device chooses tokens by itself, and goes on without waiting for drafts")
    return engine, models
