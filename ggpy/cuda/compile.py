"""From a kernel's Python function to machine code for one kind of GPU: numba-cuda to PTX, NVIDIA's linker to a cubin.

Neither step needs a GPU. The result is kept on disk, so that later processes never import numba. Each name is
"module.variant…": the module in this package whose `source(variant, …)` gives the function.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ggpy.codegen import kernel_files, sources
from ggpy.codegen.compile_workers import compile_all
from ggpy.errors import GGPYError
from ggpy.host.cores import usable_cpus
from ggpy.notes import Notify

MOST_WORKERS = 16  # processes that compile at a time
NEEDED = ("numba-cuda", "nvidia-nvvm", "nvidia-nvjitlink")  # to compile; nothing of them runs


@dataclass(frozen=True)
class Source:
    """A kernel to compile: a function of plain numbers, and how it will be launched."""

    function: Any
    signature: str  # types of its parameters: "u64 u64 i32 f32"
    threads: int  # the most that a block has
    blocks: int = 1  # that a multiprocessor should hold at once: bounds the registers of a thread


@dataclass(frozen=True)
class Compiled:
    """Machine code of one kernel, and what it takes of a multiprocessor."""

    name: str
    signature: str
    threads: int
    entry: str
    registers: int  # of a thread
    stack: int  # bytes of local memory of a thread: slow where it is not 0
    cubin: bytes = b""


# Where a kernel's kind is made; the others have a file of their name in `ops/`.
_MODULES = {
    "activations": "weights.activations",
    "flash": "ops.flash.flash",
    "matmul": "ops.matmul.matmul",
    "quantize_activations": "ops.matmul.quantize_activations",
    "pack": "weights.pack",
    "wide": "ops.flash.wide",
}


def source(name: str) -> Source:
    kind, *variant = name.split(".")
    found: Source = import_module(f"ggpy.cuda.{_MODULES.get(kind, f'ops.{kind}')}").source(*variant)
    return found


def to_ptx(name: str, cc: tuple[int, int]) -> tuple[str, str]:
    """The PTX of a kernel for compute capability `cc`, and the name of its entry."""
    cuda = _numba_cuda()
    made = source(name)
    kinds = {"u64": "uint64", "i64": "int64", "u32": "uint32", "i32": "int32", "f32": "float32"}
    parameters = tuple(getattr(cuda.types, kinds[kind]) for kind in made.signature.split())
    bounds = (made.threads, made.blocks)
    # from Hopper on the "a" opens a generation's own instructions (and closes the code to the next)
    target = (*cc, "a") if cc >= (9, 0) else cc
    with _as_if_on(cc):
        text, _ = cuda.compile(
            made.function, cuda.types.void(*parameters), cc=target, device=False, abi="numba", launch_bounds=bounds
        )
    if cc < (9, 0):  # where launches cannot overlap there is nothing to wait for, nor time to read ahead in
        text = re.sub(r"(griddepcontrol\.\w+|cp\.async\.bulk\.prefetch[^;]*);", "", text)
    entry = re.search(r"\.entry\s+(\w+)", text)
    assert entry is not None
    return text, entry[1]


@contextlib.contextmanager
def _as_if_on(cc: tuple[int, int]) -> Iterator[None]:
    """A context in which numba-cuda compiles helper functions for `cc`: it asks the current GPU, whatever target it was
    given."""
    dispatcher: Any = import_module("numba.cuda.dispatcher")
    asked = dispatcher.get_current_device
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=cc)
    try:
        yield
    finally:
        dispatcher.get_current_device = asked


def compile_kernel(name: str, cc: tuple[int, int]) -> Compiled:
    """Compile from scratch. Raises GGPYError where the packages for it are missing."""
    text, entry = to_ptx(name, cc)
    from cuda.bindings import nvjitlink

    made, data = source(name), text.encode() + b"\0"
    link = nvjitlink.create(2, [f"-arch=sm_{cc[0]}{cc[1]}{'a' if cc >= (9, 0) else ''}", "-verbose"])
    try:
        try:
            nvjitlink.add_data(link, nvjitlink.InputType.PTX, data, len(data), name)
            nvjitlink.complete(link)
        except nvjitlink.nvJitLinkError as error:
            log = bytearray(nvjitlink.get_error_log_size(link))
            nvjitlink.get_error_log(link, log)
            raise RuntimeError(f"{name}: {error}\n{log.decode(errors='replace')}") from error
        cubin = bytearray(nvjitlink.get_linked_cubin_size(link))
        nvjitlink.get_linked_cubin(link, cubin)
        log = bytearray(nvjitlink.get_info_log_size(link))
        nvjitlink.get_info_log(link, log)
    finally:
        nvjitlink.destroy(link)
    about = log.decode(errors="replace")
    registers = re.search(r"[Uu]sed (\d+) registers", about)
    stack = re.search(r"(\d+) bytes stack frame", about)
    return Compiled(
        name,
        made.signature,
        made.threads,
        entry,
        int(registers[1]) if registers else 0,
        int(stack[1]) if stack else 0,
        bytes(cubin),
    )


def _numba_cuda() -> Any:
    missing = missing_packages()
    if missing:
        raise GGPYError(
            f"Compiling kernels for the GPU needs {' and '.join(missing)}; install it with `pip install 'ggpy[cuda]'`."
        )
    import numpy as np

    if not hasattr(np, "row_stack"):  # gone from numpy 2.5, still named by numba-cuda 0.30
        np.row_stack = np.vstack
    os.environ.setdefault("NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS", "0")
    from numba import cuda

    cuda.types = import_module("numba.cuda.types")
    return cuda


def missing_packages() -> list[str]:
    """Missing packages, of those needed to compile kernels."""
    return [name for name in NEEDED if not _installed(name)]


def _installed(name: str) -> bool:
    # a CUDA toolkit on the machine brings its own NVVM
    return bool(_version(name)) or (
        name == "nvidia-nvvm"
        and any(Path(root, "nvvm").is_dir() for root in (os.environ.get("CUDA_HOME", ""), "/usr/local/cuda") if root)
    )


def _version(package: str) -> str:
    """The installed version of a package; "" where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


# ---- on disk


def compiled_modules() -> list[str]:
    """Names of the modules of this package that define kernels, and of this one."""
    here = Path(__file__).resolve().parent
    found = [path for path in here.rglob("*.py") if b"\ndef source(" in path.read_bytes()]
    return [".".join(("ggpy.cuda", *path.relative_to(here).with_suffix("").parts)) for path in found]


@lru_cache(maxsize=1)
def fingerprint() -> str:
    """A hash of all that compiled kernels depend on."""
    return sources.fingerprint(compiled_modules(), [_version(package) for package in NEEDED])


@lru_cache(maxsize=4)
def kernel_cache(cc: tuple[int, int]) -> Path:
    """The folder of compiled kernels for exactly these sources (`ggpy.codegen.kernel_files.folder`)."""
    return kernel_files.folder("cuda", fingerprint(), f"sm_{cc[0]}{cc[1]}")


def _file(name: str, cc: tuple[int, int]) -> Path:
    return kernel_cache(cc) / f"{name}.cubin"


def read(name: str, cc: tuple[int, int]) -> Compiled | None:
    """A kernel from disk; None where there is none, or its file is damaged."""
    found = kernel_files.read(_file(name, cc))
    try:
        return found and Compiled(**found[0], cubin=found[1])
    except TypeError:
        return None


def obtain(name: str, cc: tuple[int, int]) -> Compiled:
    """A kernel from disk, or else compiled and stored there."""
    made = read(name, cc)
    if made is None:
        made = compile_kernel(name, cc)
        about = asdict(made)
        kernel_files.write(_file(name, cc), about, about.pop("cubin"))
    return made


def discard(name: str, cc: tuple[int, int]) -> None:
    """Discard a kernel's file, so that the next `obtain` compiles it again."""
    kernel_files.discard(_file(name, cc))


def compile_missing(names: Iterable[str], cc: tuple[int, int], notify: Notify) -> list[str]:
    """Compile those kernels that are not on disk, several processes at a time, and say so; returns which."""
    wanted = [name for name in dict.fromkeys(names) if read(name, cc) is None]
    wanted.sort(key=lambda name: not name.startswith("mat"))  # what takes longest first
    if wanted:
        if missing_packages():
            _numba_cuda()  # says which
        workers = min(len(wanted) // 2, usable_cpus(), MOST_WORKERS)
        serving, target = (
            f"from ggpy.cuda.compile import compile_worker; compile_worker{cc}",
            f"this GPU (sm_{cc[0]}{cc[1]})",
        )
        compile_all(wanted, target, lambda name: obtain(name, cc), serving, workers, kernel_cache(cc), notify)
    return wanted


def compile_worker(major: int, minor: int) -> None:
    """A compiling process (`ggpy.codegen.compile_workers`): names on stdin, each written back once it is on disk."""
    for line in sys.stdin:
        obtain(line.strip(), (major, minor))
        print(line.strip(), flush=True)
