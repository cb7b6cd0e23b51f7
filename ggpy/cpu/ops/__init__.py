"""The CPU's operations, one a file, each with its plain version."""
