"""`ggpy warmup`: compile kernels ahead, so that no first run has to."""

from __future__ import annotations

from pathlib import Path

import click

from ggpy.cli.options import FILE_NAME, MODEL_HELP, type_option
from ggpy.errors import GGPYError

COMMON = ("q4_0", "q4_1", "q8_0", "q4_k_m", "q6_k")  # where nothing is named and no model is here


@click.command(
    epilog="""
    \b
    Examples:
      ggpy warmup
      ggpy warmup -m model.gguf
      ggpy warmup -m ./Qwen3-0.6B --type q4_0
      ggpy warmup --types q4_0,q8_0,q4_k_m
    """
)
@click.option("-m", "--model", type=FILE_NAME, metavar="MODEL", help=MODEL_HELP)
@type_option
@click.option("--types", metavar="TYPE,…", help="Weight types in place of a model: q4_0,q8_0,q4_k_m, ….")
def warmup(model: str | None, file_type: str | None, types: str | None) -> None:
    """Compile the kernels that a model needs, or weights of the named types, for this CPU.

    Without either: those of the default model where it has been fetched, else of the common types. A model's first run
    compiles what is missing by itself; this does it ahead, for instance while an image is built.
    """
    from ggpy.cli.terminal import note
    from ggpy.codegen.kernel_files import is_kept, why_not_kept
    from ggpy.codegen.native import isa, kernel_cache
    from ggpy.cpu.needed import compile_missing

    what, names = _wanted(model, file_type, types)
    if not is_kept(kernel_cache()):
        raise GGPYError(f"Nothing would be kept, as {why_not_kept(kernel_cache())}.")
    new = compile_missing(names, note)
    now = f"{len(new)} compiled now ({', '.join(new)})" if new else "all compiled before"
    click.echo(f"{what}: {len(names)} kernels for {isa()}, {now}; kept in {kernel_cache()}")


def _wanted(model: str | None, file_type: str | None, types: str | None) -> tuple[str, list[str]]:
    """A label for what to compile for, and the names of its kernels."""
    from ggpy.cpu.needed import type_kernels
    from ggpy.hub.default_model import DEFAULT

    if model and types:
        raise GGPYError("-m and --types each say what to compile for; give one of them.")
    if file_type is not None and model is None:
        raise GGPYError("--type is for a checkpoint folder given with -m; --types names types without a model.")
    if types is not None:
        asked = [name.strip() for name in types.split(",") if name.strip()]
        if not asked:
            raise GGPYError("--types names no type; give some, as in --types q4_0,q8_0.")
        return ", ".join(asked), type_kernels(asked)
    if model is None and not DEFAULT.here:
        return ", ".join(COMMON), type_kernels(COMMON)
    from ggpy.cli.find_model import find_model

    path = find_model(model, file_type)
    return path.name, model_kernels(path)


def model_kernels(path: Path) -> list[str]:
    """Every kernel that the model of a file needs."""
    from ggpy.cpu.needed import program_kernels
    from ggpy.gguf.file import GGUFFile
    from ggpy.runtime.cache_types import cache_type
    from ggpy.runtime.planned import planned

    with GGUFFile(path) as file:
        program = planned(file)
        return program_kernels(program, cache_type(file, program.states))
