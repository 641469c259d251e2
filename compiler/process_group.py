"""Processes that torchrun started, which share the work on samples; the result is the same as with one process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from ..passes.workers import Workers


def is_first() -> bool:
    """True if this process prints and writes: it runs alone, or is the first of the processes of torchrun."""
    return not dist.is_torchelastic_launched() or os.environ["RANK"] == "0"


@contextmanager
def process_group() -> Iterator[Workers]:
    """The processes of torchrun, or this one alone."""
    if not dist.is_torchelastic_launched():
        yield Workers()
        return
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    yield Workers.of_process_group()
