"""`ggpy pull`: fetch a model on purpose; and what `-m` means to every other command."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from ggpy.cli.options import FILE_NAME
from ggpy.default_model import DEFAULT, KNOWN, KnownModel, fetch, known_model
from ggpy.errors import GGPYError, shown


@click.command(
    epilog="""
    \b
    Examples:
      ggpy pull
      ggpy pull SmolLM2-135M-Instruct
      ggpy pull hf:user/repo/model-q4_0.gguf
      ggpy pull modelscope:user/repo
    """
)
@click.argument("name", type=FILE_NAME, required=False)
def pull(name: str | None) -> None:
    """Fetch the model NAME into the cache; without NAME, list the models known by name.

    hf:user/repo[/file] and modelscope:user/repo[/file] fetch from the hubs, with the extra `hub` installed.
    """
    from ggpy import hub
    from ggpy.cli.entry import raise_interrupts
    from ggpy.cli.terminal import note

    raise_interrupts()
    if name is None:
        for model in KNOWN.values():
            where = f"in {model.path}" if model.here else "not fetched"
            click.echo(f"{model.name}  {model.size / 1e6:.0f} MB  {model.licence}  {where}")
        return
    spec = hub.parse(name)
    if spec is not None:
        path = hub.pull(spec)
        note(f"fetched {spec} to {path}")
        if path.is_dir():
            note(f"a checkpoint: convert it with ggpy convert -i {path} -t q4_0 -o {path.name}.gguf")
    else:
        path = _fetch_known(_known(name))
    click.echo(path)


def find_or_fetch(model: str | None) -> Path:
    """The file that `-m` names: a path, a known model (fetched where it is missing) or a pulled hub model."""
    from ggpy import hub

    if model is None:
        return _fetch_known(DEFAULT, quiet=True)
    path = Path(model)
    if path.exists():
        return path
    if spec := hub.parse(model):
        return hub.find(spec)
    known = known_model(model)
    if known is None and "/" not in model and "\\" not in model and not path.suffix:
        _known(model)  # a bare word was meant as a name: say which there are
    return _fetch_known(known, quiet=True) if known else path  # that a path is missing, the reader of the file says


def _known(name: str) -> KnownModel:
    model = known_model(name)
    if model is None:
        names = ", ".join(known.name for known in KNOWN.values())
        raise GGPYError(
            f"No file and no known model is called {shown(name)}; known are {names}, hf:user/repo and modelscope:…."
        )
    return model


def _fetch_known(model: KnownModel, quiet: bool = False) -> Path:
    """quiet: say nothing where it is there already."""
    from ggpy.cli.entry import raise_interrupts
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
