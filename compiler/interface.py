"""Model of interface.json: inputs and outputs of a compiled network, so that its directory can be used without the
spec.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ..backends.c import STATE_BLOCK, PortEncoding
from ..ir import DType, TensorType, Value
from ..ir.sizes import Size, text_of
from ..specs import Target, Transform

INTERFACE_FILE = "interface.json"


class Port(BaseModel):
    """One input or output of the network, and of the C function."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="name in the model")
    shape: tuple[int, ...] = Field(description="shape in the model, with the batch")
    batch: int | None = Field(
        default=0, description="the model's batch dimension of an input; null for one without"
    )
    dynamic: dict[int, str] = Field(
        default={},
        description="names of the dimensions whose size each call chooses; `shape` has the example's",
    )
    dtype: str = Field(description="element type in the model, as in the graph text")
    c_dtype: str = Field(description="element type in C, as in the graph text")
    c_order: tuple[int, ...] = Field(
        description="the model's dimension at each place of the C buffer's shape"
    )
    scale: float | None = Field(
        default=None, description="real = (integer - zero_point) * scale + offset, for integers in C"
    )
    zero_point: int | None = Field(default=None, description="the integer that represents `offset`")
    offset: float = Field(default=0.0, description="the real that `zero_point` represents")
    region: str | None = Field(
        default=None,
        description="region of RAM that has the buffer; null for a buffer that the caller passes",
    )
    arena_offset: int | None = Field(
        default=None,
        description="bytes from the start of `region`; null for a buffer that the caller passes",
    )
    state_offset: int | None = Field(
        default=None,
        description="bytes from the start of the block of states; null for a port that is not a state in that block",
    )
    transform: Transform | None = Field(
        default=None, description="conversion from a file to the model input, as in the spec"
    )
    frames_axis: int | None = Field(
        default=None,
        description="time axis of an input that takes the new frames of a stream; null for other inputs",
    )

    @property
    def type(self) -> TensorType:
        """Type in the model."""
        return TensorType(self.shape, DType(self.dtype))

    @property
    def place(self) -> tuple[str, int] | None:
        """Block of memory (a region of RAM, or `state`) and offset in it; None for a buffer of the caller."""
        if self.state_offset is not None:
            return STATE_BLOCK, self.state_offset
        return None if self.region is None or self.arena_offset is None else (self.region, self.arena_offset)

    @property
    def elements(self) -> int:
        """Number of elements."""
        return self.type.numel

    @property
    def c_bytes(self) -> int:
        """Bytes of the C buffer."""
        return self.elements * DType(self.c_dtype).bytes

    @property
    def _encoding(self) -> PortEncoding | None:
        if self.scale is None or self.zero_point is None:
            return None
        limits = torch.iinfo(DType(self.c_dtype).torch)
        return PortEncoding(self.scale, self.zero_point, limits.min, limits.max, self.offset)

    def to_c(self, sample: Tensor) -> bytes:
        """The C buffer of one sample of the model's shape."""
        stored = sample if self._encoding is None else self._encoding.integers(sample)
        stored = stored.to(DType(self.c_dtype).torch).reshape(self.shape)
        return bytes(stored.permute(self.c_order).contiguous().numpy().tobytes())

    def integers(self, buffer: bytes) -> Tensor:
        """Contents of a C buffer in the model's shape."""
        array: NDArray[np.generic] = np.frombuffer(buffer, dtype=_numpy_dtype(self.c_dtype)).copy()
        tensor = torch.from_numpy(array)
        in_memory = tensor.reshape([self.shape[dim] for dim in self.c_order])
        return in_memory.permute([self.c_order.index(dim) for dim in range(len(self.shape))])

    def from_c(self, buffer: bytes) -> Tensor:
        """The real values of a C buffer, in the model's shape."""
        stored = self.integers(buffer)
        return stored if self._encoding is None else self._encoding.reals(stored)


class Generation(BaseModel):
    """Text generation of a language model with caches."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    length: int = Field(description="positions in each cache")
    stop_tokens: tuple[int, ...] = Field(default=(), description="ids of the tokens that end a text")


class Interface(BaseModel):
    """Inputs and outputs of a compiled network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: Target = Field(description="the target, with overrides of the spec")
    c_name: str | None = Field(default=None, description="prefix of every C name; null without a C output")
    regions: dict[str, int] = Field(
        default={},
        description="bytes of each region of RAM that the caller of the C function provides, in the order of its "
        "parameters",
    )
    state_bytes: int = Field(
        default=0, description="bytes of the block of states that the C function updates; 0 without one"
    )
    c_kernels: tuple[str, ...] = Field(
        default=(), description="C files of kernels in addition to those of the network"
    )
    weights_file: str | None = Field(
        default=None, description="file with constants that the C function reads; null for none"
    )
    torch_class: str | None = Field(
        default=None, description="class in torch/model.py; null without a torch output"
    )
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    state: Mapping[str, str] = Field(
        default={},
        description="inputs that take an output of the previous call, with the name of that output",
    )

    generation: Generation | None = Field(
        default=None, description="text generation of a language model with caches; null for other networks"
    )

    @property
    def input_values(self) -> tuple[Value, ...]:
        """The model's inputs."""
        return tuple(Value(port.name, port.type) for port in self.inputs)

    @property
    def arena_bytes(self) -> int:
        """Working memory that the caller of the C function provides, in all regions."""
        return sum(self.regions.values())

    @property
    def entry(self) -> str:
        """Name of the C function."""
        return f"{self.c_name}_step" if self.state_bytes else f"{self.c_name}_run"

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the model's inputs."""
        return tuple(port.name for port in self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the model's outputs."""
        return tuple(port.name for port in self.outputs)


def make_port(
    name: str,
    value: Value,
    c_dtype: DType,
    order: tuple[int, ...],
    *,
    encoding: PortEncoding | None = None,
    place: tuple[str, int] | None = None,
    transform: Transform | None = None,
    batch: int | None = 0,
    frames_axis: int | None = None,
) -> Port:
    """The port of a graph input or output whose C buffer has elements of `c_dtype`, with dimensions in `order`.

    `place` is the block of memory (a region of RAM, or `state`) and the offset, unless the caller passes the buffer.
    """
    block, offset = place or (None, None)
    is_state = block == STATE_BLOCK
    return Port(
        name=name,
        shape=tuple(map(int, value.type.shape)),
        dynamic={axis: text_of(size) for axis, size in enumerate(value.type.shape) if isinstance(size, Size)},
        dtype=value.type.real().dtype.value,
        c_dtype=c_dtype.value,
        c_order=order,
        scale=None if encoding is None else encoding.scale,
        zero_point=None if encoding is None else encoding.zero_point,
        offset=0.0 if encoding is None else encoding.offset,
        region=None if is_state else block,
        arena_offset=None if is_state else offset,
        state_offset=offset if is_state else None,
        transform=transform,
        batch=batch,
        frames_axis=frames_axis,
    )


def _numpy_dtype(name: str) -> np.dtype[np.generic]:
    return np.dtype(torch.empty(0, dtype=DType(name).torch).numpy().dtype)
