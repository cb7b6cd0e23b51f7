"""The requests of a batch, shared out by Ray Data among replicas of a model on a cluster."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import ray.data
from ray.exceptions import RayError, RayTaskError

from ggpy.batch.files import BatchLine
from ggpy.batch.run import Report, Row, run_batch
from ggpy.cluster.connect import most_replicas, resources
from ggpy.errors import GGPYError, shown
from ggpy.llm import LLM

#: Requests of a block for each that is answered at a time. A block's results come together, and while the last of them
#: are found some slots are idle: of sixteen answers' time about half of one's.
BLOCK = 16

Open = Callable[[], LLM]


class Answers:
    """A model on a machine of the cluster."""

    def __init__(self, open_model: Open) -> None:
        self._llm = open_model()

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        """Results of some requests, each pickled, as those are."""
        found: list[tuple[Row, int]] = []
        run_batch(self._llm, map(pickle.loads, block["line"]), lambda row, n_tokens: found.append((row, n_tokens)))
        return {"result": np.array([pickle.dumps(each) for each in found], object)}


def run_batch_on_cluster(
    open_model: Open,
    options: Mapping[str, Any],
    lines: Iterable[BatchLine],
    report: Report,
    n_parallel: int,
    replicas: tuple[int, int | None],
) -> None:
    """`run_batch` with several replicas of the model. options: its parameters of `LLM`. replicas: least and most;
    None: as many as the cluster's machines take. Raises GGPYError."""
    rows = [{"line": pickle.dumps(line)} for line in lines]
    size = BLOCK * n_parallel
    n_blocks = -(-len(rows) // size)
    least, room = replicas[0], most_replicas(options)
    most = max(least, min(replicas[1] or room, n_blocks))
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    answered = ray.data.from_items(rows, override_num_blocks=n_blocks).map_batches(
        Answers,
        batch_size=size,
        compute=ray.data.ActorPoolStrategy(min_size=least, max_size=most, max_tasks_in_flight_per_actor=2),
        fn_constructor_args=(open_model,),
        **resources(options),
    )
    try:
        for block in answered.iter_batches(batch_size=None, batch_format="numpy"):
            for result in block["result"]:
                report(*pickle.loads(result))
    except RayTaskError as error:
        cause = error.cause
        raise cause if isinstance(cause, GGPYError) else GGPYError(f"A replica failed: {shown(cause, 200)}.") from None
    except RayError as error:
        raise GGPYError(f"The cluster failed: {shown(' '.join(str(error).split()), 300)}") from None
