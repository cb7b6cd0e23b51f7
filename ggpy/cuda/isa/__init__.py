"""The GPU's words, from Python: instructions, warps, device functions."""
