"""How far many requests have come: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ggpy.notes import Notify

Advance = Callable[[int], None]  # one more is done, which took so many generated tokens


@contextmanager
def requests_bar(total: int, done: int = 0, notify: Notify | None = None, unit: str = "tok/s") -> Iterator[Advance]:
    """A bar on stderr for `total` requests, of which `done` were there before; yields what to call with the generated
    tokens of each that is done, or whatever `unit` counts. notify: where stderr is no terminal, called with a line for
    every tenth."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        with _lines(total, done, notify or (lambda line: None), unit) as advance:
            yield advance
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False), TimeRemainingColumn())
    started, n_tokens = time.perf_counter(), 0
    with Progress(*columns, console=console, transient=True, refresh_per_second=4) as bar:
        task = bar.add_task("", total=total, completed=done)

        def advance(tokens: int) -> None:
            nonlocal n_tokens
            n_tokens += tokens
            bar.update(task, advance=1, description=_rate(n_tokens, started, unit))

        yield advance


@contextmanager
def _lines(total: int, done: int, notify: Notify, unit: str) -> Iterator[Advance]:
    started, n_tokens, said = time.perf_counter(), 0, 10 * done // max(total, 1)

    def advance(tokens: int) -> None:
        nonlocal done, n_tokens, said
        done, n_tokens = done + 1, n_tokens + tokens
        tenths = 10 * done // max(total, 1)
        if tenths > said:
            said = tenths
            notify(f"{10 * tenths:3d}%  {done} of {total}  {_rate(n_tokens, started, unit)}")

    yield advance


def _rate(n_tokens: int, started: float, unit: str) -> str:
    return f"{n_tokens / max(time.perf_counter() - started, 1e-9):.1f} {unit}"
