"""A Hugging Face checkpoint folder: config.json and the tensors of its safetensors files, single or sharded.

Nothing in the folder is executed, and no name in it leads out of it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import TracebackType
from typing import Any, NoReturn

from ggpy.convert.safetensors import SafetensorsFile, SourceTensor
from ggpy.errors import GGPYError, quoted
from ggpy.models.hf_config import Config

_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class Checkpoint:
    """An open checkpoint folder. `tensors` maps every tensor's name to where it lies. A context manager.

    GGPYError where the folder, its config or a shard is missing or unsound, and for pickled weights.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            hint = "; name the folder that holds it" if self.folder.is_file() else ""
            raise GGPYError(f"{self.folder} is not a checkpoint folder{hint}.")
        if not (self.folder / "config.json").is_file():
            raise GGPYError(f"{self.folder} has no config.json, so it is not a Hugging Face checkpoint.")
        self.config = Config(self.json("config.json"), str(self.folder / "config.json"))
        self.notes: list[str] = []  # what was left aside, for the user to know
        self._files: list[SafetensorsFile] = []
        try:
            self.tensors = self._open()
        except BaseException:
            self.close()
            raise

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

    def files(self) -> list[Path]:
        """Every file of the checkpoint: all that is in the folder and one folder further down, whether ggpy reads it or
        not."""
        return [path for pattern in ("*", "*/*") for path in self.folder.glob(pattern)]

    def _open(self) -> dict[str, SourceTensor]:
        """The tensors of the weights that transformers would load: what config.json names, model.safetensors, what an
        index lists; and where there is none of these, the one set of weights in the folder."""
        here = sorted(p.name for p in self.folder.glob("*.safetensors") if not p.name.startswith("."))
        adapters = [name for name in here if name.startswith("adapter")]
        named = self.config.get("transformers_weights")
        if named is not None and not (is_plain_name(named) and named.endswith((".safetensors", ".index.json"))):
            raise GGPYError(
                f"{self.config.where} names {named!r:.80} as 'transformers_weights', no file of the folder."
            )
        names = [named] if named is not None else []
        if named is None and _WHOLE in here:
            names = [_WHOLE]
        elif named is None and (self.folder / _INDEX).is_file():
            names = [_INDEX]
        if names == [_WHOLE] and (self.folder / _INDEX).is_file():
            self.notes.append(f"{_WHOLE} is read; {_INDEX} and what it lists are not.")
        names = names or self._only_set([name for name in here if name not in adapters])
        if adapters and names:
            self.notes.append(f"{adapters[0]} is not applied; merge the adapter into the model first if it is meant.")
        if not names:
            self._refuse_without_safetensors(adapters)
        if names[0].endswith(".json"):
            return self._open_index(names[0])
        tensors: dict[str, SourceTensor] = {}
        for name in names:
            for tensor in self._shard(name).tensors.values():
                if tensor.name in tensors:
                    raise GGPYError(f"The tensor {quoted(tensor.name)} stands in two files, the second is {name}.")
                tensors[tensor.name] = tensor
        return tensors

    def _only_set(self, here: list[str]) -> list[str]:
        """The files of the one set of weights among these: a file, or the shards that its shards' names promise."""
        own = [name for name in here if name.startswith("consolidated")]
        if own and own == here:
            raise GGPYError(
                f"{self.folder} holds {own[0]}, weights under the names of Mistral's own code; take the model's"
                " model.safetensors or its shards, which transformers reads."
            )
        sets: dict[str, list[str]] = {}
        for name in here:
            shard = re.fullmatch(r"(.*-)\d{5}-of-(\d{5})\.safetensors", name)
            if shard:
                count = range(1, int(shard[2]) + 1)
                sets[f"{shard[1]}*-of-{shard[2]}"] = [f"{shard[1]}{i:05d}-of-{shard[2]}.safetensors" for i in count]
            elif name not in own:
                sets[name] = [name]
        if len(sets) > 1:
            raise GGPYError(
                f"{self.folder} holds several sets of weights ({', '.join(list(sets)[:4])}) and no {_INDEX} to choose;"
                f" name the one that is meant {_WHOLE}, or leave it alone in the folder."
            )
        return next(iter(sets.values()), [])

    def _open_index(self, index: str) -> dict[str, SourceTensor]:
        weight_map = self.json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise GGPYError(f"{self.folder / index} has no 'weight_map', so it does not say where the weights are.")
        files: dict[str, SafetensorsFile] = {}
        listed = {}
        for name, shard in weight_map.items():
            if not is_plain_name(shard):
                raise GGPYError(
                    f"{self.folder / index} puts the tensor {quoted(name)} in {shard!r:.80}, not a file of the folder."
                )
            if shard not in files:
                files[shard] = self._shard(shard)
            if name not in files[shard].tensors:
                raise GGPYError(f"{index} promises the tensor {quoted(name)} in {shard}, which does not hold it.")
            listed[name] = files[shard].tensors[name]
        # What shards hold and the index forgot belongs to the model as well; transformers reads shards whole.
        unlisted = {name: tensor for file in files.values() for name, tensor in file.tensors.items()}
        return {**unlisted, **listed}

    def module_tensors(self, folder: str) -> dict[str, SourceTensor]:
        """The tensors of a module in a folder of its own, as sentence-transformers saves them."""
        return dict(self._shard(f"{folder}/{_WHOLE}").tensors)

    def _shard(self, name: str) -> SafetensorsFile:
        path = self.folder / name
        if not path.is_file():
            raise GGPYError(f"{self.folder} lacks the shard {name}; fetch it and convert again.")
        file = SafetensorsFile(path)
        self._files.append(file)
        return file

    def _refuse_without_safetensors(self, adapters: list[str]) -> NoReturn:
        pickles = sorted(p.name for pattern in _PICKLES for p in self.folder.glob(pattern))
        if pickles:
            raise GGPYError(
                f"{self.folder} has its weights in {pickles[0]}, a pickle, which can run any code when it is read, so"
                " ggpy refuses it; take this model's safetensors, or save it again with safe_serialization=True."
            )
        if adapters:
            raise GGPYError(
                f"{self.folder} holds {adapters[0]}, an adapter and no model; merge it into its model first."
            )
        raise GGPYError(f"{self.folder} holds no .safetensors file.")

    def close(self) -> None:
        for file in self._files:
            file.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def is_plain_name(name: Any) -> bool:
    """True where a name in an index is a file's own name, on every system: no folders, no drive, no way out."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and "\0" not in name
        and PurePosixPath(name).name == name
        and PureWindowsPath(name).name == name
    )
