"""Models as a command line or a TOML file names them.

A file holds options of `ggpy serve` by their names, and a table for each model:

    port = 8000
    keep-alive = "10m"

    [models.chat]
    source = "qwen.gguf"
    n_ctx = 8192
    aliases = ["gpt-4o"]
    sampling = { temperature = 0.6, top_p = 0.9 }
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from ggpy import arguments
from ggpy.errors import GGPYError, quoted, shown
from ggpy.files import read_file
from ggpy.server.models import ModelSpec

MOST = 1 << 20  # bytes of a configuration
_OWN = ("source", "aliases", "sampling")


def read_config(path: str) -> dict[str, Any]:
    """The values of a TOML file. Raises GGPYError."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(read_file(path, MOST).decode())
    except (ValueError, RecursionError) as error:
        raise GGPYError(f"{shown(path)} is no TOML ({shown(error, 100)}).") from None


def specs_of_config(tables: Any, options: Mapping[str, Any], where: str) -> list[ModelSpec]:
    """The models of a file's table `models`. options: what holds for all. Raises GGPYError."""
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise GGPYError(f"{shown(where)}: models is to hold a table for each model, as [models.NAME].")
    return [
        _spec(name, table, options, f"{shown(where)}, [models.{shown(name, 60)}]") for name, table in tables.items()
    ]


def _spec(name: str, table: Mapping[str, Any], options: Mapping[str, Any], where: str) -> ModelSpec:
    from ggpy.llm import LLM
    from ggpy.sampling.sampling_params import DEFAULTS, SamplingParams

    known = [each for each in inspect.signature(LLM).parameters if each not in ("path", "notify")]
    for key in table:
        if key not in (*known, *_OWN):
            raise GGPYError(
                f"{where}: {quoted(key, 60)} is no setting of a model; there are {', '.join((*_OWN, *known))}."
            )
    sampling = table.get("sampling", {})
    if not isinstance(sampling, dict) or not all(key in DEFAULTS for key in sampling):
        raise GGPYError(f"{where}: sampling is to hold defaults of {', '.join(DEFAULTS)}.")
    try:
        source = table.get("source")
        if source is not None:
            arguments.text("source", source)
        aliases = arguments.texts("aliases", table.get("aliases"))
        SamplingParams(**sampling)
    except GGPYError as error:
        raise GGPYError(f"{where}: {error}") from None
    own = {key: value for key, value in table.items() if key in known}
    return ModelSpec(name, source, {**options, **own}, sampling, aliases)


def specs_of_names(names: Sequence[str], options: Mapping[str, Any]) -> list[ModelSpec]:
    """The models that a command line names: MODEL, or NAME=MODEL. Raises GGPYError."""
    found = []
    for given in names:
        name, equals, source = given.partition("=")
        if not equals or not source or not re.fullmatch(r"[\w.:+-]+", name):
            source = given
            name = given if re.match("[a-z]+:", given) else PurePath(given).name.removesuffix(".gguf")
        found.append(ModelSpec(name, source, options))
    return found


def checked_specs(specs: Sequence[ModelSpec]) -> list[ModelSpec]:
    """The same models; raises GGPYError where two have a name, or where a file is not there or not a model, so that a
    slip is known before a client asks."""
    seen: dict[str, ModelSpec] = {}
    for spec in specs:
        for name in (spec.name, *spec.aliases):
            if name in seen:
                raise GGPYError(
                    f"Two models are named {shown(name)}; name one otherwise: -m NAME={shown(spec.source)}."
                )
            seen[name] = spec
        if spec.source is not None:
            _check_source(spec.source)
    return list(specs)


def _check_source(source: str) -> None:
    from pathlib import Path

    from ggpy.gguf.file import GGUFFile
    from ggpy.hub import hub
    from ggpy.hub.default_model import known_model

    path = Path(source)
    try:
        there, is_file = path.exists(), path.is_file()
    except (OSError, ValueError):
        there, is_file = False, True
    if there and not is_file:
        return  # a folder, which is converted when it is loaded
    if not there and (hub.parse(source) or known_model(source)):
        return  # fetched when it is loaded
    GGUFFile(path).close()


def seconds(text: str) -> float | None:
    """A duration: 90, 90s, 5m, 2h; -1 for ever, which is None. Raises ValueError."""
    match = re.fullmatch(r"(-1)|(\d{1,9}(?:\.\d{1,9})?)(s|m|h)?", text.strip())
    if match is None:
        raise ValueError(text)
    return None if match[1] else float(match[2]) * {"s": 1, "m": 60, "h": 3600}[match[3] or "s"]
