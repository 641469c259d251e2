"""The file NAME_weights.bin: the constants of a network, separate from its code.

    0   "FXPW"
    4   version of the format, 1
    8   bytes of the file, 64 bits
    16  digest of the code, 64 bits: the first bytes of the SHA-256 of header and source without comments and digest
    24  constants, each at a multiple of the alignment
    -4  CRC-32 of everything before it (as in zlib and Ethernet)

All numbers are little-endian. The digest is equal for networks with the same emitted code, such as networks with other
weights: it covers names, shapes, kernels, offsets of constants, and scales of inputs and outputs.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Sequence
from zlib import crc32

from .source import Array

MAGIC = int.from_bytes(b"FXPW", "little")
VERSION = 1
HEADER_BYTES = 24
CHECK_CODE_BYTES = 300
"""Bytes of code and table of NAME_check_weights, and of the check in the run function; as linked for a Cortex-M4 with
-O3.
"""

_CHECK_BYTES = 4
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)


def code_digest(*texts: str) -> int:
    """Digest of emitted C, 64 bits, without comments."""
    code = "\0".join(_COMMENT.sub("", text) for text in texts)
    return int.from_bytes(hashlib.sha256(code.encode("ascii")).digest()[:8], "little")


def file_bytes(arrays: Sequence[Array]) -> int:
    """Bytes of the file with these constants; 0 if they are arrays in C."""
    ends = [array.offset + array.data.nbytes for array in arrays if array.offset is not None]
    return -(-max(ends) // _CHECK_BYTES) * _CHECK_BYTES + _CHECK_BYTES if ends else 0


def weights_file(arrays: Sequence[Array], digest: int) -> bytes:
    """The contents of the file, each array at its offset."""
    size = file_bytes(arrays)
    contents = bytearray(size)
    struct.pack_into("<IIQQ", contents, 0, MAGIC, VERSION, size, digest)
    for stored in arrays:
        assert stored.offset is not None
        contents[stored.offset : stored.offset + stored.data.nbytes] = stored.data.tobytes()
    struct.pack_into("<I", contents, size - _CHECK_BYTES, crc32(contents[:-_CHECK_BYTES]))
    return bytes(contents)
