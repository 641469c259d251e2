"""Flash that is predicted and flash that is linked, for networks in int8, int16 and float on several cores.

    python benchmarks/code_size.py [ic kws vww ad sww crnn ... SPEC.yaml] [--forms int8 float int16] [--cores CORE ...]
    python benchmarks/code_size.py --shares 60 30 ic kws            # with that many percent of the channels
    python benchmarks/code_size.py --fit                            # writes backends/c/cost/measured/*.json

Networks are those of MLPerf Tiny and of ../shared/zoo/mcu, or spec files. Linked is what arm-none-eabi-gcc 12.2 makes
with -O3 of the emitted C and newlib. `--fit` measures every operator of tests/backends/c and some networks (what was
measured is kept in build/code_size), and fits the sizes of constructs and templates to it; functions are kept apart
(noinline) for that, to be told one from another.
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
from scipy.optimize import nnls
from torch import Tensor

from fxpress.backends.c import CArtifact, Machine, emit
from fxpress.backends.c.cost import Preprocessor, count
from fxpress.backends.c.tools import Compiler, Elf, build_image, read_elf, target_compiler
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
CORES = ("cortex-m4f", "cortex-m0plus", "cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33")
MEASURED_CORES = ("cortex-m4f", "cortex-m0plus", "cortex-m3")
FITTED = ("crnn", "transformer", "mcunet", "resnet20", "unet1d")
FORMS = ("int8", "float", "int16")
QUANTIZED = (
    "passes=[{{pass: clean}}, {prune}{{pass: fuse}}, {{pass: quantize, activations: {bits}}}, "
    "{{pass: remove_dead_channels}}]"
)
PRUNED = "{{pass: prune, score: random, allocation: uniform, budget: {{channels: {share} %}}}}, "
MATH = """
    acos acosh asin asinh atan atan2 atanh ceil cos cosh erf erfc exp exp2 expm1 fabs floor fmax fmin fmod lgamma log
    log10 log1p log2 lrint lround nearbyint pow remainder rint round sin sinh sqrt tan tanh trunc
""".split()  # noqa: SIM905
RUNTIME = """
    memcpy memset memmove __aeabi_fadd __aeabi_fsub __aeabi_fmul __aeabi_fdiv __aeabi_fcmplt __aeabi_fcmpgt
    __aeabi_fcmpeq __aeabi_fcmpun __aeabi_i2f __aeabi_ui2f __aeabi_f2iz __aeabi_f2uiz __aeabi_l2f __aeabi_f2lz
    __aeabi_idiv __aeabi_uidiv __aeabi_lmul __aeabi_ldivmod __aeabi_uldivmod
""".split()  # noqa: SIM905
_NETWORK_WEIGHT = 3.0
_RELATIVE = 0.8  # 1: least squares of relative errors, 0: of errors in bytes
_MARGIN = 1.08  # a prediction is rather too large


@dataclass(frozen=True, slots=True)
class FunctionSize:
    """Linked bytes of the functions that a template wrote for one step."""

    template: str
    text: str
    bytes: int


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


def main() -> None:
    """Measure, print, fit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", metavar="network")
    parser.add_argument("--forms", nargs="*", choices=FORMS, default=["int8", "float"])
    parser.add_argument("--cores", nargs="*", choices=CORES, default=["cortex-m4f", "cortex-m0plus"])
    parser.add_argument("--shares", nargs="*", type=int, default=[100], help="percent of the channels")
    parser.add_argument("--fit", action="store_true", help="write the tables of backends/c/cost/measured")
    options = parser.parse_args()
    names = options.networks or network_names()
    if options.fit:
        fit()
        return
    rows = []
    for name in names:
        for form in options.forms:
            for share in options.shares:
                graph, output = compiled_graph(name, form, share)
                for core in options.cores:
                    size = measure(
                        f"{name}{'' if share == 100 else f' {share} %'}", form, core, graph, output
                    )
                    rows.append(_row(size))
                    print(" ".join(rows[-1]), flush=True)
    print()
    print(text_table(("network", "form", "core", "predicted B", "linked B", "of constants", "ratio"), rows))


def network_names() -> list[str]:
    """The networks that are at hand."""
    return sorted(path.stem for folder in (TINY, ZOO) for path in folder.glob("*.yaml"))


def compiled_graph(name: str, form: str, share: int = 100) -> tuple[Graph, COutput]:
    """The graph of a network in a form, and the options of its C."""
    spec = next((p for p in (Path(name), TINY / f"{name}.yaml", ZOO / f"{name}.yaml") if p.is_file()), None)
    if spec is None:
        raise SystemExit(f"no network {name}")
    prune = PRUNED.format(share=share) if share < 100 else ""
    passes = f"passes=[{{pass: clean}}, {prune}{{pass: fuse}}]"
    if form != "float":
        passes = QUANTIZED.format(prune=prune, bits=form)
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


def measure(name: str, form: str, core: str, graph: Graph, output: COutput, *, apart: bool = False) -> Size:
    """Emit and link; with `apart` the size of each function too."""
    artifact = emit(graph, output, _roomy(core))
    image = linked_image(artifact, core, apart=apart)
    return Size(
        name,
        form,
        core,
        artifact.prediction.flash_bytes,
        image.footprint.flash,
        artifact.constant_bytes,
        image.footprint.constants,
        artifact.source.support if apart else (),
        tuple(_function_sizes(artifact, image)) if apart else (),
    )


def linked_image(artifact: CArtifact, core: str, *, apart: bool = False) -> Elf:
    """The network linked for a core, with the functions of kernels inlined or `apart`."""
    name = artifact.name
    with tempfile.TemporaryDirectory(prefix="fxpress-size-") as directory:
        folder = Path(directory)
        for file, data in artifact.files.items():
            text = data.decode()
            if apart and file == f"{name}.c":
                text = re.sub(
                    r"^static void (\w+)\(", r"static __attribute__((noinline)) void \1(", text, flags=re.M
                )
            (folder / file).write_text(text)
        sources = [folder / f"{name}.c", folder / f"{name}_weights.c"]
        return read_elf(build_image(_compiler(core), sources, folder / "net.elf", keep=[f"{name}_run"]))


def fit() -> None:
    """Measure everything and write the tables."""
    MEASURED.mkdir(exist_ok=True)
    _write("library", {core: library_sizes(core) for core in CORES})
    sizes = list(_everything())
    _write("code", {core: _fitted([s for s in sizes if s.core == core], core) for core in MEASURED_CORES})


def _write(name: str, table: object) -> None:
    (MEASURED / f"{name}.json").write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")


def _everything() -> Iterator[Size]:
    KEPT.mkdir(parents=True, exist_ok=True)
    yield from _kept("operators", "all", MEASURED_CORES)
    for name in FITTED:
        for form in ("int8", "float"):
            yield from _kept(name, form, MEASURED_CORES)


def _kept(name: str, form: str, cores: Sequence[str]) -> Iterator[Size]:
    """Sizes of a network on these cores, measured where they are not known."""
    files = {core: KEPT / f"{name}-{form}-{core}.json" for core in cores}
    missing = [core for core, file in files.items() if not file.is_file()]
    if missing:
        graph, output = _operators() if name == "operators" else compiled_graph(name, form)
        for core in missing:
            size = measure(name, form, core, graph, output, apart=True)
            files[core].write_text(json.dumps(asdict(size)))
            print(name, form, core, flush=True)
    for file in files.values():
        row = json.loads(file.read_text())
        yield Size(**row | {"functions": tuple(FunctionSize(**found) for found in row["functions"])})


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
    """A row for each function that a step calls; parts that were split off count with it."""
    found = {f.address: f for f in image.functions}.values()
    for function in artifact.source.functions:
        parts = [f.size for f in found if re.fullmatch(rf"{function.symbol}([_.]\D.*)?", f.name)]
        if parts:
            yield FunctionSize(function.template, function.text, sum(parts))


def _fitted(sizes: Sequence[Size], core: str) -> dict[str, dict[str, float]]:
    """Bytes of each construct by weighted least squares, and each template's mean ratio to that sum."""
    machine = Machine.of(_roomy(core))
    known = Preprocessor(dsp=machine.dsp, armv6m=machine.few_registers)
    rows = [
        (function, counted, 1.0 if size.network == "operators" else _NETWORK_WEIGHT)
        for size in sizes
        for function, counted in zip(
            size.functions, count([f.text for f in size.functions], size.support, known), strict=True
        )
    ]
    templates = np.array([function.template for function, _, _ in rows])
    linked = np.array([function.bytes for function, _, _ in rows], dtype=float)
    names = sorted({name for _, counted, _ in rows for name in counted})
    matrix = np.array([[counted.get(name, 0) for name in names] for _, counted, _ in rows], dtype=float)
    importance = np.array([weight for _, _, weight in rows])
    weights = importance * linked**-_RELATIVE
    bytes_each, _ = nnls(matrix * weights[:, None], linked * weights)
    estimate = matrix @ bytes_each
    ratios = {}
    for template in sorted(set(templates.tolist())):
        chosen = templates == template
        share = importance[chosen]
        logarithm = np.sum(share * np.log(linked[chosen] / estimate[chosen])) / (np.sum(share) + 1)
        ratios[template] = round(float(np.exp(logarithm)), 3)
    better = estimate * np.array([ratios[name] for name in templates])
    print(
        f"{core}: {len(rows)} functions, error {_error(estimate, linked):.2f}, {_error(better, linked):.2f}"
    )
    each = (_MARGIN * bytes_each).round(2).tolist()
    return {"constructs": dict(zip(names, each, strict=True)), "templates": ratios}


def _error(estimate: np.ndarray, linked: np.ndarray) -> float:
    return float(np.sqrt(np.mean((estimate / linked - 1) ** 2)))


def library_sizes(core: str) -> dict[str, object]:
    """For each function of the library the members that it brings, and the bytes of each."""
    functions, sizes = {}, {}
    for name in (*RUNTIME, *(f"{name}f" for name in MATH)):
        members = _members(name, core)
        if members:
            functions[name] = sorted(members)
            sizes.update(members)
    return {"functions": functions, "members": sizes}


def _members(function: str, core: str) -> dict[str, int]:
    """Members of archives that are linked for a function, with the bytes that they take in flash."""
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
    pattern = r"^ \.(?:text|rodata|data|ARM\.ex)\S*\s+0x[0-9a-f]+\s+(0x[0-9a-f]+) \S*\.a\(([^)]+)\)$"
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
