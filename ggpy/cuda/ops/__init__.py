"""The GPU's operations, one a file; a folder where one has several."""
