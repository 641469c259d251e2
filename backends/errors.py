"""What stands against emitting a graph, and errors of the backends' tools, named for what is wrong."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: its code, where, the fact, and in `hint` what to do about it."""

    code: str
    place: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        where = f"{self.place}: " if self.place else ""
        what_to_do = f"; {self.hint}" if self.hint else ""
        return f"{where}{self.message}{what_to_do} [{self.code}]"


class BackendError(Exception):
    """Base of the errors raised by compilers and simulators that a backend drives."""


class ToolMissingError(BackendError):
    """A program or library that is needed is not on this machine; the message says what to install."""


class BuildError(BackendError):
    """A compiler or linker refused the sources; the message holds its command and its words."""


class StackError(BackendError):
    """The worst-case stack of a function cannot be bounded: recursion, an indirect call, an unknown function."""


class SimulationError(BackendError):
    """A simulated function faulted or did not return; the message says where and why."""
