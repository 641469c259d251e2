"""The table of sensitivities as data: JSON both ways, look-up, and the digest that says when it may be reused."""

from dataclasses import replace

import pytest
import torch

from fxpress.ir import Graph, Node, Source, parse
from fxpress.passes import PassError
from fxpress.passes.sensitivity import Curvature, Score, SensitivityTable, digest_of

TABLE = SensitivityTable(
    method="hawq_v2",
    scores=(
        Score("stem", "weight", 2, 0.1 + 0.2, 1e-17),
        Score("stem", "weight", 4, 1 / 3, 5e-324),
        Score("stem", "activation", 8, -0.0, 0.0),
    ),
    notes=("a note",),
    samples=16,
    shards=4,
    curvatures=(Curvature("stem", 27, 1.5, 0.1, None, 2.0, True),),
    shared=(("stem", "tail"),),
    digest="00",
)


def graph(*, weight: float = 1.0, location: str = "net.py:3") -> Graph:
    text = (
        "graph(%x: f32[1x2]) {\n  const %w: f32[3x2]\n  %y: f32[1x3] = linear(%x, %w)\n  return output: %y\n}"
    )
    plain = parse(text, params={"w": torch.full((3, 2), weight)})
    nodes = tuple(Node(n.op, n.inputs, n.outputs, Source("fc", location)) for n in plain.nodes)
    return replace(plain, nodes=nodes)


def test_a_table_comes_back_from_json_bit_for_bit_and_its_text_is_the_same_again() -> None:
    text = TABLE.to_json()
    assert SensitivityTable.from_json(text) == TABLE
    assert SensitivityTable.from_json(text).to_json() == text


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "method": "kl"}', "null"])
def test_a_file_that_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(PassError, match="sensitivity table"):
        SensitivityTable.from_json(text)


def test_a_table_without_a_format_says_what_it_lacks() -> None:
    with pytest.raises(PassError, match="it has no 'format'; write it with"):
        SensitivityTable.from_json('{"a": 1}')


def test_a_score_is_found_by_layer_kind_and_bits() -> None:
    assert TABLE.score("stem", 4).loss == 1 / 3
    assert TABLE.score("stem", 8, kind="activation").bits == 8
    with pytest.raises(KeyError, match="weights of layer 'stem' at 8 bits"):
        TABLE.score("stem", 8)


def test_a_table_covers_the_widths_that_it_holds_by_its_own_method_only() -> None:
    assert TABLE.covers(method="hawq_v2", weight_bits=(2, 4), activation_bits=(8,))
    assert not TABLE.covers(method="hawq_v2", weight_bits=(2, 4, 8), activation_bits=())
    assert not TABLE.covers(method="kl", weight_bits=(2,), activation_bits=())


def test_the_digest_tells_weights_samples_and_labels_apart_but_not_source_lines() -> None:
    samples, labels = [(torch.ones(1, 2),)], [torch.zeros(1, dtype=torch.int64)]
    digest = digest_of(graph(), samples, labels)
    assert digest == digest_of(graph(location="elsewhere.py:9"), samples, labels)
    assert digest != digest_of(graph(weight=2.0), samples, labels)
    assert digest != digest_of(graph(), [(torch.zeros(1, 2),)], labels)
    assert digest != digest_of(graph(), samples)
