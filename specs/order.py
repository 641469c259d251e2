"""Order constraints of passes: forbidden predecessors, required predecessors, repetition."""

from collections.abc import Sequence

from .errors import Place, Problem, near_miss
from .options import PASSES, PassOptions
from .root_error import ArgumentError, expect
from .tree import Mapping, Node, Scalar, find
from .tree import Sequence as NodeSequence


def check_order(root: Node) -> list[Problem]:
    """Problems of passes at an invalid position, with a valid order."""
    steps = _steps(root)
    names = [name for _, name, _ in steps]
    problems = []
    for position, (index, name, place) in enumerate(steps):
        for code, fact, hint in faults(PASSES[name], names[:position], names[position + 1 :]):
            problems.append(Problem(code, place, f"passes[{index}].pass: {fact}", hint or _advice(names)))
    return problems


def working_order(names: Sequence[str]) -> list[str]:
    """The passes in a valid order, with as few moves as possible.

    >>> working_order(["quantize", "fuse", "clean"])
    ['fuse', 'quantize', 'clean']
    """
    call = "working_order(names)"
    expect(names, (list, tuple), call, "a list of passes")
    for name in names:
        if name not in PASSES:
            raise ArgumentError(call, f"unknown pass {name!r}", near_miss(str(name), PASSES))
    remaining, ordered = list(names), []
    while remaining:
        ready = next((name for name in remaining if not _must_wait(name, remaining)), remaining[0])
        remaining.remove(ready)
        ordered.append(ready)
    return ordered


def _steps(root: Node) -> list[tuple[int, str, Place]]:
    """Index, name and place of each pass with a known name."""
    passes = find(root, ("passes",))
    items = passes.items if isinstance(passes, NodeSequence) else ()
    written = [(i, find(item, ("pass",))) for i, item in enumerate(items) if isinstance(item, Mapping)]
    return [
        (i, node.value, node.place)
        for i, node in written
        if isinstance(node, Scalar) and isinstance(node.value, str) and node.value in PASSES
    ]


def faults(
    options: type[PassOptions], earlier: Sequence[str], later: Sequence[str]
) -> list[tuple[str, str, str]]:
    """Code, fact and hint (empty: a valid order) for one pass, given the passes before and after it."""
    name = options.pass_name()
    found = [
        ("S301", f"{name} cannot run after {other}: {options.why}", "")
        for other in options.before
        if other in earlier
    ]
    for other in options.after:
        if other in earlier:
            continue
        if other in later:
            found.append(("S301", f"{name} cannot run before {other}: {options.why}", ""))
        else:
            found.append(("S302", f"{name} needs {other} before it: {options.why}", f"add `- pass: {other}`"))
    found += [
        ("S301", f"{name} cannot run after {other}: {PASSES[other].why}", "")
        for other in earlier
        if other in PASSES and PASSES[other].is_last and other != name
    ]
    found += [
        ("S302", f"{name} needs {other} after it: {options.why}", f"add `- pass: {other}`")
        for other in options.followed_by
        if other not in (*earlier, *later)
    ]
    if name in earlier and not options.repeatable:
        found.append(
            ("S303", f"{name} occurs twice; the second one would have no effect", "keep one of them")
        )
    return found


def _must_wait(name: str, remaining: Sequence[str]) -> bool:
    needs_one_of_them = any(other in remaining for other in PASSES[name].after)
    if PASSES[name].is_last and any(not PASSES[other].is_last for other in remaining):
        return True
    return needs_one_of_them or any(name in PASSES[other].before for other in remaining if other != name)


def _advice(names: Sequence[str]) -> str:
    return f"a valid order is {', '.join(working_order(names))}"
