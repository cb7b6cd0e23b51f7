"""The kernels that a program, or weights of given types, need; and the compilation of those that are missing."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ggpy.codegen.compile_workers import compile_all
from ggpy.codegen.native import isa, kernel_cache
from ggpy.cpu import kernels
from ggpy.cpu.lowering import lowering_of
from ggpy.errors import GGPYError, quoted
from ggpy.graph.program import Program
from ggpy.host.cores import usable_cpus
from ggpy.notes import Notify
from ggpy.quant.formats import PACKED, packed_format

if TYPE_CHECKING:
    from ggpy.gguf.file import TensorInfo

# What llama-quantize gives the more important matrices in files that are called after a type.
COMPANIONS = {"Q2_K": ("Q3_K", "Q4_K"), "Q3_K": ("Q4_K", "Q5_K"), "IQ4_NL": ("Q5_K",), "IQ4_XS": ("Q5_K",)}
COMPANIONS |= {"Q4_K": ("Q6_K",), "Q5_K": ("Q6_K",)}
TEAM = (
    "run_program",
    "worker_loop",
    "submit_step",
    "sample",
)  # what every program runs on, and what chooses from its logits


# Much of what rounding to 8 bits costs comes from the one product that gives the logits. With 16 bits its weights are
# still read once: so it costs a step of a few tokens nothing where memory sets the pace, and a prompt, of which one row
# comes here, hardly anything.
def activation_dtype(info: TensorInfo, gives_logits: bool) -> str:
    """The dtype in which a product with this weight reads activations: one of `layout.ACTIVATION_DTYPES`."""
    dtype = packed_format(info).activation_dtype
    return "q16" if gives_logits and dtype == "q8" else dtype


def program_kernels(program: Program, cache_type: str) -> list[str]:
    """Every kernel that a program with a cache of `cache_type` needs, in the order of its first use."""
    names = [f"pack.{packed_format(m).name}" for m in program.matrices()]
    names += [lowering_of(op.operation).kernel(op.operation, cache_type) for op in program.ops]
    return list(dict.fromkeys([*names, *TEAM]))


def type_kernels(types: Iterable[str]) -> list[str]:
    """Every kernel that models in files of these types need: "q4_0", "Q4_K_M", ….

    Files of up to five bits keep their output matrix at Q6_K, and their embedding with it where it is the same; a few
    types are mixed with others (COMPANIONS).
    Raises GGPYError for a type without kernels.
    """
    names: list[str] = []
    for asked in types:
        name = asked.strip().upper()
        name = name[:-2] if name.endswith(("_K_S", "_K_M", "_K_L")) else name
        if name not in PACKED:
            known = ", ".join(p.lower() for p in PACKED)
            raise GGPYError(f"{quoted(asked)} is not a type that has kernels; choose among {known}.")
        for packed in [PACKED[n] for n in (name, *COMPANIONS.get(name, ()))]:
            names += [f"{kind}.{packed.name}" for kind in ("pack", "embed", "linear")]
            names.append(f"quantize_activations.{packed.activation_dtype}")
        output = PACKED["Q6_K"] if PACKED[name].bits < 6 else PACKED[name]
        names += [f"pack.{output.name}", f"embed.{output.name}"]
        names += [] if output.is_float else [f"linear.{output.name}.q16", "quantize_activations.q16"]
        cache = "f32" if name == "F32" else "f16"
        names += [f"rope_store.{cache}", f"attention.{cache}", "elementwise.silu_glu"]
    return list(dict.fromkeys([*names, *TEAM]))


MOST_WORKERS = 4  # processes that compile at a time: each takes some 200 MB
COMPILE_WORKER = "from ggpy.cpu.needed import compile_worker; compile_worker()"


def compile_worker() -> None:
    """The loop of a compiling process: a kernel's name a line, followed by its tier where that is not this CPU's best.
    See `ggpy.codegen.compile_workers`."""
    for line in sys.stdin:
        name, _, tier = line.strip().partition(" ")
        kernels.kernel(name, tier or None)
        print(line.strip(), flush=True)


def compile_missing(names: list[str], notify: Notify) -> list[str]:
    """Compile the kernels among `names` that this machine has not compiled yet, and say so; returns their names."""
    missing = kernels.missing(names)
    if missing:
        missing.sort(
            key=lambda name: not name.startswith(("attention", "latent_attention", "linear", "expert_linear"))
        )  # what takes longest first
        workers = min(len(missing) // 2, usable_cpus(), MOST_WORKERS)
        compile_all(missing, f"this CPU ({isa()})", kernels.kernel, COMPILE_WORKER, workers, kernel_cache(), notify)
    return missing
