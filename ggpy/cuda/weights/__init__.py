"""From a file's bytes to what GPU kernels read."""
