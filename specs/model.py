"""The section `model`: source, weights and inputs of the network."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from keyword import iskeyword
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    JsonValue,
    NonNegativeInt,
    PlainSerializer,
    SerializationInfo,
    WithJsonSchema,
    model_validator,
)

from .model_folder import POSITION, PREFIX, TOKEN_IDS, TOKENS, FolderSource, cached_inputs, default_inputs
from .section import FilePath, Name, Positive, Section, fault, resolve, shown_path

Dtype: TypeAlias = Literal[
    "float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"
]

MEMORY = "memory"
"""Prefix of arrays that a Python program passed in memory, such as `memory:calibration`; no file has them."""

_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_WEIGHT_FILES = (".safetensors", ".safetensors.index.json", ".pt", ".pth")


@dataclass(frozen=True)
class FileSource:
    """A network in a Python file: `model.py:KeywordNet`."""

    path: Path
    attribute: str

    def __str__(self) -> str:
        return f"{self.path}:{self.attribute}"


@dataclass(frozen=True)
class ModuleSource:
    """A network in an importable module: `torchvision.models:resnet18`."""

    module: str
    attribute: str

    def __str__(self) -> str:
        return f"{self.module}:{self.attribute}"


def _model_source(value: Any) -> FileSource | ModuleSource | FolderSource:  # any: a value from a spec
    if isinstance(value, str) and value.startswith(PREFIX):
        folder = value.removeprefix(PREFIX)
        if not folder.strip() or "\0" in folder:
            raise fault("S207", "does not name a folder", hint="write `hf:PATH`, the path of a local folder")
        return FolderSource(resolve(folder, folder_of=value))
    return _source(value)


def _source(value: Any) -> FileSource | ModuleSource:  # any: a value from a spec, checked here
    if not isinstance(value, str):
        raise fault("S203", "expects a text such as `model.py:KeywordNet`")
    where, _, attribute = value.rpartition(":")
    if not where or not _DOTTED.fullmatch(attribute):
        hint = (
            "write `file.py:Attribute` or `package.module:Attribute`, naming a class, a function or a module"
        )
        raise fault("S207", "does not name an attribute of a file or a module", hint=hint)
    if where.endswith(".py"):
        return FileSource(resolve(where, folder_of=value), attribute)
    if not _DOTTED.fullmatch(where):
        raise fault("S207", "names neither a .py file nor a dotted module", hint="write `file.py:Attribute`")
    return ModuleSource(where, attribute)


def _shown(source: FileSource | ModuleSource | FolderSource, info: SerializationInfo) -> str:
    if isinstance(source, ModuleSource):
        return str(source)
    if isinstance(source, FolderSource):
        return f"{PREFIX}{shown_path(source.path, info)}"
    return f"{shown_path(source.path, info)}:{source.attribute}"


def _weights(value: Any) -> Any:  # any: a value from a spec, checked here
    if isinstance(value, str) and not value.endswith(_WEIGHT_FILES):
        hint = "save the state dict with safetensors, or with torch.save"
        raise fault("S207", "does not end in .safetensors, .safetensors.index.json, .pt or .pth", hint=hint)
    return value


Source = Annotated[
    FileSource | ModuleSource,
    BeforeValidator(_source),
    PlainSerializer(_shown),
    WithJsonSchema(
        {"type": "string", "pattern": ":", "examples": ["model.py:KeywordNet", "torchvision.models:resnet18"]}
    ),
]
"""Definition of an object: a file or a module, then the attribute."""

NetworkSource = Annotated[
    FileSource | ModuleSource | FolderSource,
    BeforeValidator(_model_source),
    PlainSerializer(_shown),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": ":",
            "examples": ["model.py:KeywordNet", "torchvision.models:resnet18", "hf:models/llama"],
        }
    ),
]
"""Definition of a network: a `Source`, or a Hugging Face folder."""


ArrayOrigin: TypeAlias = Path | FileSource | ModuleSource
"""Source of arrays: an npz file, or a function in a file or a module."""


def as_json(value: Any) -> Any:  # any: a value from a spec
    """The value with lists for tuples and plain strings, as the user's constructor expects."""
    match value:
        case Mapping():
            return {str(key): as_json(item) for key, item in value.items()}
        case list() | tuple():
            return [as_json(item) for item in value]
        case str():
            return str(value)
        case _:
            return value


def _identifier(value: str) -> str:
    if not value.isidentifier() or iskeyword(value):
        what = "a keyword of Python" if iskeyword(value) else "not a Python identifier"
        raise fault("S207", f"{value!r} is {what}", hint="write a name such as `tokens`")
    return value


Identifier = Annotated[Name, AfterValidator(_identifier)]
"""Name of a dimension, which emitted code uses as a variable."""


def _axis(value: Any) -> Any:  # any: a value from a spec, checked here
    if isinstance(value, str):
        if not value.isdecimal():
            raise fault("S207", f"{value!r} is not a dimension", hint="count dimensions from 0")
        return int(value)
    return value


Axis = Annotated[NonNegativeInt, BeforeValidator(_axis)]
"""Position of a dimension, counted from 0; a text in JSON."""


class Input(Section):
    """One input of the model."""

    shape: tuple[Positive, ...] = Field(
        description="Shape, including the batch dimension if there is one; `[]` for a scalar.",
        examples=[[1, 3, 32, 32]],
    )
    dtype: Dtype = Field(default="float32", description="Element type.")
    batch: NonNegativeInt | None = Field(
        default=0,
        description="Batch dimension, which arrays of samples leave out; `null` for an input without one, which "
        "arrays [n, *shape] also imply.",
    )
    dynamic: Mapping[Axis, Identifier] = Field(
        default={},
        description="Names of the dimensions whose size each call chooses, by position; `shape` has the sizes of the "
        "example. Dimensions with one name have one size. Only for the torch output.",
        examples=[{"0": "batch", "1": "tokens"}],
    )

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape without the batch."""
        if self.batch is None:
            return self.shape
        return self.shape[: self.batch] + self.shape[self.batch + 1 :]

    @property
    def is_floating(self) -> bool:
        """True if the elements are floats."""
        return self.dtype in ("float32", "float64", "float16", "bfloat16")

    @model_validator(mode="after")
    def _batch_is_a_dimension(self) -> Self:
        if self.batch and self.batch >= len(self.shape):
            raise fault("S205", f"batch {self.batch} is not a dimension of the shape {list(self.shape)}")
        for axis in self.dynamic:
            if axis >= len(self.shape):
                raise fault("S205", f"dynamic: {axis} is not a dimension of the shape {list(self.shape)}")
        return self


class Sizes(Section):
    """Allowed sizes of a dynamic dimension."""

    min: Positive | None = Field(
        default=None, description="Least size. Default: the least that the model takes."
    )
    max: Positive | None = Field(
        default=None,
        description="Largest size. Default: the largest that the model takes, if it has a limit.",
    )

    @model_validator(mode="after")
    def _range_is_not_empty(self) -> Self:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise fault("S205", f"min {self.min} is above max {self.max}")
        return self


class Cache(Section):
    """Caches of the keys and values of earlier tokens, with which a causal language model generates text."""

    length: int = Field(
        ge=2,
        lt=2**31,
        description="Number of positions in each cache: the tokens of prompt and generated text together.",
    )
    bits: Literal[8, 4] | None = Field(
        default=None,
        description="Bit width of keys and values, with a float32 scale for each head and token. Default: the floats "
        "of the model.",
    )


class Model(Section):
    """The network: its source, weights and inputs."""

    source: NetworkSource = Field(
        description="File or module, then an attribute: a class or function, which is called with `args`, or a torch "
        "module object. Or `hf:PATH`, a local folder with config.json and safetensors files of Hugging Face, which is "
        "read tensor by tensor."
    )
    args: Mapping[Name, Annotated[JsonValue, BeforeValidator(as_json)]] = Field(
        default={}, description="Keyword arguments of the class or function."
    )
    weights: Annotated[FilePath, BeforeValidator(_weights)] | None = Field(
        default=None,
        description="State dict: a .safetensors file, the .safetensors.index.json of several (Hugging Face), or a .pt "
        "file that contains only tensors. Default: the weights that the source sets.",
    )
    inputs: Mapping[Name, Input] = Field(
        min_length=1,
        description="Arguments of `forward` by name, each with shape and type. For a folder with a model of token ids "
        "the default is `input_ids`, and `decoder_input_ids` for an encoder-decoder, of shape [1, 128] or the fewer "
        "positions that the model has.",
    )
    outputs: tuple[Name, ...] = Field(
        default=(),
        description="Names of the results of `forward`, in their order. Default: keys and field names of the result "
        "if it has any, else `output`, or `output_0`, `output_1`, ...",
    )
    state: Mapping[Name, Name] = Field(
        default={},
        description="Inputs that take an output of the previous call. Both have the same encoding, and samples are "
        "the steps of sequences.",
        examples=[{"h": "h_out"}],
    )
    cache: Cache | None = Field(
        default=None,
        description="For a folder with a causal language model: keys and values of earlier tokens are states. Inputs "
        "are then `input_ids`, of which each call takes a block of any length, `position`, that of its first token, "
        "and two caches for each layer, `keys_0`, `values_0`, ..., which are outputs, too. Default: without caches.",
        examples=[{"length": 512}],
    )
    dtype: Literal["float32", "float64"] | None = Field(
        default=None,
        description="Converts parameters and buffers before capture. Default: unchanged.",
    )
    dimensions: Mapping[Identifier, Sizes] = Field(
        default={},
        description="Allowed sizes of dynamic dimensions, by name.",
        examples=[{"tokens": {"min": 2, "max": 512}}],
    )

    @property
    def dynamic(self) -> dict[str, Mapping[int, str]]:
        """Dynamic dimensions of each input that has any."""
        return {name: described.dynamic for name, described in self.inputs.items() if described.dynamic}

    @property
    def ranges(self) -> dict[str, tuple[int | None, int | None]]:
        """Least and largest size of each dimension that has limits."""
        return {name: (sizes.min, sizes.max) for name, sizes in self.dimensions.items()}

    @model_validator(mode="after")
    def _dimensions_are_named(self) -> Self:
        sizes: dict[str, int] = {}
        for name, described in self.inputs.items():
            for axis, dimension in described.dynamic.items():
                size = described.shape[axis]
                if sizes.setdefault(dimension, size) != size:
                    fact = f"inputs: {dimension} has size {size} in {name}, and {sizes[dimension]} in another input"
                    raise fault("S205", fact, hint="a dimension has the same size in all inputs")
                allowed = self.dimensions.get(dimension, Sizes())
                if not (allowed.min or 1) <= size <= (allowed.max or size):
                    raise fault(
                        "S205", f"dimensions: {dimension} has size {size} in the example, out of its range"
                    )
        unknown = [name for name in self.dimensions if name not in sizes]
        if unknown:
            hint = f"`dynamic` of the inputs has {', '.join(sizes) or 'none'}"
            raise fault("S205", f"dimensions: {', '.join(unknown)} is not a dimension of an input", hint=hint)
        return self

    @model_validator(mode="before")
    @classmethod
    def _inputs_of_folder(cls, values: Any) -> Any:  # any: a value from a spec, checked afterwards
        source = values.get("source") if isinstance(values, Mapping) else None
        if not isinstance(source, str) or not source.startswith(PREFIX):
            return values
        folder, given = resolve(source.removeprefix(PREFIX), folder_of=source), values.get("inputs")
        length = values["cache"].get("length") if isinstance(values.get("cache"), Mapping) else None
        if isinstance(length, int) and length > 1:
            return {**values, **_cached(folder, length, given, values.get("dimensions"))}
        inputs = default_inputs(folder)
        return {"inputs": inputs, **values} if inputs else values

    @model_validator(mode="after")
    def _folder_has_weights(self) -> Self:
        for name in ("args", "weights"):
            if isinstance(self.source, FolderSource) and getattr(self, name):
                hint = "remove it, or name your own class in `source`"
                raise fault("S205", f"`{name}` does not apply to a folder, which defines it", hint=hint)
        return self

    @model_validator(mode="after")
    def _cache_fits(self) -> Self:
        if self.cache is None:
            return self
        if not isinstance(self.source, FolderSource):
            hint = "name the caches under `inputs` and `state`, as examples/language_model/step.yaml does"
            raise fault("S205", "`cache` applies to a folder, `source: hf:PATH`", hint=hint)
        for name in ("outputs", "state"):
            if getattr(self, name):
                raise fault(
                    "S205", f"`{name}` does not apply with `cache`, which names them", hint="remove it"
                )
        others = [name for name in self.inputs if name not in (TOKEN_IDS, POSITION)]
        if others or TOKEN_IDS not in self.inputs:
            hint = f"name {TOKEN_IDS} alone, or leave `inputs` out"
            raise fault("S205", f"inputs: with `cache` they are {TOKEN_IDS} and {POSITION}", hint=hint)
        shape = self.inputs[TOKEN_IDS].shape
        if len(shape) != 2 or shape[0] != 1 or shape[1] > self.cache.length:
            fact = f"inputs: {TOKEN_IDS} has the shape {list(shape)}, and `cache` holds {self.cache.length} positions"
            raise fault(
                "S205", fact, hint="write [1, tokens], with tokens up to `length`: caches are of one sequence"
            )
        return self

    @property
    def fed(self) -> tuple[str, ...]:
        """Inputs that the samples provide; with `cache` only token ids, since each sample starts with empty caches."""
        return (TOKEN_IDS,) if self.cache is not None else tuple(self.inputs)

    @model_validator(mode="after")
    def _states_are_inputs(self) -> Self:
        unknown = [name for name in self.state if name not in self.inputs]
        if unknown:
            hint = f"`inputs` has {', '.join(self.inputs)}"
            raise fault("S205", f"state: {', '.join(unknown)} is not an input", hint=hint)
        if len(set(self.state.values())) < len(self.state):
            raise fault(
                "S205", "state: two inputs continue the same output", hint="give each input its own output"
            )
        if len(self.state) == len(self.inputs):
            raise fault(
                "S205",
                "state: every input is a state",
                hint="a model needs at least one input that is not a state",
            )
        return self


def _cached(
    folder: Path, length: int, given: Any, dimensions: Any
) -> dict[str, Any]:  # any: a value from a spec
    """Inputs of a model with caches, and the allowed sizes of a block of tokens; values of the user take precedence."""
    made = cached_inputs(folder, length)
    if given is None:
        sizes = {"dimensions": {TOKENS: {"min": 1, "max": length}}} if dimensions is None else {}
        return {"inputs": made, **sizes}
    return {"inputs": {POSITION: made[POSITION], **given} if isinstance(given, Mapping) else given}
