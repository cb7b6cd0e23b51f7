"""The engine in a thread of its own, for callers in an event loop: requests are added and aborted at any time, and what
they gain is awaited."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from ggpy.engine.engine import Engine
from ggpy.engine.request import Request
from ggpy.errors import GGPYError

if TYPE_CHECKING:
    from ggpy.engine.beam_requests import BeamSearchRequest
    from ggpy.engine.beam_search import BeamSearchOutput


class AsyncEngine:
    """A thread that steps an engine while there is work. lock: held during each step, and by whoever else uses the
    engine. The thread starts with the first request and ends with `close`.

    What callers want done is queued, and done by the thread before its next step: who waited for the lock would wait
    for long, as the thread takes it again at once.
    """

    def __init__(self, engine: Engine, lock: threading.RLock | None = None) -> None:
        self.engine = engine
        self._lock = lock or threading.RLock()
        self._work = threading.Condition(threading.Lock())
        self._orders: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._news: dict[Request, tuple[asyncio.AbstractEventLoop, _News]] = {}  # of those who wait for one
        self._reading: list[Request] = []  # whose callers watch how their prompts are read
        self._thread: threading.Thread | None = None
        self._closed = False

    async def follow(self, request: Request, progress: bool = False) -> AsyncGenerator[str, None]:
        """Run a request; yields its text as it comes, at least once, the last time when it is finished. Leaving early
        aborts it. Raises the error of a request that fails, or that is not admitted. progress: yields, without text,
        after each step that has read some of its prompt, too."""
        loop = asyncio.get_running_loop()
        news = _News(loop)

        def add() -> None:
            self.engine.add(request)
            self._news[request] = loop, news
            if progress:
                self._reading.append(request)

        try:
            await asyncio.wrap_future(self._order(add))
            while True:
                await news.wait()
                finished = request.finished  # asked first: it may finish once the text is taken
                text = request.take_text()
                if finished and request.error is not None:
                    raise request.error
                if text or finished or (progress and not request.n_chosen):
                    yield text
                if finished:
                    return
        finally:
            self._news.pop(request, None)
            if not request.finished:
                self.abort(request)

    async def search(self, search: BeamSearchRequest) -> BeamSearchOutput:
        """Run a beam search beside the requests. Leaving early ends it. Raises the error of one that fails."""
        from ggpy.engine.beam_requests import BeamSearches

        over, loop = asyncio.Event(), asyncio.get_running_loop()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(over.set)

        search.on_finish = tell
        try:
            await asyncio.wrap_future(self._order(lambda: BeamSearches.of(self.engine).add(search)))
            while not search.finished:
                await over.wait()
        finally:
            if not search.finished and not self._closed:
                self._order(search.end)
        return search.output()

    def abort(self, request: Request) -> None:
        """End a request; its slot is free before the next step. From any thread."""

        def abort() -> None:
            self.engine.abort(request)
            self._tell((request,))

        if not self._closed:
            self._order(abort)

    def close(self) -> None:
        """End the thread; requests that still run are aborted."""
        with self._work:
            self._closed = True
            self._work.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _order(self, what: Callable[[], None]) -> Future[None]:
        """Have the thread do something before its next step."""
        done: Future[None] = Future()
        with self._work:
            if self._closed:
                raise GGPYError("The engine was closed; open the model again.")
            self._orders.append((what, done))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="ggpy-engine", daemon=True)
                self._thread.start()
            self._work.notify_all()
        return done

    def _tell(self, requests: Iterable[Request]) -> None:
        """Tell those who wait for requests, all of a loop at once: it is woken by a byte through a socket, which takes
        longer than all else that a token costs here."""
        waiting: dict[asyncio.AbstractEventLoop, list[_News]] = {}
        for request in requests:
            if (found := self._news.get(request)) is not None:
                waiting.setdefault(found[0], []).append(found[1])
        for loop, news in waiting.items():
            with contextlib.suppress(RuntimeError):  # of a loop that was closed: nobody waits there any more
                loop.call_soon_threadsafe(_set_all, news)

    def _run(self) -> None:
        while True:
            with self._work:
                self._work.wait_for(lambda: self._closed or self._orders or self.engine.has_work)
            with self._lock:
                while self._orders:
                    what, done = self._orders.popleft()
                    if not done.set_running_or_notify_cancel():
                        continue
                    try:
                        what()
                    except Exception as error:
                        done.set_exception(error)
                    else:
                        done.set_result(None)
                if self._closed:
                    self._end_all("abort", None)
                    return
                try:
                    advanced = self.engine.step() if self.engine.has_work else []
                except Exception as error:  # of the runtime: nobody's answer can go on
                    known = error if isinstance(error, GGPYError) else GGPYError(f"The runtime failed: {error}")
                    self._end_all("error", known)
                    advanced = []
            if self._reading:
                self._reading = [request for request in self._reading if not (request.finished or request.n_chosen)]
                advanced = [*advanced, *self._reading]
            self._tell(advanced)

    def _end_all(self, reason: str, error: GGPYError | None) -> None:
        """End all requests, and tell those who wait for them."""
        if self.engine.beams is not None:
            self.engine.beams.end_all(error or GGPYError("The engine was closed; open the model again."))
        ended = [*self.engine.scheduler.running, *self.engine.scheduler.waiting]
        for request in ended:
            request.error = error
            request.finish(reason)
            self.engine.abort(request)
        self._tell(ended)


class _News:
    """News of one request for its caller: an event that one task awaits, which keeps no queue as asyncio's does."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._there = False
        self._waiter: asyncio.Future[None] | None = None

    def set(self) -> None:
        self._there = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        """Wait for news, if there are none since the last call."""
        if not self._there:
            self._waiter = self._loop.create_future()
            await self._waiter
        self._there = False


def _set_all(waiting: list[_News]) -> None:
    for news in waiting:
        news.set()
