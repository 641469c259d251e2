"""Errors of the backends' tools, named for what is wrong."""


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
