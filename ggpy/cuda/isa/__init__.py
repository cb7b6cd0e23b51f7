"""GPU code from Python: instructions, warps, device functions."""
