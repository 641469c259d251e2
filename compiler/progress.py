"""Progress on the terminal: a bar for work that takes more than two seconds, nothing for shorter work."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from tqdm import tqdm

_PATIENCE_SECONDS = 2.0


class Progress:
    """Progress callback, `progress(label, done, total)`. Use it in a `with` statement, so that bars are closed."""

    def __init__(self, *, visible: bool = True) -> None:
        self._visible = visible and sys.stderr.isatty()
        self._bar: tqdm[Any] | None = None
        self._label = ""

    def __call__(self, label: str, done: int, total: int) -> None:
        """Shows that `done` of `total` steps of `label` are finished."""
        if label != self._label:
            self._close()
            self._label = label
            self._bar = tqdm(
                total=total, desc=label, delay=_PATIENCE_SECONDS, leave=False, disable=not self._visible
            )
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
        if done >= total:
            self._close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar, self._label = None, ""
