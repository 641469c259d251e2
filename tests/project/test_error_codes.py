"""The registry of error codes holds exactly the codes that the sources report, and its page is current."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from re import fullmatch

import pytest

from fxpress.backends.errors import CODES as BACKEND_CODES
from fxpress.compiler.cli import USER_ERROR, main
from fxpress.compiler.codes import ALL_CODES, COMPILER_CODES, FAMILIES, codes_document, explain_code
from fxpress.compiler.errors import UserError
from fxpress.specs import CODES as SPEC_CODES
from fxpress.specs import ErrorCode

ROOT = Path(__file__).parents[2]
OWNED: Mapping[str, Mapping[str, ErrorCode]] = {
    "specs": SPEC_CODES,
    "backends": BACKEND_CODES,
    "compiler": COMPILER_CODES,
}
"""The codes by the part of the tree whose registry has them; every part may report all of them."""
PARTS = ("specs", "ir", "passes", "backends", "compiler")


def reported(source: str) -> set[str]:
    """Every code that a source reports: each literal of that form, as an argument of any function.

    Left out are codes that are only compared with, and the constants whose names end in CODES.
    """
    return {text for text in _literals(ast.parse(source)) if fullmatch(r"[A-Z]\d{3}", text)}


def malformed(source: str) -> list[str]:
    """First arguments of `Problem(...)` that are literals but no codes, and so escape `reported`."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and node.args]
    return [
        ast.unparse(call)
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id == "Problem"
        if isinstance(call.args[0], ast.JoinedStr)
        or (isinstance(call.args[0], ast.Constant) and not fullmatch(r"[A-Z]\d{3}", str(call.args[0].value)))
    ]


def _literals(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    if isinstance(node, ast.Compare) or (isinstance(node, ast.Assign | ast.AnnAssign) and _is_registry(node)):
        return
    for child in ast.iter_child_nodes(node):
        yield from _literals(child)


def _is_registry(node: ast.Assign | ast.AnnAssign) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return all(isinstance(target, ast.Name) and target.id.endswith("CODES") for target in targets)


def sources(part: str) -> list[Path]:
    return sorted((ROOT / part).rglob("*.py"))


def test_every_code_that_is_reported_is_registered_and_the_other_way_round() -> None:
    found = set().union(*(reported(path.read_text()) for part in PARTS for path in sources(part)))
    unregistered, dead = found - ALL_CODES.keys(), ALL_CODES.keys() - found
    assert not unregistered, "codes that no registry has"
    assert not dead, "codes of the registries that nothing reports"


def test_no_problem_has_a_code_of_another_form() -> None:
    assert not [found for part in PARTS for path in sources(part) for found in malformed(path.read_text())]


@pytest.mark.parametrize(
    "line",
    [
        'raise UserError(Problem("X100", place, fact))',
        'raise _refusal("X100", directory, fact, advice)',
        'yield "X100", ("passes", index), fact, hint',
        'found.append(("X100", fact, ""))',
        'problems = [Problem("D100" if a else "X100", place, fact) for a in b]',
        'def stop(self, code="X100"): ...',
    ],
)
def test_a_planted_code_is_found_in_every_form(line: str) -> None:
    source = line if line.startswith("def") else f"def f():\n    {line}"
    assert "X100" in reported(source)


@pytest.mark.parametrize("line", ['key_place() if code == "X100" else 0', 'BUDGET_CODES = {"X100"}'])
def test_a_comparison_reports_no_code(line: str) -> None:
    assert not reported(line)


@pytest.mark.parametrize("line", ['Problem("X12", a, b)', 'Problem(f"X{n}", a, b)', 'Problem("x123", a, b)'])
def test_a_planted_malformed_code_is_found(line: str) -> None:
    assert malformed(line)


def test_no_code_belongs_to_two_parts() -> None:
    assert len(ALL_CODES) == sum(map(len, OWNED.values()))


def test_every_code_has_a_family_and_every_family_a_code() -> None:
    assert {code[:2] for code in ALL_CODES} == FAMILIES.keys()


def test_every_entry_has_a_meaning_and_a_remedy_of_whole_sentences() -> None:
    for code, entry in ALL_CODES.items():
        assert entry.meaning and not entry.meaning.endswith("."), code
        assert entry.remedy[:1].isupper() and entry.remedy.endswith("."), code
        assert "|" not in entry.meaning + entry.remedy, f"{code} breaks its row of the page"


def test_the_page_of_codes_is_current() -> None:
    message = "run `python -m fxpress.compiler.codes > docs/errors.md`"
    assert (ROOT / "docs" / "errors.md").read_text() == codes_document(), message


@pytest.mark.parametrize("code", ALL_CODES)
def test_every_code_is_explained(code: str) -> None:
    entry = ALL_CODES[code]
    title, *remedy = explain_code(code).splitlines()
    assert title == f"{code} ({FAMILIES[code[:2]]}): {entry.meaning}"
    assert " ".join(line.strip() for line in remedy) == entry.remedy


def test_a_code_is_read_as_messages_write_it() -> None:
    assert explain_code("[M123]") == explain_code("m123") == explain_code("M123")


def test_an_unknown_code_is_an_error_that_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "C719"]) == USER_ERROR
    text = capsys.readouterr().err
    assert text.startswith("explain C719: is not an error code; near: C7")
    assert f"C713, {ALL_CODES['C713'].meaning}" in text and "[R416]" in text


@pytest.mark.parametrize("text", ["net.yaml", "", "a" * 5000, "\udcff"])
def test_one_argument_that_is_no_code_is_an_error_with_advice(text: str) -> None:
    with pytest.raises(UserError, match=r"not an error code; write a code such as M123.*R416"):
        explain_code(text)


def test_a_code_is_explained_without_torch() -> None:
    program = (
        "import sys; from fxpress.compiler.cli import main; assert main(['explain', 'M123']) == 0; "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("M123 (the model and its weights): the model raises an error on the data\n")
