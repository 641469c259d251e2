"""Functions of the emitted header that convert one number: file to input, model to buffer, buffer to real.

    NAME_convert_x      a number of the data file to an element of the buffer, by `data.transform` of the spec
    NAME_quantize_x     a number of the model's input to an element of the buffer
    NAME_dequantize_y   an element of the buffer to a number of the model's output

Rounding and saturation are those of the quantize kernel: nearest, halves away from zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ....specs import Transform
from .literal import integer, real
from .ports import Port


@dataclass(frozen=True, slots=True)
class Conversion:
    """A function of one number: its comment, declaration, and the lines of its body."""

    comment: str
    declaration: str
    lines: tuple[str, ...]


def conversions(
    name: str, ports: Sequence[Port], transforms: Mapping[str, Transform]
) -> tuple[Conversion, ...]:
    """The conversions of all inputs and outputs that need one, in order."""
    return tuple(c for port in ports for c in _of_port(name, port, transforms.get(port.name, Transform())))


def _of_port(name: str, port: Port, transform: Transform) -> Iterator[Conversion]:
    label, encoding = port.macro.lower(), port.encoding
    if encoding is not None and port.is_input:
        zero = encoding.zero_point
        number = f"(value - {real(encoding.offset)})" if encoding.offset else "value"
        yield Conversion(
            f"An element of input {port.parameter} from a number that the model takes.",
            f"{port.c_type} {name}_quantize_{label}(float value)",
            (
                f"const float ratio = {number} / {real(encoding.scale)};",
                "const float steps = ratio < 0.0f ? ratio - 0.5f : ratio + 0.5f;",
                f"if (!(steps > {real(float(encoding.low - zero))})) {{",
                f"    return {integer(encoding.low)};",
                "}",
                f"return steps >= {real(float(encoding.high - zero))} ? {integer(encoding.high)} : "
                f"({port.c_type})((int32_t)steps + ({zero}));",
            ),
        )
    elif encoding is not None:
        yield Conversion(
            f"The real number that an element of output {port.parameter} represents.",
            f"float {name}_dequantize_{label}({port.c_type} value)",
            (f"return (float)((int32_t)value - ({encoding.zero_point})) * {real(encoding.scale)};",),
        )
    if port.is_input and not transform.keeps_values:
        model = f"value * {real(transform.scale)} + {real(transform.offset)}"
        yield Conversion(
            f"An element of input {port.parameter} from a number of the data file.",
            f"{port.c_type} {name}_convert_{label}(float value)",
            (f"return {model};" if encoding is None else f"return {name}_quantize_{label}({model});",),
        )


def recipe(transform: Transform) -> str:
    """Description of the conversion from the data file to the model's input; empty if there is none."""
    steps = [f"axes {transform.layout}"] if transform.layout else []
    steps += [f"each sample as [{', '.join(map(str, transform.reshape))}]"] if transform.reshape else []
    if not transform.keeps_values:
        steps.append(f"value * {real(transform.scale)} + {real(transform.offset)}")
    return "; ".join(steps)
