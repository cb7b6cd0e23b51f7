"""A model's own head that predicts a further token (`ggpy.models.next_token`), beside the runtime of that model: its
block has a cache of its own, with a cell for each of the runtime's, and shares its threads and matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ggpy.errors import GGPYError
from ggpy.gguf.slices import read_vector
from ggpy.models import architecture_of
from ggpy.models.next_token import head_norm
from ggpy.runtime.planned import needed_predictor

if TYPE_CHECKING:
    from ggpy.notes import Notify
    from ggpy.runtime.runtime import Integers, Runtime


class PredictionHead:
    """The head of a runtime whose layers all run on the CPU. Raises GGPYError where its file has none."""

    def __init__(self, runtime: Runtime, notify: Notify) -> None:
        from ggpy.cpu.executor import CpuExecutor

        file, main = runtime.file, runtime.executor
        program = needed_predictor(file)
        if not isinstance(main, CpuExecutor):
            raise GGPYError("A model's own prediction head (mtp) runs on the CPU, and so must all its layers.")
        architecture = architecture_of(file)
        self._main, self.n_vocab, self.eps = main, runtime.n_vocab, architecture.hparams.norm_eps
        self._norm = read_vector(file, file.tensors["output_norm.weight"])
        self._norm_after: np.ndarray | None = None
        if architecture.predictor_goes_on_normed:
            name = head_norm(file.tensors, architecture.hparams.n_layer)
            self._norm_after = read_vector(file, file.tensors[name + ".weight"])
        self._executor = CpuExecutor(
            program,
            file,
            n_ctx=runtime.n_ctx,
            n_slots=runtime.n_slots,
            n_batch=runtime.n_batch,
            n_threads=main.n_threads,
            cache_type=runtime.cache_type,
            notify=notify,
            team=main.team,
            weights=main.weights,
        )

    def hidden(self, first: int, end: int) -> np.ndarray:
        """The hidden rows of the tokens first .. end - 1 of the runtime's last step: float32 [end - first, n_embd]."""
        return self._normed(self._main.residual(end)[first:], self._norm)

    def step(
        self, hidden: np.ndarray, tokens: Integers, slots: Integers, positions: Integers, outputs: Integers
    ) -> tuple[np.ndarray, np.ndarray]:
        """Evaluate hidden rows [n, n_embd] of tokens at `positions`, with the token after each. Returns for the wanted
        outputs [m] the logits of the token after that, float32 [m, n_vocab], a view valid until the next step, and the
        hidden rows with which the head may go on by itself, [m, n_embd]."""
        x, n, m = self._executor, len(tokens), len(outputs)
        assert n <= x.n_batch
        x.tokens[:n], x.slots[:n], x.positions[:n], x.outputs[:m] = tokens, slots, positions, outputs
        x.set_hidden(hidden)
        logits = x.run(n, m)
        rows = x.residual(n)[list(outputs)]
        return logits, rows if self._norm_after is None else self._normed(rows, self._norm_after)

    def copy_state(self, source: int, target: int, n: int) -> None:
        """Make a slot's cells those of another one."""
        self._executor.copy_state(source, target, n)

    def close(self) -> None:
        self._executor.close()

    def _normed(self, rows: np.ndarray, weight: np.ndarray) -> np.ndarray:
        scale = np.sqrt((rows * rows).mean(-1, keepdims=True, dtype=np.float64) + self.eps)
        return np.asarray(rows / scale * weight, np.float32)
