"""Machine code from numba, kept on disk as object files and loaded without numba.

numba compiles a kernel once per machine; what it made is a plain object file with a C entry. Later processes hand that
file to LLVM's linker, a millisecond each, and never import numba, whose import and start-up cost most of a second. The
cache directory is named by a hash of every source that kernels are made of (`ggpy.codegen.sources`), the versions of
Python, numba and LLVM, and the CPU with its features, so it is never stale and never another machine's."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm

from ggpy.codegen import kernel_files, sources
from ggpy.errors import GGPYError

ISAS = ("avx512vnni", "avx2vnni", "avx2", "neon", "portable", "plain")  # the tiers of kernels, best first
ON_ARM = llvm.get_default_triple().startswith(("aarch64", "arm64"))


def _arm_has_dotprod() -> bool:
    """True where the system reports byte dot products (FEAT_DotProd) on this Arm CPU: LLVM does not detect them."""
    try:
        if sys.platform == "linux":
            getauxval = ctypes.CDLL(None).getauxval
            getauxval.restype, getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
            at_hwcap, asimddp = 16, 1 << 20  # Linux: include/uapi/linux/auxvec.h, arch/arm64/include/uapi/asm/hwcap.h
            return bool(getauxval(at_hwcap) & asimddp)
        if sys.platform == "darwin":
            value, size = ctypes.c_int(0), ctypes.c_size_t(4)
            name = b"hw.optional.arm.FEAT_DotProd"
            failed = ctypes.CDLL(None).sysctlbyname(name, ctypes.byref(value), ctypes.byref(size), None, 0)
            return not failed and bool(value.value)
        if sys.platform == "win32":
            dot_product = 43  # PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE
            return bool(ctypes.windll.kernel32.IsProcessorFeaturePresent(dot_product))
    except (OSError, AttributeError):
        pass
    return False


@lru_cache(maxsize=1)
def host_features() -> str:
    """This CPU's features as LLVM spells them, with those that LLVM overlooks."""
    features: str = llvm.get_host_cpu_features().flatten()
    overlooked = "+dotprod" if ON_ARM and _arm_has_dotprod() else ""
    return ",".join(filter(None, (features, overlooked)))


def tiers() -> list[str]:
    """The tiers that this CPU can run, best first."""
    features = set(host_features().split(","))

    def has(*names: str) -> bool:
        return features.issuperset(f"+{name}" for name in names)

    able = {
        "avx512vnni": has("avx2", "fma", "f16c", "avx512vnni", "avx512f", "avx512bw", "avx512dq", "avx512vl"),
        "avx2vnni": has("avx2", "fma", "f16c") and (has("avxvnni") or has("avx512vnni", "avx512vl")),
        "avx2": has("avx2", "fma", "f16c"),
        "neon": ON_ARM and has("dotprod"),
        "portable": ON_ARM or has("f16c"),
        "plain": True,
    }
    return [tier for tier in ISAS if able[tier]]


@lru_cache(maxsize=1)
def isa() -> str:
    """The tier of kernels this process runs: the best that the CPU has, or forced by `GGPY_ISA`."""
    forced = os.environ.get("GGPY_ISA")
    if not forced:
        return tiers()[0]
    if forced not in ISAS:
        raise GGPYError(f"GGPY_ISA={forced!r} is no instruction-set tier; choose one of {', '.join(ISAS)}.")
    if forced not in tiers():
        raise GGPYError(f"GGPY_ISA={forced!r}, but this CPU offers only {', '.join(tiers())}.")
    return forced


# What is compiled: kernels, and the quantizers, which numba keeps in the same folder by itself.
COMPILED = ("ggpy.cpu.builds", "ggpy.quant.quantize")


def fingerprint() -> str:
    """A hash of everything that compiled code depends on."""
    machine = (llvmlite.__version__, llvm.get_host_cpu_name(), host_features(), os.environ.get("GGPY_ISA", ""))
    return sources.fingerprint(COMPILED, machine)


@lru_cache(maxsize=1)
def kernel_cache() -> Path:
    """The folder of compiled kernels for exactly these sources (`ggpy.codegen.kernel_files.folder`)."""
    return kernel_files.folder("kernels", fingerprint())


@dataclass(frozen=True)
class ObjectCode:
    """Compiled code: an ELF (or Mach-O, COFF) image, the name of its C entry, and the functions that it links to."""

    image: bytes
    entry: str
    needs: tuple[str, ...]


@dataclass(frozen=True)
class Native:
    """A loaded function: `address` for other machine code, `call` for Python; calls release the GIL."""

    name: str
    address: int
    call: Callable[..., Any]
    from_disk: bool


_C_TYPES: dict[str, Any] = {"u": ctypes.c_size_t, "i": ctypes.c_ssize_t, "v": None}
_keep: list[Any] = []  # unloading is never wanted: addresses travel
_links = count()


def load(name: str, prototype: str, compile: Callable[[], ObjectCode]) -> Native:
    """The function `name`, from disk or freshly compiled. `prototype`: its result, a colon, its arguments; u address,
    i integer, v nothing."""
    result, arguments = prototype.split(":")
    address, code = 0, _read(name)
    if code is not None:
        try:
            address = _link(name, code)
        except (RuntimeError, ValueError):  # LLVM's, where a file of ours does not fit this machine
            kernel_files.discard(_file(name))
    from_disk = bool(address)
    if not from_disk:
        code = compile()
        kernel_files.write(_file(name), {"entry": code.entry, "needs": code.needs}, code.image)
        address = _link(name, code)
    call = ctypes.CFUNCTYPE(_C_TYPES[result], *(_C_TYPES[a] for a in arguments))(address)
    return Native(name, address, call, from_disk)


def is_cached(name: str) -> bool:
    """True where `load` would find the function on disk."""
    return kernel_files.exists(_file(name))


def _file(name: str) -> Path:
    return kernel_cache() / f"{name}.o"


def _read(name: str) -> ObjectCode | None:
    found = kernel_files.read(_file(name))
    try:
        return found and ObjectCode(found[1], str(found[0]["entry"]), tuple(map(str, found[0]["needs"])))
    except (KeyError, TypeError):
        return None


@lru_cache(maxsize=1)
def _linker() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(opt=0)
    # LLVM's older linker puts an object's sections wherever memory is free, which may be further apart than Arm code
    # can address; the newer one keeps them together.
    return llvm.create_lljit_compiler(machine, use_jit_link=ON_ARM)


def _link(name: str, code: ObjectCode) -> int:
    builder = llvm.JITLibraryBuilder().add_object_img(code.image).add_current_process().export_symbol(code.entry)
    # numba's entries can report Python exceptions. Kernels raise none, so what numba itself would supply for that is
    # never called.
    trap = ctypes.cast(ctypes.pythonapi.Py_FatalError, ctypes.c_void_p).value
    for symbol in code.needs:
        if symbol.startswith(("numba_", "NRT_")):
            builder = builder.import_symbol(symbol, trap)
    loaded = builder.link(_linker(), f"{name} {next(_links)}")  # a name is taken even where linking failed
    _keep.append(loaded)
    return int(loaded[code.entry])
