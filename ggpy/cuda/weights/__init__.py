"""Conversion of a file's bytes to the layout that GPU kernels read."""
