"""From a file's bytes to what CPU kernels read."""
