"""Requests over one runtime: schedule, run, postprocess."""
