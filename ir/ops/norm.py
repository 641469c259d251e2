"""Normalisation layers. Batch norm stays one operator until a pass folds it into the layer before it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from ..errors import ShapeError
from ..tensor_type import TensorType, Value
from .base import AtenCall, Op, lowers, operator


@operator("batch_norm")
@dataclass(frozen=True)
class BatchNorm(Op):
    """(x - mean) / sqrt(var + eps) * weight + bias over dimension 1, with stored statistics (evaluation mode).

    Operands: x [n, c, ...], weight [c] or none, bias [c] or none, mean [c], var [c].
    """

    eps: float = 1e-5

    def infer(
        self,
        x: TensorType,
        weight: TensorType | None,
        bias: TensorType | None,
        mean: TensorType,
        var: TensorType,
    ) -> tuple[TensorType, ...]:
        if x.rank < 2:
            raise ShapeError(f"batch norm of an input of rank {x.rank}")
        for what, type in (("weight", weight), ("bias", bias), ("mean", mean), ("variance", var)):
            if type is not None and type.shape != (x.shape[1],):
                raise ShapeError(f"{what} {type.shape} for {x.shape[1]} channels")
        return (x.real(),)

    def reference(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor
    ) -> Tensor:
        return functional.batch_norm(x, mean, var, weight, bias, training=False, eps=self.eps)


@lowers("batch_norm.default")
def _lower_batch_norm(call: AtenCall) -> Value | None:
    mean, var = call.optional_value("running_mean"), call.optional_value("running_var")
    if call["training"] or mean is None or var is None:
        return None
    operands = (call.value("input"), call.optional_value("weight"), call.optional_value("bias"), mean, var)
    return call.emit(BatchNorm(call["eps"]), *operands)
