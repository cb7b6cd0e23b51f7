"""Products of many tokens on tensor cores."""
