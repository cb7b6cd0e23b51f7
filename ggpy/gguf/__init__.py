"""A file's bytes, checked, and slices of them."""
