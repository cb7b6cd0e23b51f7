"""`ggpy inspect MODEL`: what a GGUF file holds. Reads the header alone, so it is quick on a file of any size."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click

from ggpy.cli.find_model import find_model
from ggpy.cli.options import FILE_NAME, type_option
from ggpy.gguf.file import ArrayView, GGUFFile
from ggpy.quant.formats import FORMATS
from ggpy.units import size_text

_HEAD = 8  # values of an array that a table shows
_JSON_HEAD = 64
_LONG = 160  # characters of a string that a terminal shows


@dataclass(frozen=True)
class _Table:
    title: str
    columns: tuple[str, ...]
    numeric: frozenset[str]  # columns aligned to the right
    rows: Sequence[tuple[str, ...]]


@click.command(
    epilog="""
    \b
    Examples:
      ggpy inspect model.gguf
      ggpy inspect model.gguf --json
      ggpy inspect ./Qwen3-0.6B --type q4_0
      ggpy inspect model.gguf --check
    """
)
@click.argument("name", type=FILE_NAME, metavar="MODEL")
@type_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option("--check", is_flag=True, help="Say instead what is wrong with its tokenizer, template and end tokens.")
def inspect(name: str, file_type: str | None, as_json: bool, check: bool) -> None:
    """Show a GGUF file's metadata, tensors, and sizes per type.

    MODEL is what -m takes elsewhere: a file, a checkpoint folder (its converted file is shown), or a model's name.
    With --check the exit status is 1 where something is wrong.
    """
    with GGUFFile(find_model(name, file_type)) as model:
        if check:
            from ggpy.text.check_file import check_file

            found = check_file(model)
            if as_json:
                click.echo(json.dumps({"path": str(model.path), "wrong": found}, indent=2))
            else:
                for sentence in found or ["Nothing wrong was found with its tokenizer, template and end tokens."]:
                    click.echo(_printable(sentence))
            sys.exit(1 if found else 0)
        if as_json:
            click.echo(json.dumps(_as_json(model), indent=2))
            return
        on_terminal = sys.stdout.isatty()
        files = f"{len(model.shards)} shards, " if len(model.shards) > 1 else ""
        summary = f"{_printable(str(model.path))}: GGUF version {model.version}, {files}{size_text(model.size)}"
        tables = [_metadata(model, _LONG if on_terminal else None), _tensors(model), _types(model)]
    if on_terminal:
        _print_rich(summary, tables)
    else:
        _print_plain(summary, tables)


# What is shown


def _metadata(model: GGUFFile, longest: int | None) -> _Table:
    """`longest`: characters after which a string is abbreviated; None shows it whole, on one line."""
    rows = [(_printable(key), model.metadata.type_name(key), _value(model, key, longest)) for key in model.metadata]
    return _Table(f"Metadata ({len(rows)} keys)", ("Key", "Type", "Value"), frozenset(), rows)


def _value(model: GGUFFile, key: str, longest: int | None) -> str:
    array = model.metadata.array(key)
    if array is None:
        return _scalar(model.metadata[key], longest)
    head = [repr(value[:_LONG]) if isinstance(value, str) else _scalar(value, None) for value in array.head(_HEAD)]
    return f"{len(array)} values: [{', '.join(head)}{', …' if len(array) > _HEAD else ''}]"


def _scalar(value: Any, longest: int | None) -> str:
    if isinstance(value, float):
        return f"{value:.7g}"
    text = _printable(str(value))
    if longest is not None and len(text) > longest:
        return f"{text[:longest]}… ({len(text)} characters)"
    return text


def _tensors(model: GGUFFile) -> _Table:
    """Offsets are those in the tensor's own file; of which one, a column says where there are several."""
    rows: list[tuple[str, ...]] = []
    split = len(model.shards) > 1
    for info in model.tensors.values():
        shard, offset = model.place(info.offset)
        where = (str(shard + 1), str(offset)) if split else (str(offset),)
        rows.append((_printable(info.name), info.type_name, str(list(info.shape)), str(info.nbytes), *where))
    columns = ("Name", "Type", "Shape (rows, columns)", "Bytes", *(("Shard",) if split else ()), "Offset")
    return _Table(f"Tensors ({len(rows)})", columns, frozenset({"Bytes", "Shard", "Offset"}), rows)


def _totals(model: GGUFFile) -> dict[str, tuple[int, int, int]]:
    """Type name → (tensors, weights, bytes), the largest first."""
    totals: dict[str, tuple[int, int, int]] = {}
    for info in model.tensors.values():
        tensors, weights, size = totals.get(info.type_name, (0, 0, 0))
        totals[info.type_name] = (tensors + 1, weights + math.prod(info.shape), size + info.nbytes)
    return dict(sorted(totals.items(), key=lambda item: -item[1][2]))


def _types(model: GGUFFile) -> _Table:
    totals = _totals(model)
    rows = [
        (name, str(tensors), f"{weights:,}", size_text(size), f"{FORMATS[name].bits_per_weight:.4g}")
        for name, (tensors, weights, size) in totals.items()
    ]
    tensors, weights, size = (sum(total[i] for total in totals.values()) for i in range(3))
    rows.append(("all", str(tensors), f"{weights:,}", size_text(size), f"{8 * size / max(1, weights):.4g}"))
    columns = ("Type", "Tensors", "Weights", "Size", "Bits a weight")
    return _Table("Sizes", columns, frozenset(columns[1:]), rows)


def _as_json(model: GGUFFile) -> dict[str, Any]:
    return {
        "path": str(model.path),
        "shards": [{"path": str(shard.path), "size": shard.size} for shard in model.shards],
        "version": model.version,
        "size": model.size,
        "alignment": model.alignment,
        "metadata": {key: _json_entry(model, key) for key in model.metadata},
        "tensors": [
            {
                "name": info.name,
                "type": info.type_name,
                "shape": list(info.shape),
                "nbytes": info.nbytes,
                "shard": shard,  # of "shards", from 0
                "offset": offset,  # in it
            }
            for info in model.tensors.values()
            for shard, offset in [model.place(info.offset)]
        ],
        "types": {
            name: {"tensors": tensors, "weights": weights, "nbytes": size}
            for name, (tensors, weights, size) in _totals(model).items()
        },
    }


def _json_entry(model: GGUFFile, key: str) -> dict[str, Any]:
    """A scalar whole; of an array its length and its first values."""
    array: ArrayView | None = model.metadata.array(key)
    type_name = model.metadata.type_name(key)
    if array is None:
        return {"type": type_name, "value": _json_value(model.metadata[key])}
    return {"type": type_name, "length": len(array), "head": [_json_value(value) for value in array.head(_JSON_HEAD)]}


def _json_value(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become strings."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _printable(text: str) -> str:
    """One line without control characters: a file's strings are not to be trusted with a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


# How it is shown


def _print_plain(summary: str, tables: Sequence[_Table]) -> None:
    """Columns padded to their widest value, however wide: for files, pipes and grep."""
    lines = [summary]
    for table in tables:
        grid = [table.columns, *table.rows]
        widths = [max(len(row[i]) for row in grid) for i in range(len(table.columns))]
        lines += ["", table.title]
        for row in grid:
            cells = [
                cell.rjust(width) if column in table.numeric else cell.ljust(width)
                for cell, width, column in zip(row, widths, table.columns, strict=True)
            ]
            lines.append("  ".join(cells).rstrip())
    click.echo("\n".join(lines))


def _print_rich(summary: str, tables: Sequence[_Table]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, emoji=False, highlight=False)
    console.print(summary)
    for table in tables:
        shown = Table(title=table.title, title_justify="left", box=box.SIMPLE_HEAD)
        for column in table.columns:
            shown.add_column(column, justify="right" if column in table.numeric else "left", overflow="fold")
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
