"""The CPU's words, from Python: vector instructions, scalars, records."""
