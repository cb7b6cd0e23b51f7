"""A file of an unknown architecture: the known one that is nearest to it, and what it has that this one has not."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from ggpy.errors import GGPYError, quoted, shown
from ggpy.graph.language import Graph

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ggpy.gguf.file import GGUFFile
    from ggpy.models.base import Architecture


def unknown_architecture(
    file: GGUFFile, name: str, known: Iterable[str], by_name: Callable[[str], type[Architecture]]
) -> GGPYError:
    """The error for a file whose architecture is none that is known. The nearest is the one that has a place for most
    of the file's tensors, of equal ones that of a like name."""
    said = f"{file.path}: the model's architecture is {quoted(name)}, which ggpy does not know"
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        return GGPYError(f"{said}; `ggpy models` lists those that it knows.")
    alike = get_close_matches(name, list(known), 3)
    best, used, why = "", set[str](), ""
    for arch in [*alike, *(arch for arch in known if arch not in alike)]:
        found, error = _used_by(file, name, by_name(arch), embedding.shape[0])
        if len(found) > len(used) or (len(found) == len(used) and why and not error):
            best, used, why = arch, found, error
    if not best:
        return GGPYError(f"{said}, and none of those it knows is like it; `ggpy models` lists them.")
    left = [tensor for tensor in file.tensors if tensor not in used]
    if why:
        missing = f"as such it lacks something: {why.rstrip('.')}"
    elif left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        missing = f"which has no place for the tensor {quoted(left[0])}{more}"
    else:
        missing = "whose tensors are the same: what it computes of them may be another thing"
    return GGPYError(f"{said}; the nearest that it knows is {best!r}, {missing}.")


def _used_by(file: GGUFFile, name: str, family: type[Architecture], n_vocab: int) -> tuple[set[str], str]:
    """The tensors of the file that an architecture finds a place for, and what it finds missing, if anything."""
    entries = {
        key.replace(name, family.name, 1): value for key, value in file.metadata.items() if key.startswith(name + ".")
    }
    graph, why = Graph(file), ""
    try:
        family(entries, n_vocab, str(file.path.name)).build(graph)
    except GGPYError as error:
        why = shown(error)
    except Exception:  # a stranger's sizes may break any assumption
        why = "its sizes do not fit"
    return {info.name for node in graph.nodes for info in node.operation.tensors}, why
