"""Catalogue of methods of the literature: what each does, when it pays, and the spec that applies it."""

from .catalogue import Method, explain_method, load_methods, seeded

__all__ = ["Method", "explain_method", "load_methods", "seeded"]
