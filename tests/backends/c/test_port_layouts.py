"""Layouts in which inputs and outputs are stored: by option, and by the model's own permutations."""

import pytest

from fxpress.backends.c.plan.layout import channels_last, contiguous
from fxpress.backends.c.plan.port_layouts import input_layouts, layout_notes, output_layouts
from fxpress.ir import Graph, parse


def graph(head: str, *lines: str) -> Graph:
    return parse("\n".join([f"graph({head}) {{", *lines, "}"]))


CAMERA = graph(
    "%frame: u8[1x5x6x3]",
    "const %w: f32[4x3x3x3]",
    "const %mean: f32[3]",
    "%c: u8[1x5x4x3] = slice{axis=2, stop=4}(%frame)",
    "%r: f32[1x5x4x3] = cast{dtype='f32'}(%c)",
    "%d: f32[1x5x4x3] = sub(%r, %mean)",
    "%p: f32[1x3x5x4] = permute{order=(0, 3, 1, 2)}(%d)",
    "%y: f32[1x4x3x2] = conv(%p, %w)",
    "return y: %y",
)
MASK = graph(
    "%x: f32[1x3x5x6]",
    "const %w: f32[2x3x1x1]",
    "%y: f32[1x2x5x6] = conv(%x, %w)",
    "%p: f32[1x5x6x2] = permute{order=(0, 2, 3, 1)}(%y)",
    "%s: f32[1x5x6x2] = sigmoid(%p)",
    "return mask: %s, planes: %y",
)


def test_an_input_that_the_model_permutes_to_channels_first_keeps_its_order() -> None:
    (frame,) = CAMERA.inputs
    assert input_layouts(CAMERA, {}) == (contiguous(frame.type.shape),)
    assert output_layouts(CAMERA, {}) == (channels_last((1, 4, 3, 2)),)


def test_an_output_that_the_model_permutes_to_channels_last_keeps_its_order() -> None:
    assert output_layouts(MASK, {}) == (contiguous((1, 5, 6, 2)), channels_last((1, 2, 5, 6)))
    assert input_layouts(MASK, {}) == (channels_last((1, 3, 5, 6)),)


OTHERS = {
    "a reader that does not permute": (
        "%p: f32[1x3x5x6] = permute{order=(0, 3, 1, 2)}(%x)",
        "%m: f32[1x1x1x3] = mean{axes=(1, 2), keepdim=True}(%x)",
        "return p: %p, m: %m",
    ),
    "an output": ("%p: f32[1x3x5x6] = permute{order=(0, 3, 1, 2)}(%x)", "return p: %p, x: %x"),
    "other dimensions": ("%p: f32[1x6x5x3] = permute{order=(0, 2, 1, 3)}(%x)", "return p: %p"),
    "rows": ("%p: f32[1x90] = reshape{shape=(1, 90)}(%x)", "return p: %p"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_inputs_of_four_dimensions_are_images(case: str) -> None:
    made = graph("%x: f32[1x5x6x3]", *OTHERS[case])
    assert input_layouts(made, {}) == (channels_last((1, 5, 6, 3)),)


def test_a_word_decides() -> None:
    assert input_layouts(CAMERA, {"frame": "nhwc"}) == (channels_last((1, 5, 6, 3)),)
    for word in ("nchw", "model"):
        assert output_layouts(MASK, {"planes": word})[1] == contiguous((1, 2, 5, 6))


def test_a_port_of_three_dimensions_can_have_its_channels_last() -> None:
    frames = graph("%x: f32[1x5x6]", "%y: f32[1x5x6] = relu(%x)", "return y: %y")
    assert input_layouts(frames, {"x": "ntc"}) == (channels_last((1, 5, 6)),)
    assert output_layouts(frames, {"x": "ntc"}) == (contiguous((1, 5, 6)),)


def test_ports_that_are_no_images_have_a_note() -> None:
    scores = graph(
        "%q: f32[1x2x5x4], %h: f32[1x3]",
        "%k: f32[1x2x4x5] = permute{order=(0, 1, 3, 2)}(%q)",
        "%s: f32[1x2x5x5] = matmul(%q, %k)",
        "return s: %s, h: %h",
    )
    notes = list(layout_notes(scores, {}))
    assert [note.split(":")[0] for note in notes] == ["input q", "output s"]
    assert "C stores the model's [1, 2, 5, 4] channels last, as [1, 5, 4, 2]" in notes[0]
    assert "`outputs.c.layouts: {q: model}`" in notes[0]
    assert not list(layout_notes(scores, {"q": "model", "s": "nhwc"}))
    assert not list(layout_notes(CAMERA, {})) and not list(layout_notes(MASK, {}))
