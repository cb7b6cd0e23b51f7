"""The commands: one file each, thin. Knows nothing of numerics."""
