"""Time limit for the user's code: an endless loop ends with a message."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .errors import Problem, UserError


class _TimeIsUpError(BaseException):
    """Not an `Exception`, so that no `except Exception` in the user's code catches it."""


@contextmanager
def time_limit(seconds: float | None, place: str, doing: str) -> Iterator[None]:
    """UserError if the body takes longer; no limit for None, and in threads other than the main one."""
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_: int, __: FrameType | None) -> None:
        raise _TimeIsUpError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _TimeIsUpError:
        advice = "look for an endless loop, or raise --time-limit"
        raise UserError(Problem("M108", place, f"{doing} takes more than {seconds:g} s", advice)) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
