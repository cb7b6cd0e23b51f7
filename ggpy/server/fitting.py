"""Room in memory for a model, by the sums of `ggpy fit`: its header is read, nothing is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ggpy.errors import GGPYError

#: Tokens of context for which there must be room where none is asked for: who loads takes as many as there are.
LEAST_CONTEXT = 8192


def fits(source: str | None, file_type: str | None, options: Mapping[str, Any]) -> bool:
    """True where the memory for a model is free, or where only loading it will tell. options: parameters of `LLM`."""
    from ggpy.host.memory import within
    from ggpy.hub.header import open_header
    from ggpy.llm_options import open_drafter, speculation_of
    from ggpy.runtime.load import find_cache_ram, find_device, find_gpu_layers, find_kv_memory
    from ggpy.runtime.placement import Placement

    try:
        speculation = speculation_of(*map(options.get, ("speculative", "draft_model", "speculative_config")))
        n_slots, n_threads = options.get("n_parallel") or 1, options.get("n_threads")
        with (
            open_header(source, file_type) as file,
            open_drafter(speculation, file_type, n_slots, n_threads) as drafter,
        ):
            placement = Placement(
                file,
                find_device(options.get("device") or "cpu"),
                find_gpu_layers(options.get("n_gpu_layers")),
                n_slots,
                cache_type_k=options.get("cache_type_k"),
                cache_type_v=options.get("cache_type_v"),
                split_mode=options.get("split_mode") or "layer",
                batch_invariant=bool(options.get("batch_invariant")),
                n_threads=n_threads,
                kv_memory=find_kv_memory(options.get("kv_memory")),
                engine=True,
                cache_ram=find_cache_ram(options.get("cache_ram")),
                drafter=drafter,
            )
            n_ctx = options.get("n_ctx") or min(placement.hparams.n_ctx_train, LEAST_CONTEXT)
            stages, n_batch = placement.place(n_ctx)
            cells = placement.kv_cells(stages, n_ctx, n_batch)
            return within(placement.uses(stages, n_ctx, n_batch, kv_cells=cells), placement.kv_memory)
    except GGPYError:
        return True
