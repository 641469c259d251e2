"""Bytes of machine code of emitted C, estimated from its text: constructs of the language times measured sizes.

A compiler at -O3 inlines what is marked so, repeats the body of a short loop of constant length, and otherwise writes
a few instructions for each operator, access, condition and call. `count` reads these from the text, as the
preprocessor of the core would leave it, and `CodeSizes` weighs them; its numbers are fitted by
`benchmarks/code_size.py --fit` to what GCC makes of the benchmark networks.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_TABLE = Path(__file__).parent / "measured" / "code.json"
_MOST_REPEATS = 16
_MOST_REPEATED = 130.0

_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_DIRECTIVE = re.compile(r"^\s*#\s*(if|ifdef|ifndef|elif|else|endif)\b(.*)$")
_DEFINITION = re.compile(
    r"^(?P<kind>static inline|static|FXP_INLINE|FXP_APART|FXP_SHARED)\b[^;{}=]*?(?P<name>\w+)"
    r"\((?P<parameters>[^;{}]*)\)\s*\n?\{\n(?P<body>.*?)^\}",
    re.MULTILINE | re.DOTALL,
)
_MACRO = re.compile(r"^FXP_DEFINE_\w+\((\w+)", re.MULTILINE)
_ASSEMBLY = re.compile(
    r"__asm__(?: volatile)?\s*\((?P<text>(?:[^()\"]|\"(?:[^\"\\]|\\.)*\"|\([^()]*\))*)\)\s*;"
)
_LINES = re.compile(r"\"((?:[^\"\\]|\\.)*)\"")
_TOKEN = re.compile(
    r"[A-Za-z_]\w*|0x[0-9a-fA-F]+[uUlL]*|\d[\d.]*(?:e[+-]?\d+)?[fuUlL]*|<<=|>>=|\+\+|--|->|[-+*/%&|^<>=!]=|&&|\|\||<<|>>|\S"
)
_OPERATORS = {
    "+": "add", "-": "add", "+=": "add", "-=": "add", "*": "multiply", "*=": "multiply", "/": "divide", "%": "divide",
    "/=": "divide", "%=": "divide", "<<": "bits", ">>": "bits", "&": "bits", "|": "bits", "^": "bits", "~": "bits",
    "<<=": "bits", ">>=": "bits", "&=": "bits", "|=": "bits", "^=": "bits", "<": "compare", ">": "compare",
    "<=": "compare", ">=": "compare", "==": "compare", "!=": "compare", "?": "choose", "&&": "choose", "||": "choose",
    "[": "access", "->": "access", "=": "assign", "++": "add", "--": "add",
}  # fmt: skip
_WORDS = {"if": "choose", "while": "loop", "return": "assign", "continue": "choose", "break": "choose"}
_NO_CALLS = frozenset({"if", "for", "while", "switch", "return", "sizeof", "__attribute__"})

Counts = Mapping[str, float]


@dataclass(frozen=True)
class CodeSizes:
    """Bytes of machine code that a construct takes on a core, and what each template takes of that sum."""

    constructs: Mapping[str, float]
    templates: Mapping[str, float]

    @staticmethod
    def of(core: str) -> CodeSizes:
        """The measured sizes of a core, or where it is not measured, of the Cortex-M4 with its float unit."""
        return _measured().get(core, _measured()["cortex-m4f"])

    def bytes(self, counts: Counts, template: str) -> int:
        """Bytes of the functions that a template wrote."""
        whole = sum(number * self.constructs.get(name, 0.0) for name, number in counts.items())
        return round(whole * self.templates.get(template, 1.0))


@cache
def _measured() -> dict[str, CodeSizes]:
    found = json.loads(_TABLE.read_text(encoding="utf-8"))
    return {core: CodeSizes(sizes["constructs"], sizes["templates"]) for core, sizes in found.items()}


@dataclass(frozen=True, slots=True)
class Preprocessor:
    """Preprocessor conditions of a core: DSP extension, and ARMv6-M."""

    dsp: bool
    armv6m: bool

    def applied_to(self, text: str) -> str:
        """The text without comments, directives, and the branches that are not taken."""
        kept: list[str] = []
        taken: list[tuple[bool, bool]] = []  # for each open conditional: this branch is taken; one was
        for line in _COMMENT.sub("", text).splitlines():
            found = _DIRECTIVE.match(line)
            if found is None:
                if all(now for now, _ in taken) and not line.lstrip().startswith("#"):
                    kept.append(line)
            elif found[1] in ("if", "ifdef", "ifndef"):
                now = found[1] == "ifndef" or self._holds(found[2])
                taken.append((now, now))
            elif found[1] == "endif":
                taken.pop()
            else:
                _, before = taken.pop()
                now = not before and (found[1] == "else" or self._holds(found[2]))
                taken.append((now, before or now))
        return "\n".join(kept) + "\n"

    def _holds(self, condition: str) -> bool:
        if "__ARM_ARCH_6M__" in condition:
            return self.armv6m
        return ("FXP_DSP" in condition or "__ARM_FEATURE_DSP" in condition) and self.dsp


def count(functions: Sequence[str], support: Iterable[str], preprocessor: Preprocessor) -> list[Counts]:
    """Constructs of each of the `functions` with what they inline of themselves and of `support`."""
    helpers = _definitions(preprocessor.applied_to("\n".join(support)))
    return [_Reader(preprocessor.applied_to(text), helpers).count() for text in functions]


@dataclass(frozen=True, slots=True)
class _Definition:
    name: str
    inlined: bool
    real: bool
    body: tuple[str, ...]
    instructions: int


def _definitions(text: str) -> dict[str, _Definition]:
    found = {}
    for match in _DEFINITION.finditer(text):
        body = match["body"]
        real = "float" in match["parameters"] or "float" in body
        lines = [
            part
            for assembly in _ASSEMBLY.finditer(body)
            for quoted in _LINES.findall(
                assembly["text"].split("\n                     :")[0].split(" : ")[0]
            )
            for part in re.split(r"\\n\\t|\\n|;", quoted)
        ]
        instructions = sum(bool(line.strip()) and not line.strip().endswith(":") for line in lines)
        tokens = tuple(_TOKEN.findall(_ASSEMBLY.sub(";", body)))
        found[match["name"]] = _Definition(
            match["name"], match["kind"] in ("FXP_INLINE", "static inline"), real, tokens, instructions
        )
    return found


class _Reader:
    """Counts one text of functions; what is inlined counts at each call."""

    def __init__(self, text: str, helpers: Mapping[str, _Definition]) -> None:
        self._own = _definitions(text)
        self._known = {**helpers, **self._own}
        self._inlined: dict[str, Counter[str]] = {}

    def count(self) -> Counts:
        total: Counter[str] = Counter()
        for definition in self._own.values():
            if not definition.inlined:
                total.update(self._body(definition))
                total["function"] += 1
        return total

    def _body(self, definition: _Definition) -> Counter[str]:
        if definition.name not in self._inlined:
            self._inlined[definition.name] = Counter()  # ends a recursion, which no kernel has
            counted, _ = self._statements(definition.body, 0, definition)
            counted["instruction"] += definition.instructions
            self._inlined[definition.name] = counted
        return self._inlined[definition.name]

    def _statements(self, tokens: tuple[str, ...], at: int, owner: _Definition) -> tuple[Counter[str], int]:
        """Counts up to the brace that closes the block that `at` is in."""
        counted: Counter[str] = Counter()
        while at < len(tokens):
            token = tokens[at]
            if token == "}":
                return counted, at + 1
            if token == "{":
                inner, at = self._statements(tokens, at + 1, owner)
                counted.update(inner)
            elif token == "for":
                inner, at = self._loop(tokens, at + 1, owner)
                counted.update(inner)
            else:
                self._token(tokens, at, owner, counted)
                at += 1
        return counted, at

    def _loop(self, tokens: tuple[str, ...], at: int, owner: _Definition) -> tuple[Counter[str], int]:
        end = _closing(tokens, at)
        head = tokens[at + 1 : end]
        if end + 1 < len(tokens) and tokens[end + 1] == "{":
            body, after = self._statements(tokens, end + 2, owner)
        elif tokens[end + 1] == "for":
            body, after = self._loop(tokens, end + 2, owner)
        else:
            after = end + 1
            body = Counter()
            while tokens[after] != ";":
                self._token(tokens, after, owner, body)
                after += 1
        trips = _trips(head)
        if trips is not None and trips <= _MOST_REPEATS and trips * _statement_size(body) <= _MOST_REPEATED:
            return Counter({name: n * trips for name, n in body.items()}), after
        body["loop"] += 1
        if trips is None:
            body["open loop"] += 1
        return body, after

    def _token(self, tokens: tuple[str, ...], at: int, owner: _Definition, counted: Counter[str]) -> None:
        token = tokens[at]
        kind = "real " if owner.real else ""
        if token in _WORDS:
            counted[_WORDS[token]] += 1
        elif token in _OPERATORS:
            name = _OPERATORS[token]
            if token == "*" and _is_unary(tokens, at):
                name = "access"
            elif token in ("-", "+", "&") and _is_unary(tokens, at):
                name = "unary"
            counted[kind + name] += 1
        elif at + 1 < len(tokens) and tokens[at + 1] == "(" and re.match(r"[A-Za-z_]", token):
            if token in _NO_CALLS:
                return
            known = self._known.get(token)
            if known is not None and known.inlined:
                counted.update(self._body(known))
            else:
                counted["call"] += 1
        elif token[0].isdigit() and (
            token.startswith("0x") or "." in token or float(token.rstrip("fuUlL")) > 255
        ):
            counted["number"] += 1


def _closing(tokens: tuple[str, ...], at: int) -> int:
    depth = 0
    while True:
        depth += (tokens[at] == "(") - (tokens[at] == ")")
        if not depth:
            return at
        at += 1


def _trips(head: tuple[str, ...]) -> int | None:
    """Repetitions of `for (int32_t i = A; i < B; i += C)` with numbers; None if they are not known."""
    text = " ".join(head)
    found = re.fullmatch(
        r"(?:\w+ )?(\w+) = (\d+) ; \1 < (\d+) ; (?:\1 \+\+|\+\+ \1|\1 \+= (\d+))(?: ,.*)?", text
    )
    if found is None:
        return None
    return -(-(int(found[3]) - int(found[2])) // int(found[4] or 1))


def _is_unary(tokens: tuple[str, ...], at: int) -> bool:
    before = tokens[at - 1] if at else ";"
    return (before in _OPERATORS and before != "[") or before in (
        "(",
        "[",
        ",",
        ";",
        "{",
        "}",
        "return",
        "=",
        ":",
    )


def _statement_size(counted: Counter[str]) -> float:
    return sum(n for name, n in counted.items() if name not in ("real assign", "assign"))
