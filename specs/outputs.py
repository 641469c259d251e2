"""The section `outputs`: outputs to write, and the options of each backend."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal, Self, TypeAlias

from pydantic import AfterValidator, Field, WithJsonSchema, create_model, model_validator

from .plugins import BACKEND_OPTIONS, join
from .section import Name, Section, fault
from .units import Bytes

C_IDENTIFIER = re.compile(r"^[a-z][a-z0-9_]*$")
"""Pattern of names in C that begin with a lower-case letter."""

_C_WORDS = """
auto break case char const continue default do double else enum extern float for goto if inline int long register
restrict return short signed sizeof static struct switch typedef typeof union unsigned void volatile while alignas
alignof and asm bool catch class constexpr decltype delete explicit export false friend main mutable namespace new
noexcept not nullptr operator or private protected public static_assert template this thread_local throw true try
typeid typename using virtual wchar_t xor
"""

PLATFORM_WORDS = frozenset(
    {
        "complex",
        "errno",
        "far",
        "i386",
        "imaginary",
        "interface",
        "linux",
        "near",
        "stderr",
        "stdin",
        "stdout",
        "unix",
    }
)
"""Lower-case names that headers of some platforms define as macros."""


_HEADERS = """
assert complex ctype errno fenv float inttypes iso646 limits locale math setjmp signal stdalign stdarg stdatomic stdbool
stddef stdint stdio stdlib stdnoreturn string strings tgmath threads time uchar unistd wchar wctype packed_linear
"""
"""Headers of the C library: `#include` would find them instead of a header of the same name."""

_CMAKE_TARGETS = "all clean depend edit_cache help install m package preinstall rebuild_cache test"
"""Target names that CMake reserves, and the name of the mathematics library."""


def is_c_name(text: str) -> bool:
    """True if a lower-case text can be a name in C and in C++."""
    return bool(C_IDENTIFIER.fullmatch(text)) and text not in _C_WORDS.split()


def _identifier(value: str) -> str:
    if not is_c_name(value) or len(value) > 40:
        hint = "use at most 40 lower-case letters, digits and _, a letter first, and no word of C or C++"
        raise fault("S207", "cannot be the prefix of C names", hint=hint)
    if value in _HEADERS.split():
        raise fault(
            "S207",
            f"cannot be the name: {value}.h is a standard C header",
            hint="choose another, such as `net`",
        )
    if value in _CMAKE_TARGETS.split():
        raise fault(
            "S207",
            "cannot be the name: it is reserved by CMake or the linker",
            hint="choose another, such as `net`",
        )
    return value


Identifier = Annotated[
    str,
    AfterValidator(_identifier),
    WithJsonSchema({"type": "string", "pattern": C_IDENTIFIER.pattern, "maxLength": 40}),
]
"""Text that can begin all C names of the emitted code."""


Stored: TypeAlias = Literal["auto", "int8", "uint8", "int16", "float"]
"""Storage of an input or output in the buffers of the emitted C."""


_SECTION = re.compile(r"[._A-Za-z][A-Za-z0-9_.$]*")
_SECTIONS_OF_COMPILERS = (".text", ".rodata", ".data", ".bss")


def _section(value: str) -> str:
    if not _SECTION.fullmatch(value) or len(value) > 64:
        hint = "use letters, digits, `.`, `_` and `$`, as in `.ext_flash`; at most 64"
        raise fault("S207", "cannot be the name of a section", hint=hint)
    if value in _SECTIONS_OF_COMPILERS:
        hint = "use your own section, such as `.ext_flash`, and place it in the linker script"
        raise fault("S205", f"{value} is a default section of the compiler", hint=hint)
    return value


SectionName = Annotated[
    str,
    AfterValidator(_section),
    WithJsonSchema({"type": "string", "pattern": f"^{_SECTION.pattern}$", "maxLength": 64}),
]
"""Name of a linker section."""


class LinkerSections(Section):
    """Linker sections in which the emitted C places constants and functions. Default: those of the compiler."""

    weights: SectionName | None = Field(
        default=None,
        description="Section of the constants in NAME_weights.c, for example in external flash; the macro "
        "NAME_WEIGHTS_SECTION replaces it.",
        examples=[".ext_flash"],
    )
    code: SectionName | None = Field(
        default=None,
        description="Section of the functions in NAME.c, for example in tightly coupled memory; the macro "
        "NAME_CODE_SECTION replaces it.",
        examples=[".itcm"],
    )

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if self.weights is not None and self.weights == self.code:
            raise fault("S205", f"constants and functions cannot share the section {self.code}")
        return self


class COutput(Section):
    """C99 without dependencies: a header, a source, the weights, a self-test."""

    name: Identifier = Field(default="model", description="Prefix of every file and every C name.")
    io: Stored | Mapping[Name, Stored] = Field(
        default="auto",
        description="Number format of the buffers of the run function: one for all, or by name for some inputs and "
        "outputs. `auto`: the graph's integers if the value is quantized, the model's own integers, else float. "
        "`int8`: the graph's integers, which can be int16. `uint8`: int8 + 128. `int16`: int8 minus its zero point. "
        "Whole numbers, such as token ids, are passed unchanged.",
        examples=[{"image": "uint8", "scores": "float"}],
    )
    layouts: Mapping[Name, Literal["nhwc", "nchw", "ntc", "model"]] = Field(
        default={},
        description="Order of dimensions of inputs and outputs, by name. `nhwc`: the model's second dimension last, "
        "for four dimensions. `ntc`: the same for three. `nchw`, for four dimensions, and `model`: the model's order. "
        "Default: `nhwc` for four dimensions, `model` if the model itself permutes an input from channels last, or an "
        "output to channels last.",
        examples=[{"frame": "model"}],
    )
    buffers: Literal["caller", "arena"] = Field(
        default="caller",
        description="Storage of inputs and outputs. `caller`: buffers of the caller. `arena`: in the arena, at "
        "offsets given in the header, where they can share memory with intermediate values.",
    )
    weights: Literal["plain", "huffman"] = Field(
        default="plain",
        description="Coding of the weights. `huffman`: those of integer layers as a Huffman code if that is smaller, "
        "decoded into the arena by the layer that reads them: less flash, more cycles and RAM.",
    )
    weights_file: Literal["c", "binary"] = Field(
        default="c",
        description="Form of the file with all constants: weights, biases, multipliers and tables. `c`: "
        "NAME_weights.c, compiled with the network. `binary`: NAME_weights.bin, separate from the code: for external "
        "flash, for updates of the weights alone, for networks too large to compile. The caller passes its address; "
        "NAME_check_weights compares it with the code and checks its CRC-32.",
    )
    sections: LinkerSections = Field(
        default=LinkerSections(),
        description="Linker sections of constants and functions.",
        examples=[{"weights": ".ext_flash"}],
    )
    states: Literal["copied", "in_place"] | None = Field(
        default=None,
        description="Storage of the states (`model.state`, and those of the pass `stream`). `copied`: an input and an "
        "output each. `in_place`: one block of memory that the function reads and updates; the function is then called "
        "NAME_step, and NAME_reset sets the block to the start of a sequence. Default: `in_place` with `stream`, else "
        "`copied`.",
    )
    execution: Literal["whole", "parts"] = Field(
        default="whole",
        description="Execution of a run. `whole`: one call. `parts`: also NAME_begin and NAME_continue, which runs a "
        "bounded number of steps (layers) of a run, so that a cooperative scheduler can run other tasks between them.",
    )
    package: tuple[Literal["cmake"], ...] = Field(
        default=("cmake",), description="Build files to write in addition to the C."
    )
    self_test: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=4, description="Number of golden vectors in the self-test; 0 for no self-test."
    )
    allow_float: bool = Field(
        default=True, description="Allow layers that compute in float; off: they are an error."
    )
    pareto: Literal["ram,cycles"] | None = Field(
        default=None,
        description="Pareto front in the report, as a table and a picture. `ram,cycles`: predicted cycles in less and "
        "less RAM. The same as `--pareto` of the command `plan`; needs the time of up to 32 compilations to C.",
    )

    @model_validator(mode="after")
    def _places_the_constants_once(self) -> Self:
        if self.weights_file == "binary" and self.sections.weights is not None:
            hint = "remove one of them; the section of a binary file is set when it is converted to an object file"
            raise fault("S205", "`sections.weights` needs `weights_file: c`", hint=hint)
        return self

    def stored(self, name: str) -> Stored:
        """The setting of `io` for an input or output."""
        return self.io if isinstance(self.io, str) else self.io.get(name, "auto")


_SHARDS = (
    "Largest size of the tensors in one safetensors file, such as `2 GB`; a tensor is not divided. Several files have "
    "an index, `model.safetensors.index.json`."
)


class TorchOutput(Section):
    """A rewritten torch module with readable code and ordinary parameters."""

    form: Literal["qdq", "eager", "native"] = Field(
        default="qdq",
        description="Form of a quantized graph. `qdq`: quantize and dequantize around float operators, which "
        "torch.compile lowers to int8 kernels. `eager`: torch's int8 kernels, called one by one. `native`: kernels in "
        "C, compiled at first use; fastest on a CPU, with the bytes of the integer graph.",
    )
    max_shard_bytes: Bytes | None = Field(default=None, description=f"{_SHARDS} Default: one file.")
    states: Literal["copied", "in_place"] | None = Field(
        default=None,
        description="Storage of the states (`model.state`, `model.cache`). `copied`: an argument and a result each. "
        "`in_place`: the module writes to its arguments; for states that `index_copy` updates, such as caches. "
        "Default: `in_place` for `model.cache`, else `copied`.",
    )


class FolderOutput(Section):
    """A folder of Hugging Face files, of a model that came from one."""

    format: Literal["compressed-tensors"] = Field(
        default="compressed-tensors",
        description="Convention of the stored weights. `compressed-tensors`: integers of 4 or 8 bits packed into int32 "
        "(pack-quantized), with a scale for each group or row.",
    )
    max_shard_bytes: Bytes = Field(
        default=2 * 10**9, description=_SHARDS, json_schema_extra={"default": "2 GB"}
    )


class GGUFOutput(Section):
    """A GGUF file of a llama-like model that came from a folder of Hugging Face files, for llama.cpp."""


_OWN: Mapping[str, type[Section]] = {
    "c": COutput,
    "torch": TorchOutput,
    "hf": FolderOutput,
    "gguf": GGUFOutput,
}


class Outputs(Section):
    """Outputs to write; at least one."""

    c: COutput | None = Field(default=None, description="Writes C.")
    torch: TorchOutput | None = Field(default=None, description="Writes a torch module.")
    hf: FolderOutput | None = Field(default=None, description="Writes a folder of Hugging Face files.")
    gguf: GGUFOutput | None = Field(default=None, description="Writes a GGUF file.")

    @property
    def others(self) -> dict[str, Section]:
        """Options of the requested backends of packages, by name."""
        found = {name: getattr(self, name) for name in type(self).model_fields if name not in _OWN}
        return {name: options for name, options in found.items() if options is not None}


_BACKENDS = join(BACKEND_OPTIONS, Section, _OWN)
if not TYPE_CHECKING and len(_BACKENDS) > len(_OWN):
    Outputs = create_model(
        "Outputs",
        __base__=Outputs,
        __doc__=Outputs.__doc__,
        **{
            name: (
                options | None,
                Field(default=None, description=(options.__doc__ or "").partition("\n")[0]),
            )
            for name, options in _BACKENDS.items()
            if name not in _OWN
        },
    )
