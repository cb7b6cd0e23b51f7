"""`ggpy doctor`: what this machine offers, what ggpy found of it, and what is missing."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import click

from ggpy.errors import GGPYError

GIB = 1 << 30


@click.command(
    epilog="""
    \b
    Examples:
      ggpy doctor
    """
)
def doctor() -> None:
    """Say what was found: the CPU and its tier of kernels, NVIDIA GPUs and driver, packages, the cache."""
    rows = [*_machine(), *_gpus(), *_packages()]
    width = max(len(name) for name, _ in rows)
    for name, what in rows:
        click.echo(f"{name.ljust(width)}  {what}")


def _machine() -> Iterator[tuple[str, str]]:
    import os

    from ggpy import __version__
    from ggpy.codegen import native
    from ggpy.host.cores import usable_cores
    from ggpy.host.memory import available_memory
    from ggpy.paths import cache_dir

    yield "ggpy", f"{__version__}, Python {platform.python_version()}, {platform.platform()}"
    try:
        tier = native.isa()
        best = "" if tier == native.ISAS[0] else "; the best, avx512vnni, needs a CPU with AVX-512 VNNI"
        yield "CPU", f"kernels {tier}, {usable_cores()} threads of {os.cpu_count()} CPUs{best}"
    except GGPYError as error:
        yield "CPU", str(error)
    yield "memory", f"{available_memory() / GIB:.1f} GiB free"
    try:
        yield "cache", str(cache_dir())
    except GGPYError as error:
        yield "cache", str(error)


def _gpus() -> Iterator[tuple[str, str]]:
    from ggpy.cuda.driver import Device, device_count, driver_version
    from ggpy.cuda.tensor_parallel import require_peers

    try:
        yield "NVIDIA driver", f"of CUDA {driver_version()}"
    except GGPYError as error:
        yield "GPU", f"none: {error}"
        return
    gpus = []
    for index in range(device_count()):
        try:
            gpu = Device(index)
            free, total = gpu.memory()
            cc = f"{gpu.cc[0]}.{gpu.cc[1]}"
            yield f"GPU {index}", f"{gpu.name}, compute capability {cc}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
            gpus.append(gpu)
        except GGPYError as error:
            yield f"GPU {index}", str(error)
    if len(gpus) > 1:
        try:
            require_peers(gpus)
            yield "GPUs", "reach each other's memory: they can share the rows of matrices (--split-mode row)"
        except GGPYError as error:
            yield "GPUs", str(error)
    for gpu in gpus:
        gpu.close()


def _packages() -> Iterator[tuple[str, str]]:
    from ggpy.cuda.compile import missing_packages

    missing = missing_packages()
    for name in (
        "numba",
        "llvmlite",
        "numpy",
        "gguf",
        "numba-cuda",
        "nvidia-nvvm",
        "nvidia-nvjitlink",
        "cuda-bindings",
    ):
        try:
            yield name, version(name)
        except PackageNotFoundError:
            yield name, "missing; a GPU needs it: pip install 'ggpy[cuda]'" if name in missing else "not installed"
