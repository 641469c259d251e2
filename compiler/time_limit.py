"""A limit on the time that the user's code may take: an endless loop ends in a message."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .errors import Problem, UserError


class _TimeIsUpError(BaseException):
    """Passes every `except Exception` of the code that is stopped."""


@contextmanager
def time_limit(seconds: float | None, place: str, doing: str) -> Iterator[None]:
    """UserError if the body takes longer; None, and any thread but the main one, have no limit."""
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
