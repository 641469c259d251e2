"""Stack of the functions of kernels, by template, form and kind of core: the deepest over operators and optimizations.

    python benchmarks/kernel_stack.py [--write] [--only recurrent]

Every operator in its variants (tests/backends/c/operators.txt) and layers of cost_layers.py are emitted for a core
with DSP instructions and for one without, and compiled for several. `--write` renews stack.json in
backends/c/cost/measured, with `--only` the entries of the templates with that in their name, from the layers and
operators whose text has it. What a compiler said is kept in build/kernel_stack until the C changes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import runpy
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cost_layers import block_sparse_layers, layers, sparse_layers, with_zero_blocks, with_zeros

from fxpress.backends.c import CArtifact, emit
from fxpress.backends.c.cost import CoreKind, variant
from fxpress.backends.c.tools import compile_objects, stack_by_function, target_compiler
from fxpress.compiler import text_table
from fxpress.specs import COutput, load_target

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests" / "backends" / "c" / "conftest.py"
KEPT = ROOT / "build" / "kernel_stack"
TABLE = ROOT / "backends" / "c" / "cost" / "measured" / "stack.json"
TARGETS = ("cortex-m4f", "cortex-m0plus")
# Compilers for the C of a target.
BUILDS = {
    "cortex-m4f": (
        *(("cortex-m4f", level) for level in ("-O2", "-O3", "-Os")),
        *((core, "-O2") for core in ("cortex-m7", "cortex-m4", "cortex-m3", "cortex-m0plus", "riscv32")),
        ("cortex-m0plus", "-O3"),
    ),
    "cortex-m0plus": (
        *((core, level) for core in ("cortex-m0plus", "riscv32") for level in ("-O2", "-O3")),
        ("cortex-m3", "-O2"),
    ),
}
_CHUNK = 24
# Kernels that require larger operators than those of the tests.
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
    "strided pointwise": """
graph(%x: i8[1x16x16x16]<scale=0.05, zero=-3>, %z: i8[1x32x16x16]<scale=0.05, zero=-3>) {
  const %w: i8[32x16x1x1]<scale=0.01, zero=0>
  const %v: i8[64x32x1x1]<scale=0.01, zero=0>
  %y: i8[1x32x8x8]<scale=0.4, zero=-128> = conv{stride=(2, 2)}(%x, %w)
  %u: i8[1x64x8x8]<scale=0.4, zero=-128> = conv{stride=(2, 2)}(%z, %v)
  return y: %y, u: %u
}""",
    "depthwise of many taps in a row": """
graph(%x: i8[1x16x72]<scale=0.05, zero=-3>) {
  const %u: i8[16x1x13]<scale=0.01, zero=0>
  const %v: i8[16x1x21]<scale=0.01, zero=0>
  const %w: i8[16x1x29]<scale=0.01, zero=0>
  %a: i8[1x16x60]<scale=0.4, zero=-128> = conv{stride=(1,), padding=(0, 0), dilation=(1,), groups=16}(%x, %u)
  %b: i8[1x16x52]<scale=0.4, zero=-128> = conv{stride=(1,), padding=(0, 0), dilation=(1,), groups=16}(%x, %v)
  %c: i8[1x16x44]<scale=0.4, zero=-128> = conv{stride=(1,), padding=(0, 0), dilation=(1,), groups=16}(%x, %w)
  return a: %a, b: %b, c: %c
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

Stack = dict[tuple[str, str, str], int]  # by kind of core, template and form


@dataclass(frozen=True, slots=True)
class Build:
    """The C of a target, compiled for a core."""

    artifact: CArtifact
    core: str
    optimization: str


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="renew the table in the package")
    parser.add_argument("--only", default="", metavar="TEXT", help="part of the names of templates")
    options = parser.parse_args()
    deepest: Stack = {}
    for build in builds(options.only):
        for key, depth in depths(build).items():
            if options.only in key[1]:
                deepest[key] = max(deepest.get(key, 0), depth)
    table: dict[str, dict[str, dict[str, int]]] = {}
    for (kind, template, form), depth in sorted(deepest.items()):
        table.setdefault(kind, {}).setdefault(template, {})[form] = depth
    rows = [
        (
            template,
            *(", ".join(f"{f} {d}" for f, d in table[kind].get(template, {}).items()) for kind in table),
        )
        for template in sorted({template for _, template, _ in deepest})
    ]
    print(text_table(("template, B", *table), rows))
    if options.write:
        if options.only:
            known = json.loads(TABLE.read_text())
            table = {
                kind: dict(sorted({**own, **table.get(kind, {})}.items())) for kind, own in known.items()
            }
        TABLE.write_text(json.dumps(table, indent=1) + "\n")


def builds(only: str) -> Iterator[Build]:
    """The C of all operators, or of those that contain a word, in parts, for each of the targets and cores."""
    tests = runpy.run_path(str(TESTS))
    larger = [
        (name, text)
        for name, text in layers()
        if re.search(r" 16 (int8|float)$|^(recurrent|attention)", name)
    ]
    texts = [*LARGER.items(), *larger, *tests["cases"]().items()]
    texts = [(name, text) for name, text in texts if only in name]
    for name in TARGETS:
        if name == "cortex-m0plus":  # in float the kernels are the same
            texts = [(case, text) for case, text in texts if "f32" not in text]
        target = load_target(name).model_copy(update={"ram": None, "flash": None, "stack": None})
        for start in range(0, len(texts), _CHUNK):
            graph = tests["joined"](dict(texts[start : start + _CHUNK]))
            artifact = emit(graph, COutput(name="net", self_test=0), target)
            yield from (Build(artifact, *core) for core in BUILDS[name])
        if sparse := {case: text for case, text in sparse_layers() if only in case}:
            graph = with_zeros(tests["joined"](sparse))
            artifact = emit(graph, COutput(name="net", self_test=0, weights="huffman"), target)
            yield from (Build(artifact, *core) for core in BUILDS[name])
        if blocks := {case: text for case, text in block_sparse_layers() if only in case}:
            graph = with_zero_blocks(tests["joined"](blocks))
            artifact = emit(graph, COutput(name="net", self_test=0), target)
            yield from (Build(artifact, *core) for core in BUILDS[name])


def depths(build: Build) -> Stack:
    """The deepest function of each template in each form, including the functions that it calls."""
    kind = CoreKind.of(load_target(build.core))
    assert kind is not None
    functions = {function.symbol: function for function in build.artifact.source.functions}
    found: Stack = {}
    for name, depth in _by_function(build).items():
        function = functions.get(name.partition(".")[0])
        if function is not None:
            key = (kind.value, function.template, variant(build.artifact.program.steps[function.step]))
            found[key] = max(found.get(key, 0), depth)
    return found


def _by_function(build: Build) -> dict[str, int]:
    source = build.artifact.files[f"{build.artifact.name}.c"]
    digest = hashlib.sha256(source).hexdigest()[:16]
    file = KEPT / f"{build.core}{build.optimization}-{digest}.json"
    if not file.is_file():
        KEPT.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fxpress-stack-") as directory:
            sources = build.artifact.write(Path(directory))[:1]
            compiler = target_compiler(load_target(build.core))
            objects = compile_objects(compiler, sources, Path(directory), flags=(build.optimization,))
            file.write_text(json.dumps(stack_by_function(objects)))
    found: dict[str, int] = json.loads(file.read_text())
    return found


if __name__ == "__main__":
    main()
