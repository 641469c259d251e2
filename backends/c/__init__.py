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
from .plan.memory import StateError
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
    "SimulatedNetwork",
    "StateError",
    "check",
    "check_nodes",
    "counted_core",
    "emit",
    "pareto",
    "predict",
    "predict_node",
]
