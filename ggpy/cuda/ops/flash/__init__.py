"""Attention of many tokens on the GPU's matrix units."""
