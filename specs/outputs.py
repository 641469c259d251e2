"""The section `outputs`: what a compilation writes, and the options of each backend."""

import re
from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field, WithJsonSchema

from .section import Name, Section, fault

_IDENTIFIER = re.compile(r"^[a-z][a-z0-9_]*$")
_C_WORDS = """
auto break case char const continue default do double else enum extern float for goto if inline int long register
restrict return short signed sizeof static struct switch typedef union unsigned void volatile while alignas alignof
and asm bool catch class constexpr decltype delete explicit export false friend main mutable namespace new noexcept
not nullptr operator or private protected public static_assert template this throw true try typeid typename using
virtual wchar_t xor
"""


def is_c_name(text: str) -> bool:
    """Whether a text of small letters can be a name in C and in C++."""
    return bool(_IDENTIFIER.fullmatch(text)) and text not in _C_WORDS.split()


def _identifier(value: str) -> str:
    if not is_c_name(value) or len(value) > 40:
        hint = "use at most 40 small letters, digits and _, a letter first, and no word of C or C++"
        raise fault("S207", "cannot be the prefix of C names", hint=hint)
    return value


Identifier = Annotated[
    str,
    AfterValidator(_identifier),
    WithJsonSchema({"type": "string", "pattern": _IDENTIFIER.pattern, "maxLength": 40}),
]
"""A text that can begin every C name of the emitted code."""


Stored: TypeAlias = Literal["auto", "int8", "uint8", "int16", "float"]
"""How the caller of the emitted C stores an input or output."""


class COutput(Section):
    """C99 without dependencies: a header, a source, the weights, a self-test."""

    name: Identifier = Field(default="model", description="Prefix of every file and every C name.")
    io: Stored | Mapping[Name, Stored] = Field(
        default="auto",
        description="What the run function takes and gives: one word for all, or one by name for some inputs and "
        "outputs. `auto`: the graph's integers where it is quantized at that end, the model's own integers, else "
        "float. `int8`: the graph's integers, int16 where it has those. `uint8`: int8 + 128. `int16`: int8 minus its "
        "zero point. Whole numbers, such as token ids, are passed as they are.",
        examples=[{"image": "uint8", "scores": "float"}],
    )
    layouts: Mapping[Name, Literal["nhwc", "nchw", "model"]] = Field(
        default={},
        description="The order of axes of inputs and outputs, by name. `nhwc`: the model's second dimension last, for "
        "four dimensions. `nchw`, for four dimensions, and `model`: the model's order. Left out: `nhwc` for four "
        "dimensions, `model` where the model itself permutes an input from channels last, or an output to it.",
        examples=[{"frame": "model"}],
    )
    buffers: Literal["caller", "arena"] = Field(
        default="caller",
        description="Where inputs and outputs are stored. `caller`: in buffers that the caller passes. `arena`: in the "
        "arena, at addresses that the header gives, where they share memory with intermediate values.",
    )
    weights: Literal["plain", "huffman"] = Field(
        default="plain",
        description="How flash holds the weights of integer layers. `huffman`: as a Huffman code where that is "
        "smaller, decoded into the arena by the layer that reads them: less flash for cycles and memory.",
    )
    package: tuple[Literal["cmake"], ...] = Field(
        default=("cmake",), description="Build files to write beside the C."
    )
    self_test: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=4, description="Golden vectors in the self-test; 0 for no self-test."
    )
    allow_float: bool = Field(
        default=True, description="Whether layers may compute in float; off: a layer that does is an error."
    )

    def stored(self, name: str) -> Stored:
        """Setting of `io` for an input or output."""
        return self.io if isinstance(self.io, str) else self.io.get(name, "auto")


class TorchOutput(Section):
    """A rewritten torch module with readable code and ordinary parameters."""

    form: Literal["qdq", "eager"] = Field(
        default="qdq",
        description="How a quantized graph is written. `qdq`: quantize and dequantize round float operators, which "
        "torch.compile lowers to int8 kernels. `eager`: what runs fastest without torch.compile.",
    )


class Outputs(Section):
    """Outputs to write; at least one."""

    c: COutput | None = Field(default=None, description="Writes C.")
    torch: TorchOutput | None = Field(default=None, description="Writes a torch module.")
