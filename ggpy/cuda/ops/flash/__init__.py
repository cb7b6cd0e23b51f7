"""Attention of many tokens on tensor cores."""
