"""From a file's bytes to the packed weights that CPU kernels read."""
