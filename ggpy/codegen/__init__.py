"""From Python to machine code, once."""
