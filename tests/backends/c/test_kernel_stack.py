"""The stated stack: an upper bound for every core and optimization, and not far above what GCC's frames add up to."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

import fxpress.backends.c.kernels
from fxpress.backends.c.emit import CArtifact, emit
from fxpress.backends.c.plan.kernel_stack import CoreKind, measured_templates, stack_bytes
from fxpress.backends.c.tools.stack import worst_case_stack
from fxpress.backends.c.tools.toolchain import compile_objects, target_compiler
from fxpress.ir import Graph, parse
from fxpress.ir.testing import quantized_graphs
from fxpress.specs import list_targets, load_target
from fxpress.specs.outputs import COutput
from fxpress.specs.target import Target

needs_arm = pytest.mark.skipif(shutil.which("arm-none-eabi-gcc") is None, reason="no arm-none-eabi-gcc")
Stated = Callable[[CArtifact, str], int]
CONV = """
graph(%x: i8[1x4x6x6]<scale=0.05, zero=-3>) {{
  const %w: i8[8x4x3x3]<scale=0.01, zero=0>
  %y: i8[1x8x6x6]<scale=0.04, zero=-128> = conv{{padding=(1, 1, 1, 1)}}(%x, %w)
  {tail}
}}"""


def measured(artifact: CArtifact, cpu: str, optimization: str, folder: Path) -> int:
    """Bytes by the frames of the compiler."""
    compiler = target_compiler(load_target(cpu))
    objects = compile_objects(compiler, artifact.write(folder)[:1], folder, flags=(optimization,))
    return worst_case_stack(objects, "net_run")


def test_every_kernel_has_a_measured_stack() -> None:
    (folder,) = fxpress.backends.c.kernels.__path__
    templates = {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8")
        for path in Path(folder).rglob("*.c.j2")
    }
    kernels = {name for name, text in templates.items() if " {{ name }}({{ parameters }})" in text}
    on_cores = {name for name in kernels if not name.startswith("host/")}  # those of computers have no bound
    assert on_cores <= measured_templates(), "make calibrate-stack"


def test_the_bound_is_that_of_the_deepest_kernel(fill: object, cortex_m4: Target) -> None:
    def bound(tail: str) -> int:
        artifact = emit(parse(CONV.format(tail=tail), fill=fill), COutput(name="net"), cortex_m4)  # type: ignore[arg-type]  # a fixture
        return stack_bytes(artifact.program, CoreKind.of(cortex_m4))

    alone = bound("return y: %y")
    assert bound("%z: i8[1x8x6x6]<scale=0.04, zero=-1> = tanh(%y)\n  return z: %z") == alone
    assert (
        bound("%z: f32[1x8x6x6] = dequantize(%y)\n  %s: f32[1x8x6x6] = softmax{axis=1}(%z)\n  return s: %s")
        > alone
    )


def test_other_kinds_of_cores_have_a_figure_of_their_own(
    fill: object, cortex_m4: Target, host: Target, stated_stack: Stated
) -> None:
    graph = parse(CONV.format(tail="return y: %y"), fill=fill)  # type: ignore[arg-type]  # a fixture
    fast, plain = (emit(graph, COutput(name="net"), target) for target in (cortex_m4, host))
    own = f"#if {CoreKind.DSP_FPU.condition}\n#define NET_STACK_BYTES"
    assert own in fast.files["net.h"].decode()
    assert stated_stack(fast, "cortex-m4f") == int(fast.macros["NET_STACK_BYTES"])
    assert stated_stack(fast, "cortex-m0plus") >= stated_stack(fast, "cortex-m4f")
    assert "__ARM_FEATURE_DSP" not in plain.files["net.h"].decode()
    assert stated_stack(plain, "riscv32") == max(stack_bytes(plain.program, kind) for kind in CoreKind)


@needs_arm
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(graph=quantized_graphs())
def test_random_graphs_stay_within_the_stack(
    graph: Graph, cortex_m4: Target, stated_stack: Stated, tmp_path: Path
) -> None:
    artifact = emit(graph, COutput(name="net", self_test=0), cortex_m4)
    for cpu, optimization in (("cortex-m4f", "-O3"), ("cortex-m0plus", "-O2")):
        assert measured(artifact, cpu, optimization, tmp_path) <= stated_stack(artifact, cpu)


@needs_arm
@pytest.mark.slow
@pytest.mark.parametrize("optimization", ["-O2", "-O3", "-Os"])
@pytest.mark.parametrize(
    "cpu", [cpu for cpu in list_targets() if cpu.startswith("cortex") and cpu != "cortex-m55"]
)
def test_every_operator_stays_within_the_stack_on_every_core(
    cpu: str,
    optimization: str,
    operators: Graph,
    cortex_m4: Target,
    host: Target,
    stated_stack: Stated,
    tmp_path: Path,
) -> None:
    for target in (cortex_m4, host):
        artifact = emit(operators, COutput(name="net", self_test=0), target)
        assert measured(artifact, cpu, optimization, tmp_path) <= stated_stack(artifact, cpu)
