"""The CPU's instructions, from Python: vector code, scalars, records."""
