"""Processes that torchrun started together, which share the work on samples; the result is that of one alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from ..passes.workers import Workers


def is_first() -> bool:
    """Whether this process is to speak and to write: alone, or the first of those that torchrun started."""
    return not dist.is_torchelastic_launched() or os.environ["RANK"] == "0"


@contextmanager
def process_group() -> Iterator[Workers]:
    """The processes that torchrun started together, or this one alone."""
    if not dist.is_torchelastic_launched():
        yield Workers()
        return
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    yield Workers.of_process_group()
