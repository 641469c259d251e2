"""Samples in a fixed number of logical shards, and the processes that share them.

The result of a shard does not depend on the process that computes it, and sums are added in the order of the shards,
in float64: the result is the same to the last bit for any number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

from ..specs.root_error import message_of
from .errors import PassError

Result = TypeVar("Result")
SHARDS = 16


@dataclass(frozen=True)
class Workers:
    """This process among `size` that work together; a single process without a process group."""

    rank: int = 0
    size: int = 1

    @staticmethod
    def of_process_group() -> Workers:
        """The processes of the default group of torch.distributed."""
        return Workers(dist.get_rank(), dist.get_world_size())

    def map(
        self, shards: Sequence[range], work: Callable[[range], Result], done: Callable[[int], None]
    ) -> list[Result]:
        """The result of each shard, in order, in every process; a failure in one is a PassError in all."""
        mine: dict[int, Result] = {}
        failure: Exception | None = None
        try:
            for index in range(self.rank, len(shards), self.size):
                mine[index] = work(shards[index])
                done(len(mine))
        except Exception as err:
            if self.size == 1:
                raise
            failure = err
        if self.size == 1:
            return list(mine.values())
        found: list[tuple[dict[int, Result], Exception | None]] = [({}, None)] * self.size
        dist.all_gather_object(found, (mine, failure))
        for rank, (_, error) in enumerate(found):
            if error is not None:
                raise PassError(f"process {rank}: {message_of(error)}") from error
        together = {index: result for part, _ in found for index, result in part.items()}
        return [together[index] for index in range(len(shards))]

    def total(
        self,
        shards: Sequence[range],
        work: Callable[[range], Mapping[str, Tensor]],
        done: Callable[[int], None],
    ) -> dict[str, Tensor]:
        """Sums over the shards in order, by name, in every process; with several processes each holds all results at
        once.
        """
        parts: Iterable[Mapping[str, Tensor]]
        parts = self.map(shards, work, done) if self.size > 1 else _one_by_one(shards, work, done)
        total: dict[str, Tensor] = {}
        for part in parts:
            for name, tensor in part.items():
                total[name] = total[name] + tensor if name in total else tensor
        return total


def _one_by_one(
    shards: Sequence[range], work: Callable[[range], Result], done: Callable[[int], None]
) -> Iterator[Result]:
    for index, shard in enumerate(shards):
        yield work(shard)
        done(index + 1)


ALONE = Workers()


def make_shards(samples: int, count: int = SHARDS) -> tuple[range, ...]:
    """Runs of consecutive samples of nearly equal length; fewer than `count` if there are fewer samples."""
    count = min(count, samples)
    ends = [samples * (i + 1) // count for i in range(count)]
    return tuple(range(start, end) for start, end in zip([0, *ends], ends, strict=False))


@dataclass(frozen=True)
class Moments:
    """Sums of some figures [..., figures] over samples and of their squares, from which means and standard errors
    follow.
    """

    count: int
    sums: Tensor
    squares: Tensor

    @staticmethod
    def of(figures: Tensor) -> Moments:
        """The moments of figures [figures, samples]."""
        exact = figures.double()
        return Moments(exact.shape[-1], exact.sum(-1), exact.square().sum(-1))

    @staticmethod
    def total(parts: Sequence[Moments]) -> Moments:
        """The moments of all samples together, added in order."""
        total = parts[0]
        for part in parts[1:]:
            total = Moments(total.count + part.count, total.sums + part.sums, total.squares + part.squares)
        return total

    @property
    def mean(self) -> Tensor:
        """Mean over samples."""
        return self.sums / self.count

    @property
    def error(self) -> Tensor:
        """Standard error of the mean; zero for a single sample, for which it is unknown."""
        if self.count == 1:
            return self.sums.new_zeros(self.sums.shape)
        variance = (self.squares - self.sums.square() / self.count).clamp(min=0) / (self.count - 1)
        return (variance / self.count).sqrt()
