"""The CPU executor: kernels compiled by numba, the thread team, and the walk over a program."""
