"""Paths of values in a spec: `passes[1].samples`, `passes[1].layers["head.*"]`."""

import re

from .tree import Location

_KEY = r"[^\W\d][\w-]*"
_STEP = re.compile(
    rf"""\.?(?P<key>{_KEY})|\[(?P<index>[0-9]{{1,6}})\]|\[(?P<quote>["'])(?P<text>.*?)(?P=quote)\]"""
)


def format_path(location: Location) -> str:
    """The location as a path.

    >>> format_path(("passes", 1, "layers", "head.*"))
    'passes[1].layers["head.*"]'
    """
    return "".join(_step(step) for step in location).removeprefix(".")


def parse_path(text: str) -> Location | None:
    """The location that a path describes; None if the text is not a path.

    >>> parse_path("passes[1].samples")
    ('passes', 1, 'samples')
    """
    steps: list[str | int] = []
    at = 0
    while at < len(text):
        match = _STEP.match(text, at)
        if match is None or _is_misplaced(match):
            return None
        steps.append(int(match["index"]) if match["index"] else match["key"] or match["text"])
        at = match.end()
    return tuple(steps) or None


def _step(step: str | int) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    return f".{step}" if re.fullmatch(_KEY, step) else f'["{step}"]'


def _is_misplaced(step: re.Match[str]) -> bool:
    """True if the dot before a key is missing, or follows anything but a key or an index."""
    is_first, has_dot = step.start() == 0, step[0].startswith(".")
    return is_first == has_dot if step["key"] else is_first
