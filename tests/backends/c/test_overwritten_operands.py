"""Results that are written over the operand that their kernel is still reading."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxpress.backends.c.emit import CArtifact, emit
from fxpress.backends.c.kernels.window import Image, Window
from fxpress.backends.c.plan.memory import Storage
from fxpress.backends.c.plan.offsets import Offsets
from fxpress.ir import parse
from fxpress.specs.outputs import COutput

IN_ARENA = COutput(name="net", buffers="arena")
LAYERS = 24
KINDS = ("conv", "point", "groups", "max_pool", "avg_pool", "linear")
UNDEFINED = ("-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all")


def layer(random: Random) -> str:
    """A layer: a convolution of any window, groups and batch, a pool, or rows times a matrix; int8, int16 or float."""
    form, kind = random.choice(("i8", "i8", "i16", "f32")), random.choice(KINDS)
    scale, wide = ("", "") if form == "f32" else ("<scale=0.0625, zero=0>", "<scale=0.5, zero=0>")
    weights = "f32" if form == "f32" else "i8"
    batch, inputs, outputs = random.choice((1, 1, 2)), random.randint(1, 9), random.randint(1, 9)
    rank = random.randint(1, 2)
    kernel = [1] * rank if kind == "point" else [random.randint(1, 3) for _ in range(rank)]
    stride = [random.randint(1, 3) if kind != "point" else 1 for _ in range(rank)]
    edges = [random.randint(0, k // 2) for k in kernel]
    sizes = [k + random.randint(0, 8) for k in kernel]
    places = [(n + 2 * edge - k) // s + 1 for n, edge, k, s in zip(sizes, edges, kernel, stride, strict=True)]
    if kind == "linear":
        sizes = places = [random.randint(2, 9)]
    if kind == "groups":
        outputs = inputs * random.randint(1, 2)
    if kind.endswith("pool"):
        outputs = inputs
    shapes = [
        [batch, *s, c] if kind == "linear" else [batch, c, *s]
        for c, s in ((inputs, sizes), (outputs, places))
    ]
    x, y = ("x".join(map(str, shape)) for shape in shapes)
    window = f"stride={_tuple(stride)}, padding={_tuple([edge for edge in edges for _ in range(2)])}"
    dilation, groups = f"dilation={_tuple([1] * rank)}", inputs if kind == "groups" else 1
    weight = [outputs, inputs // groups, *([] if kind == "linear" else kernel)]
    op = {
        "linear": "linear(%x, %w)",
        "max_pool": f"max_pool{{kernel={_tuple(kernel)}, {window}, {dilation}}}(%x)",
        "avg_pool": f"avg_pool{{kernel={_tuple(kernel)}, {window}}}(%x)",
    }.get(kind, f"conv{{{window}, {dilation}, groups={groups}}}(%x, %w)")
    constant = "" if kind.endswith("pool") else f"const %w: {weights}[{'x'.join(map(str, weight))}]{wide}"
    return f"""graph(%x: {form}[{x}]{scale}) {{
      {constant}
      %y: {form}[{y}]{scale} = {op}
      return y: %y
    }}"""


def _tuple(numbers: list[int]) -> str:
    return f"({', '.join(map(str, numbers))},)"


def overwritten(artifact: CArtifact) -> int:
    """Results that share bytes with an operand of their step."""
    count = 0
    for step in artifact.program.steps:
        result = artifact.plan.locations[step.results[0]]
        for operand in filter(None, step.operands):
            at = artifact.plan.locations[operand]
            if at.storage is result.storage is Storage.ARENA:
                low, high = sorted(((at.offset, operand.bytes), (result.offset, step.results[0].bytes)))
                count += low[0] + low[1] > high[0]
    return count


def as_near_as_may_be(intervals, follows) -> Offsets:
    """Blocks one behind the other, but each operand as near behind the result that follows it as it may begin."""
    at, end = {}, 0
    for result, operand in follows:
        if not {result, operand} & set(at):
            at[result], at[operand] = end, end + follows[result, operand]
            end = max(at[i] + intervals[i].bytes for i in (result, operand))
    for index, block in enumerate(intervals):
        if index not in at:
            at[index] = end
            end += block.bytes
    return Offsets(tuple(at[index] for index in range(len(at))), end, is_least=False)


TILES = """graph(%x: i8[1x16x32x32]<scale=0.0625, zero=0>) {
  const %w: i8[16x16x3x3]<scale=0.5, zero=0>
  %y: i8[1x16x32x32]<scale=0.0625, zero=0> = conv{padding=(1, 1, 1, 1)}(%x, %w)
  return y: %y
}"""
NARROWED = {
    f"{op} to bytes": f"""graph(%x: {form}[1x3x5x7]{scale}) {{
      %a: {form}[1x3x5x7]{scale} = {{before}}(%x)
      %y: i8[1x3x5x7]<scale=0.03125, zero=-7> = {op}(%a)
      return y: %y
    }}""".replace("{before}", before)
    for op, form, scale, before in (
        ("gelu", "i16", "<scale=0.0001, zero=0>", "relu"),
        ("relu", "i16", "<scale=0.0001, zero=0>", "tanh"),
        ("requantize", "i16", "<scale=0.0001, zero=0>", "tanh"),
    )
}
SEEDS = [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 20))]


@pytest.mark.parametrize("seed", SEEDS)
def test_layers_of_any_kind_may_overwrite_their_operand(
    seed, join, host, cortex_m4, assert_equal_to_interpreter, monkeypatch
):
    monkeypatch.setattr("fxpress.backends.c.plan.regions.assign_offsets", as_near_as_may_be)
    random = Random(seed)
    graph = join({"tiles": TILES, **{f"layer{i}": layer(random) for i in range(LAYERS)}})
    few_registers, plain = (host.model_copy(update={"isa": isa}) for isa in ("armv6-m", "armv7-m"))
    for target in (cortex_m4, plain, few_registers):
        artifact = assert_equal_to_interpreter(
            graph, options=IN_ARENA, target=target, flags=UNDEFINED, seeds=2
        )
        assert overwritten(artifact) > LAYERS // 3
        kernels = [step.offer.kernel for step in artifact.program.steps]
        assert ("winograd_dsp" in kernels) is (target is cortex_m4)


@pytest.mark.parametrize("is_gathered", [False, True])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_distance_is_the_least_at_which_nothing_unread_is_overwritten(is_gathered, data):
    draw = data.draw
    kernel, stride = (tuple(draw(st.integers(1, 3)) for _ in range(2)) for _ in range(2))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    x = Image(draw(st.integers(1, 2)), *(draw(st.integers(k, 6)) for k in kernel), draw(st.integers(1, 3)))
    places = [
        (n + 2 * p - k) // s + 1 for n, p, k, s in zip((x.h, x.w), padding, kernel, stride, strict=True)
    ]
    y = Image(x.n, *places, draw(st.integers(1, 4)))
    each = draw(st.sampled_from(((1, 1), (2, 1), (1, 2), (4, 4))))
    window = Window(kernel, stride, padding)

    least = window.distance(x, y, each, is_gathered=is_gathered)

    reads = [
        (((n * x.h + row) * x.w + column) * x.c * each[0], n, oy, ox)
        for n in range(y.n)
        for oy in range(y.h)
        for ox in range(y.w)
        for row in range(oy * stride[0] - padding[0], oy * stride[0] - padding[0] + kernel[0])
        for column in range(ox * stride[1] - padding[1], ox * stride[1] - padding[1] + kernel[1])
        if 0 <= row < x.h and 0 <= column < x.w
    ]
    late = [(address, (n * y.h + oy) * y.w + ox) for address, n, oy, ox in reads]
    needed = [
        (pixel + 1) * y.c * each[1] - address
        for pixel in range(y.n * y.h * y.w)
        for address, reader in late
        if reader > pixel or (reader == pixel and not is_gathered)
    ]
    assert least == max([0, *needed])


@pytest.mark.parametrize("name", NARROWED)
def test_bytes_of_wider_elements_are_written_over_them(
    name, host, cortex_m4, assert_equal_to_interpreter, monkeypatch
):
    monkeypatch.setattr("fxpress.backends.c.plan.regions.assign_offsets", as_near_as_may_be)
    plain = host.model_copy(update={"isa": "armv7-m"})
    for target, flags in ((cortex_m4, UNDEFINED), (plain, ("-O3",))):
        graph = parse(NARROWED[name])
        artifact = assert_equal_to_interpreter(graph, options=IN_ARENA, target=target, flags=flags)
        assert overwritten(artifact) == 2


def test_a_distance_that_is_too_short_is_found_by_comparing_bytes(
    fill, monkeypatch, cortex_m4, assert_equal_to_interpreter
):
    graph = parse(
        """graph(%x: i8[1x4x8x8]<scale=0.1, zero=0>) {
          const %w: i8[8x4x3x3]<scale=0.1, zero=0>
          %y: i8[1x8x8x8]<scale=0.5, zero=0> = conv{padding=(1, 1, 1, 1)}(%x, %w)
          return y: %y
        }""",
        fill=fill,
    )
    artifact = assert_equal_to_interpreter(graph, options=IN_ARENA, target=cortex_m4)
    assert overwritten(artifact) == 1
    distance = Window.distance
    monkeypatch.setattr(Window, "distance", lambda *args, **kwargs: distance(*args, **kwargs) - 40)
    with pytest.raises(AssertionError):
        assert_equal_to_interpreter(graph, options=IN_ARENA, target=cortex_m4)


def test_an_operand_that_is_read_later_or_twice_is_not_overwritten(fill, cortex_m4):
    texts = {
        "later": "%y: i8[1x8x4x4]<scale=0.5, zero=0> = conv(%a, %w)\n"
        "%z: i8[1x8x4x4]<scale=0.5, zero=0> = add(%y, %a)",
        "twice": "%z: i8[1x8x4x4]<scale=0.5, zero=0> = conv(%a, %w, none, %a)",
    }
    for text in texts.values():
        graph = parse(
            f"""graph(%x: i8[1x8x4x4]<scale=0.1, zero=0>) {{
              const %w: i8[8x8x1x1]<scale=0.1, zero=0>
              %a: i8[1x8x4x4]<scale=0.1, zero=0> = conv(%x, %w)
              {text}
              return z: %z
            }}""",
            fill=fill,
        )
        artifact = emit(graph, IN_ARENA, cortex_m4)
        step = next(s for s in artifact.program.steps if s.results[0].value.name in ("y", "z"))
        places = {s.value.name: loc.offset for s, loc in artifact.plan.locations.items()}
        first = step.results[0]
        assert places[first.value.name] >= places["a"] + 128 or places["a"] >= places[first.value.name] + 128


def test_computers_keep_results_apart(fill, host):
    graph = parse(
        """graph(%x: f32[1x4x8x8]) {
          const %w: f32[4x4x1x1]
          %y: f32[1x4x8x8] = conv(%x, %w)
          return y: %y
        }""",
        fill=fill,
    )
    assert overwritten(emit(graph, IN_ARENA, host)) == 0


FLOATS_THEN_BYTES = """graph(%x: f32[1x64]) {
  const %w: i8[256x64]<scale=0.5, zero=0>
  const %v: i8[16x256]<scale=0.5, zero=0>
  %a: f32[1x64] = relu(%x)
  %q: i8[1x64]<scale=0.0625, zero=3> = quantize(%a)
  %h: i8[1x256]<scale=0.0625, zero=0> = linear(%q, %w)
  %y: i8[1x16]<scale=0.0625, zero=0> = linear(%h, %v)
  return y: %y
}"""


@pytest.mark.parametrize("is_near", [False, True])
def test_a_narrower_result_over_its_operand_keeps_no_more_than_its_own_bytes(
    is_near, fill, host, cortex_m4, assert_equal_to_interpreter, monkeypatch
):
    if is_near:
        monkeypatch.setattr("fxpress.backends.c.plan.regions.assign_offsets", as_near_as_may_be)
    graph = parse(FLOATS_THEN_BYTES, fill=fill)
    for target in (host, cortex_m4):
        artifact = assert_equal_to_interpreter(
            graph, options=COutput(name="net"), target=target, flags=UNDEFINED, seeds=2
        )
        assert overwritten(artifact) or not is_near
        assert is_near or target is not host or artifact.plan.arena_bytes == 256 + 64


JOINED = """graph(%x: i8[1x8x8x8]<scale=0.0625, zero=3>) {
  const %w: i8[8x8x1x1]<scale=0.5, zero=0>
  %a: i8[1x8x8x8]<scale=0.0625, zero=3> = conv(%x, %w)
  %b: i8[1x8x8x8]<scale=0.0625, zero=3> = relu(%a)
  %y: i8[1x8x16x8]<scale=0.0625, zero=3> = concat{axis=2}(%b, %a)
  return y: %y
}"""


def test_a_part_of_a_concatenation_may_overwrite_its_operand(fill, cortex_m4, assert_equal_to_interpreter):
    artifact = assert_equal_to_interpreter(
        parse(JOINED, fill=fill), options=IN_ARENA, target=cortex_m4, flags=UNDEFINED, seeds=2
    )
    assert artifact.plan.arena_bytes == 2 * 512 + artifact.program.steps[0].offer.working_bytes


def test_a_part_of_a_concatenation_does_not_overwrite_what_other_parts_are_made_of(
    fill, cortex_m4, assert_equal_to_interpreter
):
    text = JOINED.replace("relu(%a)", "relu(%x)").replace("conv(%x, %w)", "conv(%b, %w)")
    lines = text.splitlines()
    lines[2:4] = lines[3:1:-1]
    artifact = assert_equal_to_interpreter(
        parse("\n".join(lines), fill=fill), options=IN_ARENA, target=cortex_m4, flags=UNDEFINED, seeds=2
    )
    assert artifact.plan.arena_bytes <= 2 * 512 + artifact.program.steps[1].offer.working_bytes
