"""Find the model file that `-m` names; fetch it, with a note to the user, where it is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ggpy.errors import GGPYError, shown
from ggpy.hub.default_model import DEFAULT, KNOWN, KnownModel, fetch, known_model


def find_or_fetch(model: str | None) -> Path:
    """The file that `-m` names: a path, a known model (fetched where it is missing) or a pulled hub model."""
    from ggpy.hub import hub

    if model is None:
        return fetch_known(DEFAULT, quiet=True)
    path = Path(model)
    if path.exists():
        return path
    if spec := hub.parse(model):
        return hub.find(spec)
    known = known_model(model)
    if known is None and "/" not in model and "\\" not in model and not path.suffix:
        named_model(model)  # a bare word was meant as a name: say which there are
    return fetch_known(known, quiet=True) if known else path  # that a path is missing, the reader of the file says


def named_model(name: str) -> KnownModel:
    model = known_model(name)
    if model is None:
        names = ", ".join(known.name for known in KNOWN.values())
        raise GGPYError(
            f"No file and no known model is called {shown(name)}; known are {names}, hf:user/repo and modelscope:…."
        )
    return model


def fetch_known(model: KnownModel, quiet: bool = False) -> Path:
    """The file of a known model, fetched where it is missing. quiet: no note where it is there already."""
    from ggpy.cli.interrupts import raise_interrupts
    from ggpy.cli.terminal import note

    if model.here:
        if not quiet:
            note(f"{model.name} is in {model.path}")
        return model.path
    raise_interrupts()
    with byte_progress(f"fetching {model.name}") as progress:
        path = fetch(model, progress)
    note(f"fetched {model.name} ({model.size / 1e6:.0f} MB, {model.licence}) to {path}")
    return path


@contextmanager
def byte_progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, one line elsewhere; yields what to call with (bytes so far, bytes in all)."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from ggpy.cli.terminal import note

    console = Console(stderr=True)
    if not console.is_terminal:
        note(f"{label} …")
        yield lambda done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
