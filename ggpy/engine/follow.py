"""Requests run to their ends by the caller's own thread: few at a time of however many there are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from itertools import islice

from ggpy.engine.engine import Engine
from ggpy.engine.request import Request
from ggpy.errors import GGPYError


def at_once(engine: Engine) -> int:
    """How many unfinished requests keep every slot busy: one waits behind each that runs, for the slot that holds most
    of what it begins with."""
    return 2 * len(engine.slots)


def follow(
    engine: Engine,
    lock: threading.RLock,
    requests: Iterable[Request],
    limit: int | None = None,
    check: Callable[[], None] = lambda: None,
    keep_going: bool = False,
) -> Generator[tuple[int, Request, str], None, None]:
    """Run requests until all are finished; yields (its number, the request, its new text) as text comes, and for the
    last time when the request is finished. Closing it early ends them.

    requests: may be a generator, drawn from outside the lock and never further than `limit` unfinished ones. check:
    called before each step; what it raises ends them all. keep_going: a step that fails ends the requests that run,
    each with its `error`, and the others go on; two such steps in a row without a token between them are raised, as the
    runtime is then of no use any more.
    """
    source = enumerate(requests)
    live: dict[int, Request] = {}
    ended = failed = False
    try:
        while True:
            drawn: dict[int, Request] = {}
            if not ended:
                room = None if limit is None else limit - len(live)
                drawn = dict(islice(source, room))
                ended = room is None or len(drawn) < room
                live |= drawn
            if not live:
                return
            with lock:
                check()
                for request in drawn.values():
                    engine.add(request)
                if not any(request.finished for request in live.values()):
                    try:
                        failed = not engine.step() and failed
                    except Exception as error:
                        if not keep_going:
                            raise
                        known = error if isinstance(error, GGPYError) else _named(error)
                        if failed:
                            raise known from error
                        failed = True
                        _end_running(engine, known)
            for index, request in list(live.items()):
                finished = request.finished  # asked first: another thread may finish it once the text is taken
                text = request.take_text()
                if finished:
                    del live[index]
                if text or finished:
                    yield index, request, text
    finally:
        with lock:
            for request in live.values():
                engine.abort(request)


def _named(error: Exception) -> GGPYError:
    return GGPYError(f"The runtime failed: {str(error).rstrip('.') or type(error).__name__}.")


def _end_running(engine: Engine, error: GGPYError) -> None:
    """End the requests of a step that failed."""
    for request in list(engine.scheduler.running):
        request.error = error
        request.finish("error")
        engine.abort(request)
