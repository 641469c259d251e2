"""Predicted flash and linked flash, for networks in int8, int16, int4 and float on several cores.

    python benchmarks/code_size.py [ic kws vww ad sww crnn ... SPEC.yaml] [--forms int8 ...] [--cores CORE ...]
    python benchmarks/code_size.py --shares 60 30 ic kws            # with that many percent of the channels
    python benchmarks/code_size.py --fit                            # writes backends/c/cost/measured/*.json

Networks are those of MLPerf Tiny and of ../shared/zoo/mcu, or spec files; none of them is used in the fit. Linked is
what the compiler of the core makes with -O3 of the emitted C and its C library. `--fit` measures random networks
(`random_networks.py`) and every operator of tests/backends/c (what was measured is kept in build/code_size), and fits
the sizes of constructs, and a factor for each template, to the functions of the linked images.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from random_networks import random_network
from scipy.optimize import nnls
from torch import Tensor

from fxpress.backends.c import CArtifact, Machine, emit
from fxpress.backends.c.cost import Counts, Preprocessor, function_content, run_counts
from fxpress.backends.c.tools import Compiler, Elf, build_image, compile_objects, read_elf, target_compiler
from fxpress.backends.c.write.support import helpers
from fxpress.compiler import compile_model, text_table
from fxpress.ir import Graph, Node, Params, Value, parse
from fxpress.specs import COutput, Target, load_target

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("FXPRESS_SHARED", ROOT.parent / "shared"))
ZOO = SHARED / "zoo" / "mcu"
TINY = ROOT / "examples" / "mlperf_tiny"
OPERATORS = ROOT / "tests" / "backends" / "c" / "operators.txt"
MEASURED = ROOT / "backends" / "c" / "cost" / "measured"
KEPT = ROOT / "build" / "code_size"
RESULTS = ROOT / "benchmarks" / "results" / "code_size.json"
CORES = (
    "cortex-m0plus", "cortex-m3", "cortex-m4", "cortex-m4f", "cortex-m7", "cortex-m33", "cortex-m55", "riscv32"
)  # fmt: skip
SEEDS = range(100, 108)
_BY_ROWS = "rows"
FORMS = ("int8", "int16", "int4", "float")
DATA = """fxpress: 1
model: {source: "torch.nn:Identity", inputs: {x: {shape: %s}}}
data: {calibration: {file: data.npz, inputs: {x: x}, samples: 4}}
target: {name: cortex-m4f}
passes: [{pass: clean}]
outputs: {c: {name: net, self_test: 0}}
"""
QUANTIZED = (
    "passes=[{{pass: clean}}, {prune}{{pass: fuse}}, {{pass: quantize, {bits}}}, "
    "{{pass: remove_dead_channels}}]"
)
PRUNED = "{{pass: prune, score: random, allocation: uniform, budget: {{channels: {share} %}}}}, "
MATH = """
    acos acosh asin asinh atan atan2 atanh ceil cos cosh erf erfc exp exp2 expm1 fabs floor fmax fmin fmod lgamma log
    log10 log1p log2 lrint lround nearbyint pow remainder rint round sin sinh sqrt tan tanh trunc
""".split()  # noqa: SIM905
_BITS = {"int8": "weights: int8", "int16": "activations: int16", "int4": "weights: int4"}
RUNTIME = """
    memcpy memset memmove __addsf3 __subsf3 __mulsf3 __divsf3 __ltsf2 __gtsf2 __eqsf2 __unordsf2 __floatsisf
    __fixsfsi __floatdisf __fixsfdi __divdi3
    __aeabi_fadd __aeabi_fsub __aeabi_fmul __aeabi_fdiv __aeabi_fcmplt __aeabi_fcmpgt
    __aeabi_fcmpeq __aeabi_fcmpun __aeabi_i2f __aeabi_ui2f __aeabi_f2iz __aeabi_f2uiz __aeabi_l2f __aeabi_f2lz
    __aeabi_idiv __aeabi_uidiv __aeabi_lmul __aeabi_ldivmod __aeabi_uldivmod
""".split()  # noqa: SIM905
_NETWORK_WEIGHT = 2.0
_RELATIVE = 0.8  # 1: least squares of relative errors, 0: of errors in bytes
_MARGIN = 1.03  # a prediction should be too large rather than too small
_CAUTION = 0.3  # standard deviations of a template's functions that are added to their mean
_RIDGE = 1e-3  # weight of 4 bytes for each construct, 12 for one of 64 bits
_PRIOR = 1.0  # functions of a template without measurements, with the factor 1


@dataclass(frozen=True, slots=True)
class FunctionSize:
    """Linked bytes of the functions of a template for one step."""

    template: str
    text: str
    symbol: str
    shared: bool
    bytes: int


@dataclass(frozen=True, slots=True)
class Row:
    """Counts of constructs, and the linked bytes."""

    template: str
    counts: Counts
    bytes: int
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Size:
    """A network on a core."""

    network: str
    form: str
    core: str
    predicted: int
    linked: int
    constants: int
    linked_constants: int
    support: tuple[str, ...] = ()
    functions: tuple[FunctionSize, ...] = ()
    lines: tuple[str, ...] = ()
    run_bytes: int = 0


def main() -> None:
    """Measures, prints, fits."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", metavar="network")
    parser.add_argument("--forms", nargs="*", choices=FORMS, default=["int8", "float"])
    parser.add_argument("--cores", nargs="*", choices=CORES, default=list(CORES))
    parser.add_argument("--shares", nargs="*", type=int, default=[100], help="percent of the channels")
    parser.add_argument("--fit", action="store_true", help="write the tables of backends/c/cost/measured")
    options = parser.parse_args()
    names = options.networks or network_names()
    if options.fit:
        fit()
        return
    sizes = []
    for name in names:
        for form in options.forms:
            for share in options.shares:
                graph, output = compiled_graph(name, form, share)
                for core in options.cores:
                    size = measure(
                        f"{name}{'' if share == 100 else f' {share} %'}", form, core, graph, output
                    )
                    sizes.append(size)
                    print(" ".join(_row(size)), flush=True)
    print()
    header = ("network", "form", "core", "predicted B", "linked B", "of constants", "ratio")
    print(text_table(header, [_row(size) for size in sizes]))
    if not options.networks:
        kept = ("network", "form", "core", "predicted", "linked", "constants")
        RESULTS.write_text(
            json.dumps([{name: getattr(size, name) for name in kept} for size in sizes], indent=1) + "\n"
        )


def network_names() -> list[str]:
    """The available networks."""
    return sorted(path.stem for folder in (TINY, ZOO) for path in folder.glob("*.yaml"))


def compiled_graph(name: str, form: str, share: int = 100) -> tuple[Graph, COutput]:
    """The graph of a network in a form, and the options of its C."""
    spec = next((p for p in (Path(name), TINY / f"{name}.yaml", ZOO / f"{name}.yaml") if p.is_file()), None)
    if spec is None:
        raise SystemExit(f"no network {name}")
    prune = PRUNED.format(share=share) if share < 100 else ""
    passes = f"passes=[{{pass: clean}}, {prune}{{pass: fuse}}]"
    if form != "float":
        passes = QUANTIZED.format(prune=prune, bits=_BITS[form])
    overrides = [
        "data.calibration.samples=4",
        "data.evaluation=null",
        passes,
        "outputs.c.io=auto",
        "target.name=cortex-m4f",
    ]
    compiled = compile_model(spec, overrides=overrides, enforce_budget=False)
    output = compiled.session.spec.outputs.c
    assert output is not None
    return compiled.graph, output.model_copy(update={"self_test": 0})


def measure(
    name: str, form: str, core: str, graph: Graph, output: COutput, *, functions: bool = False
) -> Size:
    """Emits and links; with `functions` also the size of each function."""
    artifact = emit(graph, output, _roomy(core))
    if name.startswith(_BY_ROWS):  # in less memory, so that layers compute some rows at a time
        target = _roomy(core).model_copy(update={"ram": artifact.plan.arena_bytes * 2 // 3})
        artifact = emit(graph, output, target)
    with tempfile.TemporaryDirectory(prefix="fxpress-size-") as directory:
        folder = Path(directory)
        sources = artifact.write(folder)
        keep = [f"{artifact.name}_run"]
        image = read_elf(build_image(_compiler(core), sources, folder / "net.elf", keep=keep))
    size = Size(
        name,
        form,
        core,
        artifact.prediction.flash_bytes,
        image.footprint.flash,
        artifact.constant_bytes,
        image.footprint.constants,
    )
    if not functions:
        return size
    return replace(
        size,
        support=artifact.source.support,
        functions=tuple(_function_sizes(artifact, image)),
        lines=tuple(line for step in artifact.source.steps for line in step.lines),
        run_bytes=next(f.size for f in image.functions if f.name == keep[0]),
    )


def fit() -> None:
    """Measures all networks and writes the tables."""
    MEASURED.mkdir(exist_ok=True)
    _write("library", {load_target(core).measured: library_sizes(core) for core in CORES})
    sizes = list(_everything())
    tables = {}
    for core in CORES:
        rows = [row for size in sizes if size.core == core for row in size_rows(size)]
        tables[load_target(core).measured] = fitted(rows, core) | {"helpers": helper_sizes(core)}
    _write("code", tables)


def _write(name: str, table: object) -> None:
    (MEASURED / f"{name}.json").write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")


def _everything() -> Iterator[Size]:
    KEPT.mkdir(parents=True, exist_ok=True)
    yield from _kept("operators", "all")
    for seed in SEEDS:
        for form in FORMS:
            yield from _kept(f"random-{seed}", form)
        yield from _kept(f"{_BY_ROWS}-{seed}", "int8")


def _kept(name: str, form: str) -> Iterator[Size]:
    """Sizes of a network on all cores, measured unless they are in the cache."""
    files = {core: KEPT / f"{name}-{form}-{core}.json" for core in CORES}
    missing = [core for core, file in files.items() if not file.is_file()]
    if missing:
        graph, output = (
            _operators() if name == "operators" else random_graph(int(name.rpartition("-")[2]), form)
        )
        for core in missing:
            size = measure(name, form, core, graph, output, functions=True)
            files[core].write_text(json.dumps(asdict(size)))
            print(name, form, core, flush=True)
    for file in files.values():
        row = json.loads(file.read_text())
        yield Size(**row | {"functions": tuple(FunctionSize(**found) for found in row["functions"])})


def random_graph(seed: int, form: str) -> tuple[Graph, COutput]:
    """A random network in a form."""
    model, shape = random_network(seed)
    passes = "passes=[{pass: clean}, {pass: fuse}]"
    if form != "float":
        passes = QUANTIZED.format(prune="", bits=_BITS[form])
    with tempfile.TemporaryDirectory(prefix="fxpress-size-") as directory:
        folder = Path(directory)
        samples = np.random.default_rng(seed).normal(size=(4, *shape)).astype(np.float32)
        np.savez(folder / "data.npz", x=samples)
        (folder / "net.yaml").write_text(DATA % [1, *shape])
        compiled = compile_model(folder / "net.yaml", overrides=[passes], model=model, enforce_budget=False)
    output = compiled.session.spec.outputs.c
    assert output is not None
    return compiled.graph, output


def _operators() -> tuple[Graph, COutput]:
    """All operators in their variants as one graph."""
    parts = OPERATORS.read_text(encoding="utf-8").split("== ")[1:]
    inputs: list[Value] = []
    outputs: list[Value] = []
    nodes: list[Node] = []
    params: dict[str, Tensor] = {}
    for number, part in enumerate(parts):
        graph = parse(part.partition("\n")[2], fill=_drawn)

        def named(value: Value, number: int = number) -> Value:
            return replace(value, name=f"{number}: {value.name}")

        inputs += map(named, graph.inputs)
        outputs += map(named, graph.outputs)
        nodes += [node.with_values(named) for node in graph.nodes]
        params |= {f"{number}: {name}": tensor for name, tensor in graph.params.items()}
    joined = Graph(tuple(inputs), tuple(outputs), tuple(nodes), Params(params))
    return joined, COutput(name="net", io="float", self_test=0)


def _drawn(value: Value) -> Tensor:
    """A constant, the same for the same name."""
    generator = torch.Generator().manual_seed(sum(map(ord, value.name)))
    if value.type.dtype.is_floating:
        return torch.rand(value.type.shape, generator=generator) + 0.1
    return torch.randint(1, 6, value.type.shape, generator=generator).to(value.type.dtype.torch)


def _function_sizes(artifact: CArtifact, image: Elf) -> Iterator[FunctionSize]:
    """A row for each function that a step calls; parts that the compiler split off count with it."""
    found = {f.address: f for f in image.functions}.values()
    for f in artifact.source.functions:
        parts = [part.size for part in found if re.fullmatch(rf"{f.symbol}([_.]\D.*)?", part.name)]
        if parts:
            yield FunctionSize(f.template, f.text, f.symbol, f.shared, sum(parts))


def size_rows(size: Size) -> Iterator[Row]:
    """A row for each function of a network, and one for the function that calls them."""
    machine = Machine.of(_roomy(size.core))
    weight = 1.0 if size.network == "operators" else _NETWORK_WEIGHT
    for f in size.functions:
        found = function_content(f.text, size.support, Preprocessor.of(machine))
        yield Row(f.template, found.counts, f.bytes, weight)
    shared = {f.symbol for f in size.functions if f.shared}
    yield Row("run", run_counts(size.lines, shared), size.run_bytes, weight)


def fitted(rows: Sequence[Row], core: str) -> dict[str, dict[str, float]]:
    """Bytes of each construct by weighted least squares, and each template's mean ratio to that sum."""
    templates = np.array([row.template for row in rows])
    linked = np.array([row.bytes for row in rows], dtype=float)
    names = sorted({name for row in rows for name in row.counts})
    matrix = np.array([[row.counts.get(name, 0) for name in names] for row in rows], dtype=float)
    importance = np.array([row.weight for row in rows])
    weights = importance * linked**-_RELATIVE
    expected = [_RIDGE**0.5 * (12.0 if name.startswith("wide") else 4.0) for name in names]
    bytes_each, _ = nnls(
        np.vstack([matrix * weights[:, None], _RIDGE**0.5 * np.eye(len(names))]),
        np.concatenate([linked * weights, expected]),
    )
    estimate = np.maximum(matrix @ bytes_each, 1.0)
    ratios = {}
    for template in sorted(set(templates.tolist())):
        chosen = templates == template
        share = importance[chosen]
        errors = np.log(linked[chosen] / estimate[chosen])
        logarithm = np.sum(share * errors) / (np.sum(share) + _PRIOR)
        ratios[template] = round(float(np.exp(logarithm + _CAUTION * np.std(errors))), 3)
    better = estimate * np.array([ratios[name] for name in templates])
    print(
        f"{core}: {len(rows)} functions, error {_error(estimate, linked):.2f}, {_error(better, linked):.2f}"
    )
    each = dict(zip(names, (_MARGIN * bytes_each).round(2).tolist(), strict=True))
    written = [row.counts.get("unread line", 0.0) == 0.0 for row in rows]
    each["unread line"] = round(float(np.median(linked[written])) / 20, 2)
    return {"constructs": {name: size for name, size in each.items() if size}, "templates": ratios}


def helper_sizes(core: str) -> dict[str, int]:
    """Bytes of the helpers that are not inlined."""
    support = helpers(["arithmetic.h", "huffman.h"], ["fxp_reciprocal_root( fxp_decode("])
    uses = "int fxp_use(uint64_t d, const uint16_t *i, uint8_t *o, uint16_t *t);\n"
    uses += "int fxp_use(uint64_t d, const uint16_t *i, uint8_t *o, uint16_t *t)\n{\n"
    uses += "    fxp_decode(i, (int32_t)d, o, (int32_t)d, t);\n    return fxp_reciprocal_root(d).value;\n}\n"
    with tempfile.TemporaryDirectory(prefix="fxpress-size-") as directory:
        folder = Path(directory)
        text = "#include <stddef.h>\n#include <stdint.h>\n#include <string.h>\n" + "\n".join(support) + uses
        (folder / "helpers.c").write_text(text)
        (built,) = compile_objects(_compiler(core), [folder / "helpers.c"], folder, flags=())
        found = {f.name.partition(".")[0]: f.size for f in read_elf(built).functions}
    return {name: size for name, size in found.items() if name != "fxp_use"}


def _error(estimate: np.ndarray, linked: np.ndarray) -> float:
    return float(np.sqrt(np.mean((estimate / linked - 1) ** 2)))


def library_sizes(core: str) -> dict[str, object]:
    """For each function of the library, the members that it links, and the bytes of each."""
    functions, sizes = {}, {}
    for name in (*RUNTIME, *(f"{name}f" for name in MATH)):
        members = _members(name, core)
        if members:
            functions[name] = sorted(members)
            sizes.update(members)
    return {"functions": functions, "members": sizes}


def _members(function: str, core: str) -> dict[str, int]:
    """Members of archives that are linked for a function, with their bytes of flash."""
    with tempfile.TemporaryDirectory(prefix="fxpress-library-") as directory:
        folder = Path(directory)
        (folder / "empty.c").write_text("extern const int fxp_nothing;\nconst int fxp_nothing = 0;\n")
        compiler = _compiler(core)
        wanted = (
            "-nostartfiles",
            "-Wl,--gc-sections",
            f"-Wl,--undefined={function}",
            "-Wl,-e,0",
            f"-Wl,-Map,{folder}/map",
        )
        command = [
            str(compiler.program),
            *compiler.machine,
            *wanted,
            f"{folder}/empty.c",
            "-o",
            f"{folder}/elf",
            "-lm",
        ]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return {}
        text = (folder / "map").read_text().partition("Linker script and memory map")[2]
    found: dict[str, int] = defaultdict(int)
    pattern = r"^ \.(?:text|s?rodata|s?data|ARM\.ex)\S*\s+0x[0-9a-f]+\s+(0x[0-9a-f]+) \S*\.a\(([^)]+)\)$"
    for size, member in re.findall(pattern, text, flags=re.M):
        found[member] += -(-int(size, 16) // 4) * 4
    return {member: size for member, size in found.items() if size}


@cache
def _compiler(core: str) -> Compiler:
    return target_compiler(load_target(core))


def _roomy(core: str) -> Target:
    return load_target(core).model_copy(update={"ram": None, "flash": None, "stack": None})


def _row(size: Size) -> tuple[str, ...]:
    return (
        size.network,
        size.form,
        size.core,
        f"{size.predicted:,}",
        f"{size.linked:,}",
        f"{size.constants:,}",
        f"{size.predicted / size.linked:.3f}",
    )


if __name__ == "__main__":
    main()
