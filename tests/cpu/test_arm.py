"""The tier for Arm, compiled here for a machine that is not this one: LLVM's AArch64 comes with llvmlite everywhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import llvmlite.binding as llvm
import pytest
from llvmlite import ir

from ggpy.codegen import native
from ggpy.cpu.isa.layout import ROW_WIDTHS, TILE_LANES, tile_widths
from ggpy.cpu.isa.vector import LANES, Vec, i64
from ggpy.cpu.ops import attend, tiles
from ggpy.quant.formats import PACKED

TRIPLE = "aarch64-unknown-linux-gnu"


def loops(emit: Callable[[Vec, list[ir.Value]], None], lanes: int, n_args: int = 8) -> list[list[str]]:
    """The instructions of each innermost loop of a function, compiled for a CPU of which nothing is known but that it
    has the dot product."""
    module = ir.Module("kernel")
    module.triple = TRIPLE
    body = ir.Function(module, ir.FunctionType(ir.VoidType(), [i64] * n_args), "kernel")
    v = Vec(ir.IRBuilder(body.append_basic_block("entry")), "neon", lanes)
    v.b.call(v.function("inside", n_args, emit), body.args)
    v.b.ret_void()
    try:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
        target = llvm.Target.from_triple(TRIPLE)
    except RuntimeError:
        pytest.skip("this llvmlite compiles for its own machine alone")
    machine = target.create_target_machine(cpu="generic", opt=3, jit=True, codemodel="jitdefault")
    code = llvm.parse_assembly(str(module))
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(code, builder)

    found, lines, labels = [], [], {}
    for line in machine.emit_assembly(code).splitlines():
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(lines)
        elif instruction := re.match(r"\t([a-z]\S*)\t?(.*)", line):
            lines.append(f"{instruction[1]} {instruction[2]}")
            jump = re.match(r"(?:b\.\w+|cbn?z|tbn?z) .*?(\.L\w+)$", lines[-1])
            if jump and jump[1] in labels:
                found.append((labels[jump[1]], len(lines)))
    inner = [(a, z) for a, z in found if not any((b, y) != (a, z) and a <= b and y <= z for b, y in found)]
    return [lines[a:z] for a, z in inner]


def count(loop: list[str], pattern: str) -> int:
    return sum(bool(re.match(pattern, line)) for line in loop)


SCALAR = r"(f?m(ul|add|sub)|s?div|scvtf|fcvt|fadd|fmul) [sdhw]\d"  # arithmetic on one number
ON_STACK = r".*\[sp"


@pytest.mark.parametrize(
    ("name", "width"),
    [(name, width) for name in PACKED for width in tile_widths("neon", is_float=False) if width == 4 or name == "Q4_0"],
)
def test_products_are_dot_products_of_registers(name, width):
    packed = PACKED[name]
    inner = loops(partial(tiles._emit_tile, packed, 1, width), TILE_LANES["neon"], n_args=9)
    products, per_loop = ("fmla", 8 * 16 // 4) if packed.is_float else ("sdot", 32 * 16 // 16)
    assert sum(count(loop, products) for loop in inner) >= width * per_loop  # more where LLVM makes a loop twice
    for loop in inner:
        assert not count(loop, SCALAR)
        if name in ("Q4_0", "Q4_1", "Q8_0", "F32", "F16", "BF16"):
            assert not count(loop, ON_STACK)
        assert count(loop, ON_STACK) < len(loop) / 6


@pytest.mark.parametrize("rows", ROW_WIDTHS["neon"])
@pytest.mark.parametrize("cache", ["f16", "f32", "q8_0"])
def test_attention_is_vector_code(cache, rows):
    inner = loops(partial(attend._emit, attend.Attend, cache, cache, rows), LANES, n_args=9)
    assert sum(count(loop, r"fmla .*\.s\[|fmla \S+\.4s") for loop in inner) >= 2 * 4 * rows
    for loop in inner:
        assert not count(loop, SCALAR)
        assert count(loop, ON_STACK) < len(loop) / 3  # constants of the exponentials, scales of q8_0


@pytest.mark.parametrize(
    ("arm", "features", "found"),
    [
        (True, "+neon,-sve,+dotprod", ["neon", "portable", "plain"]),
        (True, "+neon", ["portable", "plain"]),
        (False, "+avx2,+fma,+f16c,-avxvnni", ["avx2", "portable", "plain"]),
        (False, "+avx2,+fma,+f16c,+avxvnni", ["avx2vnni", "avx2", "portable", "plain"]),
        (False, "+sse2", ["plain"]),
    ],
)
def test_the_tiers_of_a_cpu(monkeypatch, arm, features, found):
    monkeypatch.setattr(native, "ON_ARM", arm)
    monkeypatch.setattr(native, "host_features", lambda: features)
    assert native.tiers() == found
