"""Layer selectors: dot-anchored globs over the names of a model's modules.

    stem            the layer stem and everything below it
    stem.*          every layer directly below stem, and everything below those; not stem itself
    layers.1.*      everything below layers.1; not layers.10
    block?.conv[12] `?` is one character, `[12]` one of those, `*` any characters: never a dot
    **.attention    at any depth: attention, encoder.attention, encoder.0.attention, and below

A pattern is compared component by component, from the left; `**` matches any number of components, also none. A
pattern that matches a layer selects all layers below it, too.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from .errors import Place, Problem, SpecError, quoted
from .root_error import ArgumentError, expect, shown

_COMPARED_NAMES = 2000
_COMPARED_LENGTH = 200


def layer_matches(pattern: str, name: str) -> bool:
    """True if the pattern selects the layer with that name.

    >>> layer_matches("layers.1.*", "layers.1.conv"), layer_matches("layers.1.*", "layers.10.conv")
    (True, False)
    """
    expect(pattern, str, "layer_matches(pattern, name)", "a pattern such as `features.*`")
    components = pattern.split(".")
    states = _reached(components, {0})
    for part in name.split("."):
        stay = {state for state in states if state < len(components) and components[state] == "**"}
        step = {s + 1 for s in states - stay if s < len(components) and fnmatchcase(part, components[s])}
        states = _reached(components, stay | step)
        if len(components) in states:
            return True
    return False


def match_layers(
    patterns: Iterable[str], names: Iterable[str], *, places: Mapping[str, Place] | None = None
) -> dict[str, tuple[str, ...]]:
    """The layers that each pattern selects, in the order of `names`.

    SpecError with the nearest layers for all patterns that select none; `places` are the positions of the patterns.
    """
    hint = f"write [{patterns!r}]" if isinstance(patterns, str) else ""
    if isinstance(patterns, str):
        raise ArgumentError("match_layers(patterns, names)", f"expects a list, got {shown(patterns)}", hint)
    names = tuple(dict.fromkeys(names))
    matched = {pattern: tuple(name for name in names if layer_matches(pattern, name)) for pattern in patterns}
    unmatched = [pattern for pattern, found in matched.items() if not found]
    if unmatched:
        raise SpecError(unmatched_pattern(p, names, (places or {}).get(p)) for p in unmatched)
    return matched


def unmatched_pattern(
    pattern: str, names: Iterable[str], place: Place | None, *, setting: str = ""
) -> Problem:
    """Problem for a pattern that selects no layer, with the nearest layers."""
    where = f"{setting}: " if setting else ""
    message = f"{where}the pattern {quoted(pattern)} matches no layer"
    return Problem("S401", place, message, _nearest(pattern, tuple(names)))


def _reached(components: Sequence[str], states: Iterable[int]) -> set[int]:
    """The states, and all states that follow from them if a `**` matches no component."""
    reached, todo = set(), list(states)
    while todo:
        state = todo.pop()
        reached.add(state)
        if state < len(components) and components[state] == "**":
            todo.append(state + 1)
    return reached


def _nearest(pattern: str, names: Sequence[str]) -> str:
    """Hint with up to three names, of layers or of modules that contain them, that are similar to the pattern."""
    holders = {name[:at] for name in names for at in range(len(name)) if name[at] == "."}
    known = [
        name for name in dict.fromkeys((*names, *sorted(holders))) if name and len(name) <= _COMPARED_LENGTH
    ]
    if not known:
        return "the model has no named layers"
    plain = ".".join(part for part in pattern.split(".") if part.strip("*"))
    close = difflib.get_close_matches(plain[:_COMPARED_LENGTH], known[:_COMPARED_NAMES], n=3, cutoff=0.5)
    listed = ", ".join(close or known[:3])
    return f"the nearest layers are {listed}" if close else f"the first layers are {listed}"
