"""C compilers: search, and builds of objects, shared libraries and bare images, with their sizes and stack.

compiler = target_compiler(load_target("cortex-m4f"))
objects = compile_objects(compiler, sources, folder, flags=("-O2", *WARNINGS))
image = link_image(compiler, objects, folder / "kws.elf", keep=("kws_run",))
read_elf(image).footprint.flash
worst_case_stack(objects, "kws_run")                        # backends.c.stack
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from ....specs import Target
from ....specs.root_error import expect
from ...errors import BuildError, ToolMissingError

STANDARD = ("-std=c99", "-pedantic")
WARNINGS = (
    "-Wall",
    "-Wextra",
    "-Wconversion",
    "-Wsign-conversion",
    "-Wshadow",
    "-Wundef",
    "-Wvla",
    "-Wdouble-promotion",
    "-Wcast-qual",
    "-Wstrict-prototypes",
    "-Werror",
)
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")

_PACKAGES = MappingProxyType({"g++": "g++", "clang": "clang", "clang++": "clang", "gcc": "gcc"})
_LINKER_SCRIPT = Path(__file__).parent / "bare.ld"


@dataclass(frozen=True, slots=True)
class Compiler:
    """A C compiler on this machine, with the flags for its target machine."""

    name: str
    program: Path
    machine: tuple[str, ...] = ()

    @property
    def reports_stack(self) -> bool:
        """True if it writes stack and call graph for each object, as `worst_case_stack` needs (GCC does)."""
        return "gcc" in self.name


def find_tool(name: str) -> Path:
    """Path of a program; `ToolMissingError` has the installation hint."""
    found = shutil.which(name)
    if found is None:
        package = _PACKAGES.get(name, name)
        raise ToolMissingError(f"{name} is not installed; on Debian or Ubuntu: apt-get install {package}")
    return Path(found)


def find_compiler(name: str = "gcc") -> Compiler:
    """The compiler called `name`, for this machine."""
    return Compiler(name, find_tool(name))


def target_compiler(target: Target) -> Compiler:
    """The compiler of a target with the flags for its core: the first installed one of its commands."""
    expect(target, Target, "target_compiler(target)", "a `Target`", 'for example load_target("cortex-m4f")')
    commands = target.toolchain.commands
    name = next(filter(shutil.which, commands), None)
    if name is None:
        advice = f"; {target.toolchain.install or 'install it, or correct `toolchain.commands` of the target file'}"
        raise ToolMissingError(
            f"{' or '.join(commands)} is not installed, the compiler for {target.name}{advice}"
        )
    return Compiler(name, find_tool(name), target.toolchain.flags)


def compile_objects(
    compiler: Compiler,
    sources: Sequence[Path],
    folder: Path,
    *,
    flags: Sequence[str] = ("-O2",),
    include: Sequence[Path] = (),
) -> tuple[Path, ...]:
    """One object per C99 source in `folder`; with GCC, also its stack use and call graph (`.ci`)."""
    extra = ("-fcallgraph-info=su",) if compiler.reports_stack else ()
    search = tuple(f"-I{path}" for path in include)
    objects = []
    for source in sources:
        target = folder / f"{source.stem}.o"
        _invoke(
            compiler, *STANDARD, *flags, *extra, *_SECTIONS, *search, "-c", str(source), "-o", str(target)
        )
        objects.append(target)
    return tuple(objects)


def check_header(compiler: Compiler, header: Path, *, standard: str = "c++17") -> None:
    """Compiles a C++ source that includes only the header; `BuildError` if that fails."""
    flags = (f"-std={standard}", "-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only")
    _invoke(compiler, *flags, "-include", str(header), "-x", "c++", os.devnull)


def link_shared(compiler: Compiler, sources: Sequence[Path], target: Path, *, flags: Sequence[str]) -> Path:
    """A shared library of the sources, for calls in process."""
    _invoke(compiler, *STANDARD, *flags, "-shared", "-fPIC", *map(str, sources), "-o", str(target), "-lm")
    return target


def link_program(compiler: Compiler, sources: Sequence[Path], target: Path, *, flags: Sequence[str]) -> Path:
    """A program for this machine."""
    _invoke(compiler, *STANDARD, *flags, *map(str, sources), "-o", str(target), "-lm")
    return target


def link_image(
    compiler: Compiler,
    objects: Sequence[Path],
    target: Path,
    *,
    keep: Sequence[str],
    script: Path = _LINKER_SCRIPT,
) -> Path:
    """A bare image with the functions `keep` and the functions that they call, for `simulate.Simulator`."""
    roots = tuple(f"-Wl,--undefined={name}" for name in keep)
    placed = ("-nostartfiles", "-T", str(script), "-Wl,--gc-sections", f"-Wl,-e,{keep[0]}", *roots)
    _invoke(compiler, *placed, *map(str, objects), "-o", str(target), "-lm")
    return target


def build_image(
    compiler: Compiler,
    sources: Sequence[Path],
    target: Path,
    *,
    keep: Sequence[str],
    flags: Sequence[str] = (),
) -> Path:
    """The image of C99 sources, linked as by `link_image`; objects are in the same folder."""
    return link_image(
        compiler, compile_objects(compiler, sources, target.parent, flags=flags), target, keep=keep
    )


_SECTIONS = ("-ffunction-sections", "-fdata-sections")


def _invoke(compiler: Compiler, *arguments: str) -> None:
    command = [str(compiler.program), *compiler.machine, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stderr.strip()}")
