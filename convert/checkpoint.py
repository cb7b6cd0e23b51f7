"""A Hugging Face checkpoint folder: config.json and the tensors of its safetensors files, single or sharded.

Nothing in the folder is executed, and no name in it leads out of it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import TracebackType
from typing import Any

from ggpy.convert.safetensors import SafetensorsFile, SourceTensor
from ggpy.errors import GGPYError
from ggpy.models.hf import Config

_INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class Checkpoint:
    """An open checkpoint folder. `tensors` maps every tensor's name to where it lies. A context manager.

    GGPYError where the folder, its config or a shard is missing or unsound, and for pickled or quantized weights.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            hint = "; name the folder that holds it" if self.folder.is_file() else ""
            raise GGPYError(f"{self.folder} is not a checkpoint folder{hint}.")
        if not (self.folder / "config.json").is_file():
            raise GGPYError(f"{self.folder} has no config.json, so it is not a Hugging Face checkpoint.")
        self.config = Config(self.json("config.json"), str(self.folder / "config.json"))
        method = self.config.section("quantization_config", "compression_config").get("quant_method")
        if method is not None:
            raise GGPYError(
                f"{self.folder} holds weights already quantized with {method!r:.40}; convert the original checkpoint."
            )
        self._files: list[SafetensorsFile] = []
        try:
            self.tensors = self._open()
        except BaseException:
            self.close()
            raise

    @property
    def architecture(self) -> str:
        """The model class that config.json names."""
        names = self.config.get("architectures")
        if not isinstance(names, list) or not names or not isinstance(names[0], str):
            raise GGPYError(f"{self.config.where} names no model class in 'architectures'.")
        return names[0]

    def json(self, name: str) -> dict[str, Any]:
        """The JSON object in a file of the folder, {} where there is no such file."""
        text = self.text(name)
        if text is None:
            return {}
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise GGPYError(f"{self.folder / name} is not valid JSON: {error}.") from error
        if not isinstance(value, dict):
            raise GGPYError(f"{self.folder / name} must hold a JSON object; it holds {type(value).__name__}.")
        return value

    def text(self, name: str) -> str | None:
        """The text of a file of the folder, None where there is no such file."""
        data = self.bytes(name)
        try:
            return None if data is None else data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise GGPYError(f"{self.folder / name} is not UTF-8 text: {error}.") from error

    def bytes(self, name: str) -> bytes | None:
        """The content of a file of the folder, None where there is no such file."""
        path = self.folder / name
        if not path.is_file():
            return None
        try:
            return path.read_bytes()
        except OSError as error:
            raise GGPYError(f"Cannot read {path}: {error.strerror or error}.") from error

    def _open(self) -> dict[str, SourceTensor]:
        if (self.folder / _INDEX).is_file():
            return self._open_index()
        names = sorted(p.name for p in self.folder.glob("*.safetensors") if not p.name.startswith(("adapter", ".")))
        if "model.safetensors" in names:
            names = ["model.safetensors"]
        shards = [m for m in (re.fullmatch(r"(.*-)(\d{5})-of-(\d{5})\.safetensors", n) for n in names) if m]
        if shards and len(shards) == len(names):
            stem, total = shards[0][1], shards[0][3]
            names = [f"{stem}{i:05d}-of-{total}.safetensors" for i in range(1, int(total) + 1)]
        if not names:
            self._refuse_without_safetensors()
        if len(names) > 1 and not shards:
            raise GGPYError(
                f"{self.folder} holds several weight files ({', '.join(names[:4])}) and no {_INDEX} to choose."
            )
        tensors: dict[str, SourceTensor] = {}
        for name in names:
            for tensor in self._shard(name).tensors.values():
                if tensor.name in tensors:
                    raise GGPYError(f"The tensor {tensor.name!r} stands in two files, the second is {name}.")
                tensors[tensor.name] = tensor
        return tensors

    def _open_index(self) -> dict[str, SourceTensor]:
        weight_map = self.json(_INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise GGPYError(f"{self.folder / _INDEX} has no 'weight_map', so it does not say where the weights are.")
        files: dict[str, SafetensorsFile] = {}
        tensors = {}
        for name, shard in weight_map.items():
            if not _is_plain_name(shard):
                raise GGPYError(
                    f"{self.folder / _INDEX} puts the tensor {name!r} in {shard!r:.80}, not a file of the folder."
                )
            if shard not in files:
                files[shard] = self._shard(shard)
            if name not in files[shard].tensors:
                raise GGPYError(f"{_INDEX} promises the tensor {name!r} in {shard}, which does not hold it.")
            tensors[name] = files[shard].tensors[name]
        return tensors

    def _shard(self, name: str) -> SafetensorsFile:
        path = self.folder / name
        if not path.is_file():
            raise GGPYError(f"{self.folder} lacks the shard {name}; fetch it and convert again.")
        file = SafetensorsFile(path)
        self._files.append(file)
        return file

    def _refuse_without_safetensors(self) -> None:
        pickles = sorted(p.name for pattern in _PICKLES for p in self.folder.glob(pattern))
        if pickles:
            raise GGPYError(
                f"{self.folder} has its weights in {pickles[0]}, a pickle, which can run any code when it is read, so"
                " ggpy refuses it; take this model's safetensors, or save it again with safe_serialization=True."
            )
        raise GGPYError(f"{self.folder} holds no .safetensors file.")

    def close(self) -> None:
        for file in self._files:
            file.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _is_plain_name(name: Any) -> bool:
    """Whether a name in an index is a file's own name, on every system: no folders, no drive, no way out."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and "\0" not in name
        and PurePosixPath(name).name == name
        and PureWindowsPath(name).name == name
    )
