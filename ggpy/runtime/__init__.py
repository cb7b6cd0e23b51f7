"""Tokens in slots to rows out; no text, no requests."""
