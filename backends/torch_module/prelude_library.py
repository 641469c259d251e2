"""Prelude of emitted modules with a C file; the source of these definitions is copied into the emitted file.

The C file is stored next to the emitted one and is compiled for the processor at its first use.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path


def compiled_library(name: str, *others: str) -> ctypes.CDLL | None:
    """The library of the C file `name`, compiled for this processor; None, with a warning, without a C compiler.

    `others` are further C files of it, and headers. CC names the compiler (default: cc). The library is cached in
    ~/.cache/fxpress, or below XDG_CACHE_HOME.
    """
    source = Path(globals().get("__file__", "model.py")).with_name(name)
    native = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
    flags = ["-O3", "-ffp-contract=off", "-shared", "-fPIC", native]
    try:
        compiler = shlex.split(os.environ.get("CC") or "cc")
        probe = subprocess.run(
            [*compiler, native, "-dM", "-E", "-x", "c", os.devnull], check=True, capture_output=True
        )
        files = [source, *map(source.with_name, others)]
        contents = [file.read_bytes() for file in files]
        key = hashlib.sha256(b"\0".join([*contents, probe.stdout, " ".join(flags).encode()]))
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fxpress"
        library = folder / f"{source.stem}-{key.hexdigest()[:16]}.so"
        return loaded(library) or ctypes.CDLL(str(compiled(compiler, flags, files, library)))
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        warnings.warn(f"{name} was not compiled, so that layers are slower: {error}", stacklevel=3)
        return None


def loaded(library: Path) -> ctypes.CDLL | None:
    """The library of an earlier process; None if there is none, or a damaged one."""
    try:
        return ctypes.CDLL(str(library)) if library.exists() else None
    except OSError:
        return None


def compiled(compiler: list[str], flags: list[str], files: list[Path], library: Path) -> Path:
    """`library` compiled from the C files among `files`, with OpenMP if the compiler has it.

    If the folder cannot be written, it is in a temporary one.
    """
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=library.parent)) / library.name
    except OSError:
        library = made = Path(tempfile.mkdtemp()) / library.name
    sources = [str(file) for file in files if file.suffix == ".c"]
    command = [*compiler, *flags, "-o", str(made), *sources, "-lm"]
    try:
        if subprocess.run([*command, "-fopenmp"], capture_output=True, check=False).returncode:
            subprocess.run(command, capture_output=True, check=True)
        if made != library:
            made.replace(library)
    finally:
        if made != library:
            shutil.rmtree(made.parent)
    return library
