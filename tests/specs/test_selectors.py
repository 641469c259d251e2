"""Layer selectors."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fxpress.specs import SpecError, layer_matches, load_spec, match_layers

Write = Callable[..., Path]
LAYERS = ("stem.conv", "stem.bn", "layers.1.conv", "layers.10.conv", "layers.10.dw.conv", "head")


@pytest.mark.parametrize(
    ("pattern", "selected"),
    [
        ("stem", ("stem.conv", "stem.bn")),
        ("stem.*", ("stem.conv", "stem.bn")),
        ("stem.conv", ("stem.conv",)),
        ("layers.1", ("layers.1.conv",)),
        ("layers.1.*", ("layers.1.conv",)),
        ("layers.1*", ("layers.1.conv", "layers.10.conv", "layers.10.dw.conv")),
        ("layers.*.conv", ("layers.1.conv", "layers.10.conv")),
        ("layers.**.conv", ("layers.1.conv", "layers.10.conv", "layers.10.dw.conv")),
        ("**.conv", ("stem.conv", "layers.1.conv", "layers.10.conv", "layers.10.dw.conv")),
        ("layers.1?.*", ("layers.10.conv", "layers.10.dw.conv")),
        ("layers.[!1]*", ()),
        ("layers.[0-9].conv", ("layers.1.conv",)),
        ("*", LAYERS),
        ("**", LAYERS),
        ("head", ("head",)),
        ("head.*", ()),
        ("Stem", ()),
        ("ste", ()),
        ("conv", ()),
        ("layers.**.**.dw", ("layers.10.dw.conv",)),
    ],
)
def test_a_pattern_selects_by_components(pattern: str, selected: tuple[str, ...]) -> None:
    assert tuple(name for name in LAYERS if layer_matches(pattern, name)) == selected
    if selected:
        assert match_layers([pattern], LAYERS) == {pattern: selected}


def test_patterns_that_match_nothing_name_the_nearest_layers() -> None:
    with pytest.raises(SpecError) as caught:
        match_layers(["stm.*", "head", "layer.1.*", "zzz"], LAYERS)
    assert [str(problem) for problem in caught.value.problems] == [
        'the pattern "layer.1.*" matches no layer; the nearest layers are layers.1, layers.10, layers [S401]',
        'the pattern "stm.*" matches no layer; the nearest layers are stem, stem.bn, stem.conv [S401]',
        'the pattern "zzz" matches no layer; the first layers are stem.conv, stem.bn, layers.1.conv [S401]',
    ]


def test_a_model_without_layers_is_told() -> None:
    with pytest.raises(SpecError, match="the model has no named layers"):
        match_layers(["stem"], [])


def test_patterns_of_a_spec_are_checked_at_their_places(write: Write, sound: str) -> None:
    text = sound.replace("pass: fuse", "pass: fuse\n    keep: [head, hed]")
    text = text.replace(
        "pass: quantize", 'pass: quantize\n    layers:\n      "stem.*": float32\n      "layers.2": int8'
    )
    loaded = load_spec(write(text))
    with pytest.raises(SpecError) as caught:
        loaded.check_layers(LAYERS)
    first, second = caught.value.problems
    assert (
        str(first)
        .partition("net.yaml:")[2]
        .startswith('12:18: passes[0].keep[1]: the pattern "hed" matches no layer')
    )
    assert str(second).partition("net.yaml:")[2].startswith('16:7: passes[1].layers["layers.2"]: the pattern')
    loaded.check_layers((*LAYERS, "hed", "layers.2"))


@pytest.mark.timeout(60)
def test_hostile_patterns_and_names_are_compared_in_bounded_time() -> None:
    assert not layer_matches("*a" * 30 + "b", "a" * 5000)
    assert not layer_matches(".".join(["**"] * 50) + ".b", ".".join("a" * 500))
    with pytest.raises(SpecError):
        match_layers(["x" * 5000], [f"layer{n}.{'y' * 500}" for n in range(3000)])


@pytest.mark.parametrize("name", ["*/ int evil(void){} /*", "a'b\"c", "a\nb", "while", "[x]"])
def test_any_name_can_be_selected_by_a_wildcard(name: str) -> None:
    assert layer_matches("*", name)
