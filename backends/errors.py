"""Problems that keep a graph from being emitted, their codes, and errors of the tools that backends run."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..specs import ErrorCode
from ..specs.root_error import FxpressError

CODES: Mapping[str, ErrorCode] = {
    "C701": ErrorCode(
        "C does not support this shape: a batch of more than one, more than four dimensions, or no elements",
        "Give the input a batch of 1 in `model.inputs`, or `batch: null` if it has no batch, and merge "
        "dimensions inside the model.",
    ),
    "C702": ErrorCode(
        "an operator has no C kernel",
        "Replace the operator by others that `fxpress ops` lists for C, or move it out of the model. The message has "
        "the reason why no kernel supports it.",
    ),
    "C703": ErrorCode(
        "C does not support this element type",
        "Set `dtype: float32` under `model`. C computes on float32 and on the integers that are quantized from it.",
    ),
    "C704": ErrorCode(
        "C kernels do not support activations of this bit width", "Quantize the activations to int8 or int16."
    ),
    "C705": ErrorCode(
        "a layer computes in float, and `outputs.c.allow_float` is false",
        "Quantize the layer, or set `allow_float: true`. `fxpress plan SPEC` shows why a layer stays in float.",
    ),
    "C706": ErrorCode(
        "an input or output does not have the integers that `outputs.c.io` requires",
        "Quantize the layer at that input or output to this type, or set `io: auto` for it.",
    ),
    "C707": ErrorCode(
        "the arena is larger than the RAM of the target, or its blocks do not fit the regions of RAM",
        "Reduce the input or the widest layers, for example with `prune`, quantize float layers, or raise "
        "`target.ram` or the sizes in `target.regions`. The message has the need of each region in the "
        "smallest plan that the search has found, and the largest block; a block is completely in one region. For less "
        "memory layers are computed by rows, and large convolutions in parts of their channels before a smaller map.",
    ),
    "C708": ErrorCode(
        "code and constants are larger than the flash of the target",
        "Prune, use fewer bits (`assign_bits`), or raise `target.flash`.",
    ),
    "C709": ErrorCode(
        "the stack is larger than the target allows",
        "Quantize the layers that are in float, or raise `target.stack`.",
    ),
    "C710": ErrorCode(
        "`layouts` or `io` has an unknown input or output, or an order for images on one without four dimensions",
        "Use one of the names that the message lists; remove the order of a value that is not an image.",
    ),
    "C711": ErrorCode(
        "the constants are too many to be compiled",
        "Set `weights_file: binary` under `outputs.c`: the constants are then in a separate file.",
    ),
    "C712": ErrorCode(
        "states cannot be updated in place",
        "Set `states: copied`. Only states that do not take each other's values can be in place.",
    ),
    "C713": ErrorCode(
        "a region of RAM has a name that begins with the prefix of the network's C names",
        "Choose another name in `target.regions`, or another `outputs.c.name`.",
    ),
}
"""Codes of the C backend. They are defined here, where they can be read without torch."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem: its code, place, the fact, and in `hint` the remedy."""

    code: str
    place: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        where = f"{self.place}: " if self.place else ""
        what_to_do = f"; {self.hint}" if self.hint else ""
        return f"{where}{self.message}{what_to_do} [{self.code}]"


class BackendError(FxpressError):
    """Base of the errors raised by compilers and simulators that a backend drives."""

    code = "T501"


class ToolMissingError(BackendError):
    """A required program or library is not on this machine; the message has the installation hint."""


class BuildError(BackendError):
    """A compiler or linker refused the sources; the message has its command and its output."""


class StackError(BackendError):
    """The worst-case stack of a function cannot be bounded: recursion, an indirect call, an unknown function."""


class SimulationError(BackendError):
    """A simulated function faulted or did not return; the message has the place and the reason."""
