"""The two files of a batch: requests, a JSON object a line, and results, which grow by a line for each that is done.

A process may be killed at any moment. Each result is one write at the file's end, so that at most the last line is
torn; it is cut when the file is opened again, and the requests of the others are not answered twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggpy.errors import GGPYError, quoted, shown
from ggpy.files import check_target
from ggpy.units import size_text

if os.name == "posix":
    import fcntl

LONGEST_LINE = 64 << 20  # bytes; more fits no context
_BEGINNING = b'{"id": "batch_req_'  # of every result


@dataclass(frozen=True)
class BatchLine:
    """One request, as it was found."""

    custom_id: str
    method: Any
    url: Any
    body: Any


def read_requests(path: str | os.PathLike[str]) -> Iterator[BatchLine]:
    """The requests of a file, one after the other. Raises GGPYError with the line's number where one is no JSON object,
    or has no custom_id, or one that an earlier line has."""
    seen: dict[str, int] = {}
    if os.path.exists(path) and not os.path.isfile(path):
        raise GGPYError(f"{shown(path)} is no ordinary file, which it must be, as it is read twice.")
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), 1):
                where = f"{shown(path)}, line {number}"
                if len(line) > LONGEST_LINE:
                    raise GGPYError(f"{where} is longer than {size_text(LONGEST_LINE)}; no context takes that.")
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if not line.strip():
                    continue
                request = _decoded(line)
                if not isinstance(request, dict):
                    raise GGPYError(
                        f'{where} is no JSON object; each line is to be {{"custom_id": …, "method": "POST", "url": …,'
                        ' "body": …}.'
                    )
                name = request.get("custom_id")
                if not isinstance(name, str) or not name:
                    raise GGPYError(f"{where} has no custom_id, which is to be a text; give each request one.")
                if name in seen:
                    raise GGPYError(f"{where} has the custom_id {quoted(name, 80)} of line {seen[name]}; change one.")
                seen[name] = number
                yield BatchLine(name, request.get("method"), request.get("url"), request.get("body"))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise GGPYError(f"{shown(path)} cannot be read: {getattr(error, 'strerror', None) or error}.") from None


class Results:
    """A file of results, opened to go on with it. `done`: the custom_ids that it holds.

    Raises GGPYError where the file holds anything else than results, or another process writes it.
    """

    def __init__(self, path: str | os.PathLike[str], requests: str | os.PathLike[str]) -> None:
        self._shown = shown(path)
        target = check_target(path, [Path(requests)])
        try:
            self._file = os.open(target, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as error:
            raise GGPYError(f"{self._shown} cannot be written: {error.strerror}.") from None
        try:
            self._lock()
            self.done: set[str] = set()
            self._read()
        except BaseException:
            os.close(self._file)
            raise

    def write(self, row: dict[str, Any]) -> None:
        """Append a result. Where that fails, the file is as it was before."""
        try:
            data = json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:  # half a pair of surrogates, from the request
            data = json.dumps(row).encode()
        self._append(data + b"\n")
        self.done.add(row["custom_id"])

    def close(self) -> None:
        with suppress(OSError):  # a file system without it
            os.fsync(self._file)
        os.close(self._file)

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _append(self, data: bytes) -> None:
        start = os.lseek(self._file, 0, os.SEEK_CUR)
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._file, start)
            raise GGPYError(
                f"{self._shown} cannot be written: {error.strerror}; the results so far are in it, and the same command"
                " goes on from there."
            ) from error

    def _lock(self) -> None:
        if os.name != "posix":
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise GGPYError(f"{self._shown} is being written by another process; wait for it, or end it.") from None
        except OSError:
            pass  # no locks on this file system

    def _read(self) -> None:
        """Read the results there are, and cut what follows the last whole one."""
        end, whole, row = 0, True, None
        with os.fdopen(os.dup(self._file), "rb") as file:
            for number, line in enumerate(file, 1):
                row = _decoded(line)
                whole = line.endswith(b"\n")
                if _is_result(row):
                    self.done.add(row["custom_id"])
                    end += len(line)
                elif whole or not (line.startswith(_BEGINNING) or _BEGINNING.startswith(line)):
                    raise GGPYError(
                        f"{self._shown}, line {number}, is no result of a batch, so that nothing is added to it; choose"
                        " another file."
                    )
                if not whole:
                    break
        os.ftruncate(self._file, end)
        os.lseek(self._file, end, os.SEEK_SET)
        if not whole and _is_result(row):  # killed between the two
            self._append(b"\n")


def _is_result(row: Any) -> bool:
    return isinstance(row, dict) and isinstance(row.get("custom_id"), str) and "response" in row


def _decoded(line: bytes) -> Any:
    """The value that a line holds; None where it is no JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
