"""The CUDA backend: kernels in Python, compiled by numba-cuda, launched through the driver."""
