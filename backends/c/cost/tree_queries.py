"""Queries on the syntax tree of C code: types of declarations, counters of loops, variables that change."""

from __future__ import annotations

from collections import Counter

from pycparser import c_ast as ast

from .c_source import Definitions
from .scalars import CType


def type_of(node: ast.Node) -> CType:
    """The type of a declaration."""
    depth = 0
    while isinstance(node, (ast.PtrDecl, ast.ArrayDecl)):
        depth += 1
        node = node.type
    if isinstance(node, ast.TypeDecl):
        inner = node.type
        if isinstance(inner, ast.IdentifierType):
            return CType(inner.names[-1], depth)
        return CType(f"struct {getattr(inner, 'name', '')}", depth)
    return CType("int32_t", depth)


def parameters_of(node: ast.FuncDef) -> list[ast.Decl]:
    """The parameters of a function that have a declaration."""
    arguments = node.decl.type.args
    found = arguments.params if arguments is not None else []
    return [p for p in found if isinstance(p, ast.Decl)]


def counter_step(node: ast.Node | None, name: str) -> int | None:
    """The number that the third part of a `for` adds to a counter; None if it is not constant."""
    for part in loop_expressions(node):
        if isinstance(part, ast.UnaryOp) and isinstance(part.expr, ast.ID) and part.expr.name == name:
            return 1 if "++" in part.op else -1
        if (isinstance(part, ast.Assignment) and isinstance(part.lvalue, ast.ID) and part.lvalue.name == name
                and isinstance(part.rvalue, ast.Constant) and part.op in ("+=", "-=")):  # fmt: skip
            step = int(part.rvalue.value.rstrip("uUlL"), 0)
            return step if part.op == "+=" else -step
    return None


def loop_expressions(node: ast.Node | None) -> list[ast.Node]:
    """The expressions of the third part of a `for`."""
    if node is None:
        return []
    return list(node.exprs) if isinstance(node, ast.ExprList) else [node]


def counter_name(node: ast.Node) -> str:
    """The counter that the condition of a loop compares."""
    return str(node.left.name)


def assigned_name(node: ast.Node) -> str | None:
    """The variable that an expression assigns to, if it is one."""
    target = node.lvalue if isinstance(node, ast.Assignment) else getattr(node, "expr", None)
    return target.name if isinstance(target, ast.ID) else None


def assigns_to(node: ast.Node, name: str) -> bool:
    """True if a statement assigns to a variable, or passes its address."""
    found: set[str] = set()
    collect_changed(node, found)
    return name in found


def collect_changed(node: ast.Node | None, found: set[str]) -> None:
    """Names that a statement assigns to, or passes the address of."""
    if node is None:
        return
    if isinstance(node, ast.Assignment):
        found.add(_root(node.lvalue))
    elif isinstance(node, ast.UnaryOp) and node.op in ("++", "--", "p++", "p--", "&"):
        found.add(_root(node.expr))
    for _, child in node.children():
        collect_changed(child, found)


def _root(node: ast.Node) -> str:
    while not isinstance(node, ast.ID):
        children = node.children()
        if not children:
            return ""
        if isinstance(node, ast.ArrayRef):
            return ""
        node = children[0][1]
    return str(node.name)


def is_consecutive(node: ast.Node, name: str) -> bool:
    """True if an element is `x[... + name]`, with the counter once and in no product."""
    if not isinstance(node, ast.ArrayRef):
        return False
    terms, pending = 0, [node.subscript]
    while pending:
        part = pending.pop()
        if isinstance(part, ast.BinaryOp) and part.op == "+":
            pending += [part.left, part.right]
        elif isinstance(part, ast.ID) and part.name == name:
            terms += 1
        elif mentions(part, name):
            return False
    return terms == 1


def mentions(node: ast.Node, name: str) -> bool:
    """True if an expression reads a variable."""
    if isinstance(node, ast.ID):
        return bool(node.name == name)
    return any(mentions(child, name) for _, child in node.children())


def calls_in(own: Definitions) -> Counter[str]:
    """Number of calls of each function in a text."""
    found: Counter[str] = Counter()

    def visit(node: ast.Node) -> None:
        if isinstance(node, ast.FuncCall) and isinstance(node.name, ast.ID):
            found[node.name.name] += 1
        for _, child in node.children():
            visit(child)

    for function in own.functions.values():
        visit(function.body)
    return found
