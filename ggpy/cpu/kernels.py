"""The kernels by name: each is compiled when a program first names it, kept on disk, and called by address.

A kernel of an operation takes (op, step, thread, threads): the addresses of two records (`ggpy.cpu.isa.layout`), the
thread's number, and the number of threads that share the work."""

from __future__ import annotations

from ggpy.codegen.native import Native, is_cached, isa, load

# How each kind is called; see `ggpy.codegen.native.load`.
PROTOTYPES = {
    "pack": "v:uuiiiiiiu",  # raw, packed, n_rows, n_cols, row_bytes, stripe_bytes, first and last stripe, 64 bytes
    "sample": "i:uiuuuiu",  # logits, their number, parameters, values and ids to work in, top-k, bits of a mask
    "read": "v:uiu",  # from, bytes, 64 bytes for what they sum to
    "run_program": "v:uiuuii",  # operations, their number, step, team, thread, threads
    "worker_loop": "i:uiii",  # team, thread, threads, and the last job done
    "submit_step": "i:uiuuiu",  # as run_program, but for the thread; where to write who sleeps
}
OF_OPERATIONS = "v:uuii"  # the prototype of all others: operation, step, thread, threads

_loaded: dict[str, Native] = {}


def file_name(name: str, tier: str | None = None) -> str:
    return f"{name}.{tier or isa()}"


def kernel(name: str, tier: str | None = None) -> Native:
    """The kernel `name`: a kind, with its format behind a dot where it has one ("linear.Q4_0",
    "quantize_activations.q8", "run_program")."""
    tier = tier or isa()
    key = file_name(name, tier)
    if key not in _loaded:
        prototype = PROTOTYPES.get(name.partition(".")[0], OF_OPERATIONS)

        def compile_it():  # type: ignore[no-untyped-def]
            from ggpy.codegen.jit import object_code
            from ggpy.cpu.builds import build

            return object_code(build(name, tier, prototype))

        _loaded[key] = load(key, prototype, compile_it)
    return _loaded[key]


def missing(names: list[str]) -> list[str]:
    """The kernels among `names` that are not compiled yet."""
    return [name for name in names if file_name(name) not in _loaded and not is_cached(file_name(name))]
