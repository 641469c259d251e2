"""Progress callbacks of long computations: `progress(label, done, total)`."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]


def silent(label: str, done: int, total: int) -> None:
    """No-op progress callback."""
