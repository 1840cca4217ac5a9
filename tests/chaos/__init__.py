"""Chaos: the real service under load while its parts are killed, wiped, slowed and filled up.

``python -m tests.chaos``, or ``make chaos``.
"""
