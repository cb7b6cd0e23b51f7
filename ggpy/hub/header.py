"""A model's metadata and tensors by its name, without its weights: nothing is fetched, converted or kept."""

from __future__ import annotations

import os
from pathlib import Path

from ggpy.errors import GGPYError
from ggpy.gguf.file import GGUFFile
from ggpy.gguf.shards import RangeShard
from ggpy.hub.find_model import _has_a_type, _is
from ggpy.units import size_text


def open_header(name: str | os.PathLike[str] | None = None, file_type: str | None = None) -> GGUFFile:
    """The model that a name stands for, see `ggpy.hub.find_model.find_model`, for what its header says.

    A file on disk is opened. Of a checkpoint folder the conversion to `file_type` (None: q8_0) is planned, and of a
    model of a hub only the header is read, where its client can. The weights of these two are not there. Raises
    GGPYError where the model would have to be fetched.
    """
    found = _found(None if name is None else os.fspath(name))
    if isinstance(found, Path) and _is(found, Path.is_dir):
        return _converted(found, file_type)
    if file_type is not None:
        raise _has_a_type(name, file_type)
    return GGUFFile(found) if isinstance(found, Path) else GGUFFile.over(found)


def _found(name: str | None) -> Path | list[RangeShard]:
    if name is not None and _is(path := Path(name), Path.exists):
        return path
    from ggpy.hub import default_model, hub

    if name is not None and (spec := hub.parse(name)):
        return hub.find(spec) or hub.open_parts(spec)
    known = default_model.DEFAULT if name is None else default_model.known_model(name)
    if known:
        if known.here:
            return known.path
        raise GGPYError(f"{known.name} has to be fetched first, {size_text(known.size)}: ggpy pull {known.name}.")
    assert name is not None
    if "/" not in name and "\\" not in name and not path.suffix:
        default_model.named_model(name)  # a bare word was meant as a name: say which there are
    return path


def _converted(folder: Path, file_type: str | None) -> GGUFFile:
    """The file that a checkpoint folder would be converted to."""
    from ggpy.convert.checkpoint import Checkpoint
    from ggpy.convert.pipeline import plan_conversion
    from ggpy.convert.writer import ALIGNMENT, encode_header, file_size
    from ggpy.hub.converted import DEFAULT_TYPE

    with Checkpoint(folder) as checkpoint:
        plan = plan_conversion(checkpoint, (file_type or DEFAULT_TYPE).lower())
    outputs = [tensor.output for tensor in plan.tensors]
    start = encode_header(plan.metadata, outputs)
    for tensor in plan.tensors:
        if tensor.read:  # the first of those that come from the checkpoint: planning needs none of them
            break
        start += tensor.encode(0, tensor.output.n_rows).tobytes()
        start += bytes(-len(start) % ALIGNMENT)

    def read(offset: int, length: int) -> bytes:
        return start[offset : offset + length].ljust(length, b"\0")

    return GGUFFile.over([RangeShard(folder, file_size(plan.metadata, outputs), read)])
