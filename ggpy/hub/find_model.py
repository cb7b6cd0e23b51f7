"""A model's name to the file that is run: the one way for commands, library and server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ggpy.errors import GGPYError, shown
from ggpy.notes import Notify, Progress, ProgressBar

if TYPE_CHECKING:
    from ggpy.hub.default_model import KnownModel
    from ggpy.hub.hub import HubSpec


def find_model(
    name: str | os.PathLike[str] | None = None,
    file_type: str | None = None,
    notify: Notify = lambda text: None,
    progress: ProgressBar | None = None,
) -> Path:
    """The GGUF file that a name stands for, fetched or converted into the cache on first use.

    name: a GGUF file; a checkpoint folder, which is converted (see `hub.converted`); a model known by name, or by the
    beginning of its name; hf:user/repo[/file] or modelscope:user/repo[/file]; None for the default model. What exists
    on disk under a name wins. A path that does not exist is returned as it is: whoever opens it says so.
    file_type: the type that a folder is converted to, a key of `quant.recipes.FILE_TYPES`; None takes q8_0.
    notify: called with one-line notes. progress: opened with a label for what takes long, and called with bytes; None
    gives the label as a note.
    Raises GGPYError where there is no such model, it cannot be had, or `file_type` is given and the model is no folder.
    """
    bar = progress or _labels(notify)
    found = _found(None if name is None else os.fspath(name), file_type, notify, bar, quiet=progress is None)
    if _is(found, Path.is_dir):
        from ggpy.hub.converted import converted

        return converted(found, file_type, notify, bar)
    if file_type is not None and _is(found, Path.exists):
        raise _has_a_type(found, file_type)
    return found


def _found(name: str | None, file_type: str | None, notify: Notify, bar: ProgressBar, quiet: bool) -> Path:
    """The file or the checkpoint folder that a name stands for."""
    if name is not None and _is(path := Path(name), Path.exists):
        return path
    from ggpy.hub import default_model, hub

    if name is not None and (spec := hub.parse(name)):
        return hub.find(spec) or pull(spec, notify, quiet)
    known = default_model.DEFAULT if name is None else default_model.known_model(name)
    if known:
        if file_type is not None:  # before anything is fetched
            raise _has_a_type(known.name, file_type)
        return fetch_known(known, notify, bar)
    assert name is not None
    if "/" not in name and "\\" not in name and not path.suffix:
        default_model.named_model(name)  # a bare word was meant as a name: say which there are
    return path


def _is(path: Path, there: Callable[[Path], bool]) -> bool:
    """`Path.exists` or `Path.is_dir`, False where the system cannot say."""
    try:
        return there(path)
    except (OSError, ValueError):  # a name that the system cannot spell, a folder that may not be searched
        return False


def _has_a_type(name: object, file_type: str) -> GGPYError:
    return GGPYError(
        f"{shown(name)} is no checkpoint folder, so its type cannot be chosen; leave --type (file_type) "
        f"{shown(file_type)} out."
    )


def fetch_known(model: KnownModel, notify: Notify, bar: ProgressBar) -> Path:
    """The file of a known model, fetched, with a note, where the cache does not have it. Raises GGPYError."""
    from ggpy.hub.default_model import fetch

    if model.here:
        return model.path
    with bar(f"fetching {model.name}") as progress:
        path = fetch(model, progress)
    notify(f"fetched {model.name} ({model.size / 1e6:.0f} MB, {model.licence}) to {path}")
    return path


def pull(spec: HubSpec, notify: Notify, quiet: bool) -> Path:
    """Fetch a spec by `hub.pull`, with a note before and after; returns the GGUF file or the checkpoint folder."""
    from ggpy.hub import hub

    notify(f"fetching {spec} …")
    path = hub.pull(spec, quiet)
    notify(f"fetched {spec} to {path}")
    return path


def _labels(notify: Notify) -> ProgressBar:
    """A bar for those who watch none: a note where something begins."""

    @contextmanager
    def bar(label: str) -> Iterator[Progress]:
        notify(f"{label} …")
        yield lambda done, total: None

    return bar
