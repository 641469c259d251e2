"""The pass `hard_gates`: sigmoids become hard sigmoids, min(max(x / 6 + 1 / 2, 0), 1)."""

from hard_gates_options import HardGatesOptions

from fxpress.ir import Builder, Graph, Node, Value, rewrite
from fxpress.ir.ops import Hardsigmoid, Sigmoid
from fxpress.passes import Context, Decision, PassReport, PassResult, register


@register(HardGatesOptions)
def hard_gates(graph: Graph, options: HardGatesOptions, context: Context) -> PassResult:
    """Replaces each sigmoid outside `keep` by a hard sigmoid, and reports it."""
    decisions = []

    def visit(builder: Builder, node: Node, operands: tuple[Value | None, ...]) -> Value | None:
        if not isinstance(node.op, Sigmoid):
            return None
        kept = context.selects_any(options.keep, node.source)
        reason = "`keep` names it" if kept else "a hard sigmoid takes its place"
        decisions.append(Decision("hard_gates", node.output.name, node.source, not kept, reason))
        return None if kept else builder.add(Hardsigmoid(), *operands, source=node.source)

    after = rewrite(graph, visit)
    return PassResult(after, PassReport("hard_gates", tuple(decisions)))
