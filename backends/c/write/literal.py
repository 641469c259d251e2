"""Writing of C: numbers, arrays and comments.

The user's names are written to the C only through `comment`, which removes everything that could end a comment, and
`identifier`.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from ....ir import DType, UnsupportedError

C_TYPES = {
    DType.I8: "int8_t",
    DType.U8: "uint8_t",
    DType.BOOL: "uint8_t",
    DType.I16: "int16_t",
    DType.I32: "int32_t",
    DType.I64: "int64_t",
    DType.F32: "float",
}
_LINE = 108
_LONGEST_COMMENT = 160
_ARRAY_TYPES = {
    "int8": "int8_t",
    "uint8": "uint8_t",
    "int16": "int16_t",
    "uint16": "uint16_t",
    "int32": "int32_t",
    "int64": "int64_t",
}
_ARRAY_TYPES |= {"float32": "float", "bool": "uint8_t"}


def comment(text: str) -> str:
    """`text` for a C comment: printable ASCII on one line, without comment marks, of bounded length."""
    plain = "".join(c if " " <= c <= "~" and c != "\\" else "." for c in text)
    plain = plain.replace("/*", "/.").replace("*/", "*.").replace("??", "?.")
    return plain if len(plain) <= _LONGEST_COMMENT else plain[: _LONGEST_COMMENT - 3] + "..."


def identifier(name: str) -> str:
    """`name` with each character that C does not allow in a name replaced by an underscore; never empty."""
    return re.sub(r"[^A-Za-z0-9_]", "_", name) or "_"


def integer(number: int) -> str:
    """An int32 literal; the smallest int32 has no literal and is an expression."""
    return "(-2147483647 - 1)" if number == -(1 << 31) else str(number)


def real(number: float) -> str:
    """A float constant that reads back as the same float32; infinity and NaN are quotients, without math.h."""
    value = np.float32(number)
    if np.isnan(value):
        return "(0.0f / 0.0f)"
    if np.isinf(value):
        return "(1.0f / 0.0f)" if value > 0 else "(-1.0f / 0.0f)"
    if value == 0 or 1e-4 <= abs(value) < 1e7:
        return f"{np.format_float_positional(value, unique=True, trim='0')}f"
    text = np.format_float_scientific(value, unique=True, trim="0", exp_digits=1)
    return f"{text}f"


def c_type(dtype: DType) -> str:
    """The C type of a dtype; UnsupportedError if kernels do not support it."""
    if dtype not in C_TYPES:
        raise UnsupportedError(f"C kernels do not support elements of type {dtype.value}")
    return C_TYPES[dtype]


def array_type(data: npt.NDArray[np.generic]) -> str:
    """The C type of an array's elements."""
    return _ARRAY_TYPES[data.dtype.name]


def array(data: npt.NDArray[np.generic]) -> str:
    """The initializer of an array: its numbers, in lines."""
    flat = data.reshape(-1).tolist()
    words = [_short_real(n) for n in flat] if data.dtype.kind == "f" else [integer(int(n)) for n in flat]
    lines, line = [], "   "
    for word in words:
        if len(line) + len(word) + 2 > _LINE:
            lines.append(line)
            line = "   "
        line += f" {word},"
    return "\n".join([*lines, line])


def _short_real(number: float) -> str:
    """A float literal with nine digits, which identify every float32; much faster than the shortest one."""
    text = f"{number:.9g}"
    if text.lstrip("-") in ("inf", "nan"):
        return real(number)
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"
