"""Checkpoint folders as GGUF files: converted into the cache on first use, and found there by what the folder holds.

The file is `models/converted/NAME-TYPE-CONTENT-CONVERTER.gguf`: the folder's name, the type, and two hashes, of the
folder (`content_key`) and of the code that converts. Nothing here imports the converter until it has to convert.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from ggpy.errors import GGPYError, quoted, shown
from ggpy.files import locked, sweep
from ggpy.hub.hub import CHECKPOINT_FILES
from ggpy.notes import Notify, Progress, ProgressBar
from ggpy.paths import models_dir
from ggpy.quant.recipes import FILE_TYPES
from ggpy.units import size_text

if TYPE_CHECKING:
    from ggpy.convert.writer import OutputTensor

#: The type that matrices take where none is asked for: half the size of 16 bits, and as good as those.
DEFAULT_TYPE = "q8_0"

_WHOLE = 64 << 20  # bytes up to which a file that is no weights is read whole; the largest vocabularies take 35 MB
_SAMPLES, _SAMPLE = 8, 4096  # of a larger file: how many, and bytes each
_HEADER = 100 << 20  # bytes of the largest header that safetensors allows
_IN_FOLDERS = ["*.jinja", "*.json", "*.safetensors"]  # named chat templates, the parts of an embedder
_NAME = 100  # bytes of a folder's name in a file's name


def converted(folder: Path, file_type: str | None, notify: Notify, bar: ProgressBar) -> Path:
    """The GGUF file of a checkpoint folder, converted now where the cache does not have it.

    file_type: a key of `quant.recipes.FILE_TYPES`; None takes DEFAULT_TYPE. Of several processes that want the same
    file one converts and the others wait, with a note. A conversion that is interrupted leaves nothing. Raises
    GGPYError with the converter's sentences, and where the folder changes meanwhile.
    """
    file_type = DEFAULT_TYPE if file_type is None else file_type.lower()
    if file_type not in FILE_TYPES:
        raise GGPYError(f"There is no type {quoted(file_type)}; choose one of {', '.join(FILE_TYPES)}.")
    content = content_key(folder)
    name = _name(folder)
    stem = f"{name}-{file_type.upper()}-"
    home = models_dir() / "converted"
    target = home / f"{stem}{content}-{_converter_key()}.gguf"
    try:
        if target.is_file():
            return target
        home.mkdir(parents=True, exist_ok=True)
        sweep(home)
    except OSError as error:
        raise GGPYError(
            f"{shown(folder)} is converted into {home}, which cannot be used: {error.strerror or error};"
            " set GGPY_CACHE to another folder."
        ) from None
    waiting = f"another process is converting {shown(name)}; waiting for it"
    with locked(home / f".{target.name}.lock", lambda: notify(waiting)):
        if not target.is_file():  # another process may have made it meanwhile
            _convert(folder, file_type, target, content, notify, bar)
            _tidy(target, stem, content, notify)
    return target


def content_key(folder: Path) -> str:
    """A hash of what a checkpoint folder holds, which takes milliseconds.

    Read whole, names and bytes: every file that says how to convert, to cut text or to answer (config.json,
    generation_config.json, tokenizers, chat templates: all of `hub.CHECKPOINT_FILES` but weights), and the JSON files
    and templates of folders in it, hidden ones aside. Of weights, and of anything above 64 MiB: name, size, time of the
    last change, header, and 8 samples of 4 KiB.

    Not noticed: weights overwritten with others of the same names, shapes and size whose time is set back, and which
    agree in all samples. Taken for a change though it is none: a new time, as a copy or another download has it.
    A folder that is moved as it stands keeps its key. Raises GGPYError where something cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for name, path, found in _files(folder):
            digest.update(f"{len(name)} {name} {found.st_size}\0".encode("utf-8", "surrogateescape"))
            if not stat.S_ISREG(found.st_mode):  # reading a pipe would wait for ever
                digest.update(b"no file")
            elif name.endswith(".safetensors") or found.st_size > _WHOLE:
                digest.update(b"%d\0" % found.st_mtime_ns)
                for part in _samples(path, found.st_size):
                    digest.update(part)
            else:
                digest.update(path.read_bytes())
    except OSError as error:
        where = error.filename if error.filename is not None else folder
        raise GGPYError(f"Cannot read {shown(where)}: {error.strerror or error}.") from None
    return digest.hexdigest()[:12]


def _files(folder: Path) -> Iterator[tuple[str, Path, os.stat_result]]:
    """The files of a checkpoint that count: their names in the folder, their paths and what the system says of them, in
    the order of names."""
    if not (folder / "config.json").is_file():
        from ggpy.convert.checkpoint import Checkpoint

        Checkpoint(folder).close()  # says what is wrong
    found = _entries(folder, CHECKPOINT_FILES)
    for inner in _entries(folder, ["*"]):
        with suppress(OSError):  # not ours to read: the converter passes over it too
            found += _entries(inner, _IN_FOLDERS) if inner.is_dir() else []
    for path in sorted(found):
        if not path.exists():  # a link that leads nowhere is no file for the converter either
            continue
        yield path.relative_to(folder).as_posix(), path, path.stat()


def _entries(folder: Path, patterns: list[str]) -> list[Path]:
    names = (name for name in os.listdir(folder) if not name.startswith("."))
    return [folder / name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _samples(path: Path, size: int) -> Iterator[bytes]:
    """The header of a safetensors file, and samples from all over this or any other file."""
    with open(path, "rb", buffering=0) as file:
        if path.suffix == ".safetensors":
            start = file.read(8)
            length = int.from_bytes(start, "little")
            yield start
            yield file.read(length) if length <= min(size, _HEADER) else b"no header"
        for i in range(_SAMPLES):
            file.seek(max(0, size - _SAMPLE) * i // (_SAMPLES - 1))
            yield file.read(_SAMPLE)


def _converter_key() -> str:
    """A hash of the code that decides what a conversion gives, so that another version of ggpy converts again."""
    digest = hashlib.sha256()
    for name, text in _converter_sources().items():
        if name.startswith(("ggpy.convert", "ggpy.models", "ggpy.quant")):
            digest.update(f"{name} {len(text)}\0".encode() + text)
    return digest.hexdigest()[:8]


def _converter_sources() -> dict[str, bytes]:
    """The modules that a conversion runs, and what they import: text by name."""
    from ggpy.codegen.sources import modules_in, sources

    return sources(["ggpy.convert.pipeline", "ggpy.quant.quantize", *modules_in("ggpy.models")])


def _name(folder: Path) -> str:
    """The folder's own name, wherever a link or `.` leads, cut to what fits into a file's name."""
    name = folder.resolve().name.encode("utf-8", "surrogateescape")[:_NAME]
    return name.decode("utf-8", "ignore") or "model"


class _Steps:
    """The observer of a conversion: a bar that opens when the conversion has been planned and begins to write."""

    def __init__(self, bar: ProgressBar, label: str, stack: ExitStack) -> None:
        self._bar, self._label, self._stack = bar, label, stack
        self._progress: Progress

    def begin(self, path: Path, n_bytes: int, n_weights: int) -> None:
        self._n_bytes, self._n_weights, self._done = n_bytes, n_weights, 0
        self._progress = self._stack.enter_context(self._bar(self._label))

    def tensor(self, tensor: OutputTensor) -> None:
        pass

    def advance(self, n_weights: int) -> None:
        self._done += n_weights
        self._progress(self._n_bytes * self._done // self._n_weights, self._n_bytes)


def _convert(folder: Path, file_type: str, target: Path, content: str, notify: Notify, bar: ProgressBar) -> None:
    from ggpy.convert.pipeline import convert

    name = shown(_name(folder))
    with ExitStack() as stack:
        steps = _Steps(bar, f"converting {name} to {file_type}", stack)
        summary = convert(folder, file_type, target, progress=steps, note=lambda text: notify(f"{name}: {text}"))
    try:
        changed = content_key(folder) != content
    except GGPYError:
        changed = True
    if changed:
        target.unlink(missing_ok=True)
        raise GGPYError(f"{shown(folder)} changed while it was converted, so nothing was kept; run it again.")
    notify(f"converted {name} to {file_type} in {summary.seconds:.1f} s ({size_text(summary.n_bytes)}): {target}")


def _tidy(target: Path, stem: str, content: str, notify: Notify) -> None:
    """Remove what another version of ggpy made of the same content, and mention what is left of other content, which
    may be that of another folder of this name."""
    size, n = 0, 0
    with suppress(OSError):
        for path in target.parent.iterdir():
            if path == target or not path.name.startswith(stem) or path.suffix != ".gguf":
                continue
            if path.name.startswith(f"{stem}{content}-"):
                path.unlink()
            else:
                size, n = size + path.stat().st_size, n + 1
    if n:
        which = "1 earlier conversion" if n == 1 else f"{n} earlier conversions"
        notify(f"{which} of this name beside it ({size_text(size)}); remove there what is no longer needed")
