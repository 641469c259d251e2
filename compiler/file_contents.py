"""Files of a compilation: bytes, or tensors that are serialized when the file is written or read.

So a large network is written and digested one tensor at a time, and no file of its weights is held in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import TypeAlias

from ..ir import Params
from ..ir.tensor_files import tensor_file


@dataclass(frozen=True, slots=True)
class Pieces:
    """A file in pieces, which `make` creates again at each reading."""

    make: Callable[[], Iterator[bytes]]


Content: TypeAlias = bytes | Params | Pieces


class Files(Mapping[str, bytes]):
    """The files by name, relative to the output directory; the bytes of tensors are created at each reading."""

    def __init__(self, contents: Mapping[str, Content]) -> None:
        self._contents = dict(contents)

    def __getitem__(self, name: str) -> bytes:
        return b"".join(self.parts(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._contents)

    def __len__(self) -> int:
        return len(self._contents)

    def __contains__(self, name: object) -> bool:
        return name in self._contents

    def __or__(self, others: Mapping[str, Content]) -> Files:
        """These files and others; files of the same name are replaced."""
        added = others._contents if isinstance(others, Files) else others
        return Files({**self._contents, **added})

    def parts(self, name: str) -> Iterator[bytes]:
        """The bytes of a file in pieces, at most one tensor each."""
        content = self._contents[name]
        if isinstance(content, bytes):
            yield content
        elif isinstance(content, Pieces):
            yield from content.make()
        else:
            yield from tensor_file(content)

    def digest(self, name: str) -> str:
        """SHA-256 in hexadecimal digits."""
        found = sha256()
        for part in self.parts(name):
            found.update(part)
        return found.hexdigest()
