"""Requests to a model and its responses as data: no connections, no model."""
