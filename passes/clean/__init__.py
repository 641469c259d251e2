"""The pass `clean`: nodes without effect, written-out norms, and batches of one."""

from .cleaning import clean, is_unmoved

__all__ = ["clean", "is_unmoved"]
