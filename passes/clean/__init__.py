"""The pass `clean`: nodes without effect, written-out norms, and batches of one."""

from .cleaning import clean

__all__ = ["clean"]
