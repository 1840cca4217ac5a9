"""Measurements against the papers' figures."""
