"""C99 for microcontrollers: a graph becomes a header, a source, constants and a self-test, with no dependency.

problems = check(graph, COutput(name="kws"), target)
artifact = emit(graph, COutput(name="kws"), target, vectors=samples)
artifact.files["kws.c"], artifact.plan.arena_bytes, artifact.prediction.cycles
"""

from ..errors import CODES, Problem
from .check import BUDGET_CODES, check, check_nodes
from .cost.predict import NodePrediction, Prediction, predict_node
from .emit import CArtifact, emit
from .kernels.costs import counted_core
from .lower import pareto, predict
from .plan.encoding import PortEncoding
from .plan.memory import StateError, plan_memory
from .plan.order import order_steps
from .plan.order_offsets import refine_order
from .plan.program import Program, Step
from .plan.regions import STATE_BLOCK
from .target import Machine
from .tools.simulated_network import SimulatedNetwork

__all__ = [
    "BUDGET_CODES",
    "CODES",
    "STATE_BLOCK",
    "CArtifact",
    "Machine",
    "NodePrediction",
    "PortEncoding",
    "Prediction",
    "Problem",
    "Program",
    "SimulatedNetwork",
    "StateError",
    "Step",
    "check",
    "check_nodes",
    "counted_core",
    "emit",
    "order_steps",
    "pareto",
    "plan_memory",
    "predict",
    "predict_node",
    "refine_order",
]
