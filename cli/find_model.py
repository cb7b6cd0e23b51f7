"""The model that a command runs on: found, fetched or converted, with notes and bars on the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ggpy.cli.terminal import note
from ggpy.notes import Progress


def find_model(name: str | None, file_type: str | None = None) -> Path:
    """The file of the model that a command was given, see `ggpy.hub.find_model`. Ctrl-C leaves nothing half done."""
    from ggpy.cli.interrupts import interrupts_raised
    from ggpy.hub import find_model

    with interrupts_raised():
        return find_model.find_model(name, file_type, note, progress_bar)


@contextmanager
def progress_bar(label: str) -> Iterator[Progress]:
    """A bar on a terminal, one line elsewhere; yields what to call with (bytes so far, bytes in all)."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not console.is_terminal:
        note(f"{label} …")
        yield lambda done, total: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
