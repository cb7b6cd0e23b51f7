"""Models of the Hugging Face hub and of ModelScope: `hf:user/repo[/file]`, `modelscope:user/repo[/file]`.

Fetching needs the extra `hub`. Files live under the cache's `models/hf/user/repo`, where they are found without it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

from ggpy.errors import GGPYError, shown
from ggpy.gguf.shards import RangeShard, shard_names
from ggpy.paths import models_dir

_SPEC = re.compile(r"(hf|modelscope):([^/\s]+)/([^/\s]+)(?:/(\S+))?")
# What a checkpoint folder needs to be converted: no pickled weights, no other framework's.
CHECKPOINT_FILES = ["*.safetensors", "*.json", "*.tiktoken", "*.model", "*.jinja", "*.txt"]

_UNFINISHED = ".unfinished"  # in a checkpoint folder that is being fetched


@dataclass(frozen=True)
class HubSpec:
    """A repository, and perhaps one file in it."""

    hub: str  # "hf" or "modelscope"
    repo: str  # user/name
    file: str | None

    def __str__(self) -> str:
        return f"{self.hub}:{self.repo}" + (f"/{self.file}" if self.file else "")

    @property
    def folder(self) -> Path:
        return models_dir() / self.hub / self.repo


def parse(text: str) -> HubSpec | None:
    """The spec in a text, or None where it does not begin like one. Raises GGPYError on a malformed one."""
    if not text.startswith(("hf:", "modelscope:")):
        return None
    match = _SPEC.fullmatch(text)
    parts = PurePosixPath(text.split(":", 1)[1]).parts
    if not match or any(part.startswith(".") for part in parts):
        raise GGPYError(f"{shown(text)} is no model of a hub; write hf:user/repo, or hf:user/repo/file.gguf.")
    return HubSpec(match[1], f"{match[2]}/{match[3]}", match[4])


def find(spec: HubSpec) -> Path | None:
    """The GGUF file that was pulled for a spec, else the checkpoint folder; None where there is neither. Raises
    GGPYError where there are several files to choose from."""
    if spec.file:
        path = spec.folder / spec.file
        return path if _is_whole(path) else None
    here = [path.relative_to(spec.folder).as_posix() for path in sorted(spec.folder.rglob("*.gguf")) if _is_whole(path)]
    if here:
        return spec.folder / _the_one(spec, here)
    whole = (spec.folder / "config.json").is_file() and not (spec.folder / _UNFINISHED).exists()
    return spec.folder if whole else None


def pull(spec: HubSpec, quiet: bool = False) -> Path:
    """Fetch a spec's GGUF file, or, where the repository has none, the checkpoint folder. quiet: without the progress
    bars that the hub's client draws, as far as it lets them be turned off. Raises GGPYError."""
    hub: _HuggingFace | _ModelScope = _HuggingFace(spec) if spec.hub == "hf" else _ModelScope(spec)
    try:
        with hub.without_bars() if quiet else nullcontext():
            return _pull(spec, hub)
    except GGPYError:
        raise
    except Exception as error:  # whatever the hub's client raises: no such repository, no network, no permission
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise GGPYError(f"{spec} could not be fetched: {reason}.") from error


def open_parts(spec: HubSpec) -> list[RangeShard]:
    """The files of a spec's GGUF model, read in parts as they are asked for; nothing is kept. Raises GGPYError where it
    has to be fetched first."""
    if spec.hub != "hf":
        raise _to_be_fetched(spec, "of ModelScope files are read whole")
    hub = _HuggingFace(spec)
    with _readable(spec):
        names = hub.files()
    ggufs = sorted(name for name in names if name.endswith(".gguf"))
    if not ggufs:
        raise _to_be_fetched(spec, "it has no GGUF file, whose header would say all")
    name = spec.file or _the_one(spec, ggufs)
    if name not in names:
        raise GGPYError(f"{spec.repo} has no file {name}; it has {_listed(ggufs)}.")
    return [hub.open_part(shard) for shard in shard_names(name)]


def _to_be_fetched(spec: HubSpec, reason: str) -> GGPYError:
    return GGPYError(f"{spec} has to be fetched first (ggpy pull {spec}): {reason}.")


@contextmanager
def _readable(spec: HubSpec) -> Iterator[None]:
    """Whatever the hub's client raises, as a sentence: no such repository, no network, no permission."""
    try:
        yield
    except GGPYError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise GGPYError(f"{spec} could not be read: {reason}.") from error


def _pull(spec: HubSpec, hub: _HuggingFace | _ModelScope) -> Path:
    names = hub.files()
    ggufs = sorted(name for name in names if name.endswith(".gguf"))
    if spec.file:
        if spec.file not in names:
            raise GGPYError(f"{spec.repo} has no file {spec.file}; it has {_listed(ggufs) or 'no GGUF file'}.")
        return _fetch_shards(spec, hub, spec.file, names)
    if ggufs:
        return _fetch_shards(spec, hub, _the_one(spec, ggufs), names)
    if not any(name.endswith(".safetensors") for name in names):
        raise GGPYError(f"{spec.repo} has neither a GGUF file nor safetensors.")
    unfinished = spec.folder / _UNFINISHED  # files of a checkpoint come one by one
    spec.folder.mkdir(parents=True, exist_ok=True)
    unfinished.touch()
    folder = hub.fetch_folder()
    unfinished.unlink(missing_ok=True)
    return folder


def _fetch_shards(spec: HubSpec, hub: _HuggingFace | _ModelScope, name: str, names: list[str]) -> Path:
    """Fetch the file `name`, or all shards of the model that it is one of; its path, or the first one's."""
    shards = shard_names(name)
    for shard in shards:
        if shard not in names:
            raise GGPYError(f"{spec.repo} has no file {shard}, without which {name} is not whole; pull another file.")
    paths = [hub.fetch_file(shard) for shard in shards]
    return paths[0]


def _is_whole(path: Path) -> bool:
    """True where a file is there, with all other shards of its model: they come one by one."""
    return all(Path(shard).is_file() for shard in shard_names(str(path)))


def _the_one(spec: HubSpec, ggufs: list[str]) -> str:
    """The only model among GGUF files: its file, or its first shard."""
    ggufs = list(dict.fromkeys(shard_names(name)[0] for name in ggufs))
    if len(ggufs) > 1:
        raise GGPYError(f"{spec} has several GGUF files; name one, as in {spec}/{ggufs[0]}. It has {_listed(ggufs)}.")
    return ggufs[0]


def _listed(names: list[str]) -> str:
    return ", ".join(names)


def _client(module: str, needed_by: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise GGPYError(f"{needed_by} needs the package {module}; install it with: pip install 'ggpy[hub]'.") from None


class _HuggingFace:
    def __init__(self, spec: HubSpec) -> None:
        self.spec = spec
        self.client = _client("huggingface_hub", f"Fetching {spec}")

    @contextmanager
    def without_bars(self) -> Iterator[None]:
        utils: Any = None
        with suppress(ImportError):
            utils = import_module("huggingface_hub.utils")
        if utils is None or utils.are_progress_bars_disabled():
            yield
            return
        utils.disable_progress_bars()
        try:
            yield
        finally:
            utils.enable_progress_bars()

    def files(self) -> list[str]:
        return list(self.client.list_repo_files(self.spec.repo))

    def fetch_file(self, name: str) -> Path:
        return Path(self.client.hf_hub_download(self.spec.repo, name, local_dir=self.spec.folder))

    def open_part(self, name: str) -> RangeShard:
        """A file that is read in parts."""
        if not hasattr(self.client, "HfFileSystem"):
            raise _to_be_fetched(self.spec, "this version of huggingface_hub reads no parts of files")
        path = f"{self.spec.repo}/{name}"
        with _readable(self.spec):
            files = self.client.HfFileSystem()
            size = int(files.info(path)["size"])

        def read(offset: int, length: int) -> bytes:
            with _readable(self.spec):
                return bytes(files.cat_file(path, start=offset, end=offset + length))

        return RangeShard(Path(name), size, read)

    def fetch_folder(self) -> Path:
        folder = self.spec.folder
        return Path(self.client.snapshot_download(self.spec.repo, allow_patterns=CHECKPOINT_FILES, local_dir=folder))


class _ModelScope:
    def __init__(self, spec: HubSpec) -> None:
        self.spec = spec
        _client("modelscope", f"Fetching {spec}")

    @contextmanager
    def without_bars(self) -> Iterator[None]:
        yield  # its client has no way to turn them off

    def files(self) -> list[str]:
        api = _client("modelscope.hub.api", f"Fetching {self.spec}").HubApi()
        files = api.get_model_files(self.spec.repo, recursive=True)
        return [
            file["Path"] for file in files if file.get("Type") != "tree"
        ]  # newer clients list no folders, and no types

    def fetch_file(self, name: str) -> Path:
        download = _client("modelscope.hub.file_download", f"Fetching {self.spec}").model_file_download
        return Path(download(self.spec.repo, name, local_dir=str(self.spec.folder)))

    def fetch_folder(self) -> Path:
        download = _client("modelscope.hub.snapshot_download", f"Fetching {self.spec}").snapshot_download
        return Path(download(self.spec.repo, allow_patterns=CHECKPOINT_FILES, local_dir=str(self.spec.folder)))
