"""Stack of the functions of kernels, template by template: the deepest over all operators, optimizations and cores.

    python benchmarks/kernel_stack.py [--write] [--jobs 2]

Every operator in its variants (tests/backends/c/operators.txt) is emitted for a core with DSP instructions and for one
without, and compiled for several. `--write` renews the table of backends/c/plan/kernel_stack.py.
"""

from __future__ import annotations

import argparse
import re
import runpy
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fxpress.backends.c import CArtifact, emit
from fxpress.backends.c.tools import compile_objects, stack_by_function, target_compiler
from fxpress.compiler import text_table
from fxpress.specs import COutput, load_target

TESTS = Path(__file__).resolve().parents[1] / "tests" / "backends" / "c" / "conftest.py"
TABLE = Path(__file__).resolve().parents[1] / "backends" / "c" / "plan" / "kernel_stack.py"
TARGETS = ("cortex-m4f", "cortex-m0plus")
FAST = (("cortex-m4f", "-O2"), ("cortex-m4f", "-O3"), ("cortex-m4f", "-Os"), ("cortex-m33", "-O3"))
SLOW = (("cortex-m0plus", "-O2"), ("cortex-m0plus", "-O3"), ("cortex-m0plus", "-Os"), ("cortex-m3", "-O3"))
_CHUNK = 24
# Kernels that the operators of the tests are too small for.
LARGER = {
    "winograd": """
graph(%x: i8[1x16x32x32]<scale=0.05, zero=-3>, %r: i8[1x16x32x32]<scale=0.04, zero=3>) {
  const %w: i8[16x16x3x3]<scale=0.01, zero=0>
  const %v: i8[16x16x3x3]<scale=0.01, zero=0>
  const %shared: i8[16x16x3x3]<scale=0.01, zero=0>
  %y: i8[1x16x32x32]<scale=0.04, zero=-128> = conv{padding=(1, 1, 1, 1)}(%x, %w)
  %z: i8[1x16x32x32]<scale=0.04, zero=-128> = conv{padding=(1, 1, 1, 1)}(%x, %v, none, %r)
  %s: i8[1x16x32x32]<scale=0.04, zero=-128> = conv{padding=(1, 1, 1, 1)}(%x, %shared)
  %t: i8[1x16x32x32]<scale=0.04, zero=-128> = conv{padding=(1, 1, 1, 1)}(%x, %shared, none, %r)
  return y: %y, z: %z, s: %s, t: %t
}""",
    "winograd of 4 bits": """
graph(%x: i8[1x32x12x12]<scale=0.05, zero=-3>) {
  const %w: i8[32x32x3x3]<bits=4, scale=0.125, zero=0>
  %y: i8[1x32x12x12]<scale=0.4, zero=-128> = conv{padding=(1, 1, 1, 1)}(%x, %w)
  return y: %y
}""",
    "pools": """
graph(%x: i8[1x16x16x16]<scale=0.05, zero=-3>) {
  %a: i8[1x16x8x8]<scale=0.05, zero=-3> = avg_pool{kernel=(2, 2), stride=(2, 2)}(%x)
  %m: i8[1x16x8x8]<scale=0.05, zero=-3> = max_pool{kernel=(2, 2), stride=(2, 2)}(%x)
  return a: %a, m: %m
}""",
    "depthwise float": """
graph(%x: f32[1x16x16x16]) {
  const %w: f32[16x1x3x3]
  const %v: f32[32x1x3x3]
  %y: f32[1x16x12x12] = conv{groups=16, dilation=(2, 2)}(%x, %w)
  %z: f32[1x32x12x12] = conv{groups=16, dilation=(2, 2)}(%x, %v)
  return y: %y, z: %z
}""",
}


@dataclass(frozen=True, slots=True)
class Build:
    """An artifact compiled for a core."""

    artifact: CArtifact
    cpu: str
    optimization: str


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="renew the table in the package")
    parser.add_argument("--jobs", type=int, default=2, help="compilers that run at a time")
    options = parser.parse_args()
    emitted = list(artifacts())
    with ThreadPoolExecutor(options.jobs) as pool:
        fast = _deepest(pool.map(depths, [Build(a, *core) for a in emitted for core in FAST]))
        slow = _deepest(pool.map(depths, [Build(a, *core) for a in emitted for core in SLOW]))
    rows = [(name, fast[name], max(fast[name], slow[name])) for name in sorted(fast)]
    print(text_table(("template", "DSP and FPU, B", "any, B"), [(n, str(f), str(s)) for n, f, s in rows]))
    if options.write:
        path = TABLE
        table = "".join(f'        "{n}": ({f}, {s}),\n' for n, f, s in rows)
        path.write_text(re.sub(r"(?s)(?<=# begin\n).*(?= {8}# end)", lambda _: table, path.read_text()))


def artifacts() -> Iterator[CArtifact]:
    """The C of all operators, in parts, for each of the targets."""
    tests = runpy.run_path(str(TESTS))
    texts = [*LARGER.items(), *tests["cases"]().items()]
    for name in TARGETS:
        target = load_target(name).model_copy(update={"ram": None, "flash": None, "stack": None})
        for start in range(0, len(texts), _CHUNK):
            graph = tests["joined"](dict(texts[start : start + _CHUNK]))
            yield emit(graph, COutput(name="net", self_test=0), target)


def depths(build: Build) -> dict[str, int]:
    """The deepest function of each template, with what it calls."""
    artifact = build.artifact
    templates = {function.symbol: function.template for function in artifact.source.functions}
    compiler = target_compiler(load_target(build.cpu))
    with tempfile.TemporaryDirectory(prefix="fxpress-stack-") as directory:
        sources = artifact.write(Path(directory))[:1]
        objects = compile_objects(compiler, sources, Path(directory), flags=(build.optimization,))
        stack = stack_by_function(objects)
    named = [(templates.get(name.partition(".")[0]), depth) for name, depth in stack.items()]
    return _deepest({name: depth} for name, depth in named if name is not None)


def _deepest(found: Iterator[dict[str, int]]) -> dict[str, int]:
    deepest: dict[str, int] = {}
    for depths in found:
        for name, depth in depths.items():
            deepest[name] = max(deepest.get(name, 0), depth)
    return deepest


if __name__ == "__main__":
    main()
