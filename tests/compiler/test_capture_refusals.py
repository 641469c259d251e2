"""Modules that cannot be captured are refused with a code, the user's line, and a remedy."""

import math
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxpress.compiler import CaptureError, capture

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
HERE = os.path.relpath(__file__)


class Written(nn.Module):
    """A module whose forward is a function."""

    def __init__(self, function: Callable[..., Any], **attributes: Any) -> None:
        super().__init__()
        self.function = function
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, *args: Any) -> Any:
        return self.function(self, *args)


def as_forward(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function under the name by which torch finds the lines of a user's module."""
    function.__code__ = function.__code__.replace(co_name="forward")
    return function


@as_forward
def branches(_: nn.Module, x: Tensor) -> Tensor:
    if x.sum() > 0:  # here
        return x
    return -x


@as_forward
def slices_by_data(_: nn.Module, x: Tensor) -> Tensor:
    return x[:, : int(x.argmax())]  # here


@as_forward
def loops(_: nn.Module, x: Tensor) -> Tensor:
    while x.max() > 1:  # here
        x = x / 2
    return x


@as_forward
def selects(_: nn.Module, x: Tensor) -> Tensor:
    return x[x > 0]  # here


@as_forward
def lists(_: nn.Module, x: Tensor) -> Tensor:
    return x.nonzero()  # here


@as_forward
def takes_a_number(_: nn.Module, x: Tensor) -> Tensor:
    return x / x.max().item()  # here


@as_forward
def drops(_: nn.Module, x: Tensor) -> Tensor:
    return F.dropout(x, 0.5)  # here


@as_forward
def adds_noise(_: nn.Module, x: Tensor) -> Tensor:
    return x + torch.randn_like(x)  # here


@as_forward
def draws_choices(_: nn.Module, x: Tensor) -> Tensor:
    return torch.empty_like(x).bernoulli_(0.5) * x  # here


@as_forward
def attends_with_dropout(_: nn.Module, x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x, dropout_p=0.1)  # here


@as_forward
def bakes_a_python_number(_: nn.Module, x: Tensor) -> Tensor:
    return x * random.random()  # here


@as_forward
def bakes_a_numpy_array(_: nn.Module, x: Tensor) -> Tensor:
    noise = torch.from_numpy(np.random.rand(4))  # here
    return x + noise


@as_forward
def counts_its_calls(self: Any, x: Tensor) -> Tensor:
    self.calls += 1
    return x * self.calls  # here


@as_forward
def writes_to_its_buffer(self: Any, x: Tensor) -> Tensor:
    self.buffer.add_(1)  # here
    return x + self.buffer


@as_forward
def writes_to_a_view_of_its_buffer(self: Any, x: Tensor) -> Tensor:
    self.buffer[:2] = x[0, :2]  # here
    return x + self.buffer


@as_forward
def overwrites_its_buffer_after_reading_it(self: Any, x: Tensor) -> Tensor:
    y = x + self.buffer
    self.buffer.copy_(x[0])  # here
    return y


@as_forward
def overwrites_its_input(_: nn.Module, x: Tensor) -> Tensor:
    x.zero_()  # here
    return x + 1


@as_forward
def writes_to_its_input(_: nn.Module, x: Tensor) -> Tensor:
    return x.add_(1)  # here


@as_forward
def writes_to_a_view_of_its_input(_: nn.Module, x: Tensor) -> Tensor:
    x.view(-1)[0] = 1.0  # here
    return x * 2


@as_forward
def writes_where_elements_overlap(_: nn.Module, x: Tensor) -> Tensor:
    return x.new_zeros(1, 4).expand(3, 4).add_(x[0])  # here


@as_forward
def writes_to_a_part_of_complex_numbers(_: nn.Module, x: Tensor) -> Tensor:
    numbers = torch.complex(x, x)
    numbers.real.add_(1)  # here
    return numbers


@as_forward
def resizes(_: nn.Module, x: Tensor) -> Tensor:
    return x.clone().resize_(2, 2)  # here


@as_forward
def writes_to_a_list(_: nn.Module, x: Tensor) -> Tensor:
    copies = [x.clone(), x.clone()]
    torch._foreach_add_(copies, 1)  # here
    return copies[0]


@as_forward
def chooses_by_cond(_: nn.Module, x: Tensor) -> Tensor:
    return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, [x])  # here


@as_forward
def casts_by_itself(_: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return x @ x.t()  # here


@as_forward
def makes_an_unknown_type(_: nn.Module, x: Tensor) -> Tensor:
    return x.to(torch.float8_e4m3fn)  # here


@as_forward
def makes_a_sparse_tensor(_: nn.Module, x: Tensor) -> Tensor:
    return x.to_sparse()  # here


@as_forward
def leaves_torch(_: nn.Module, x: Tensor) -> Tensor:
    return torch.from_numpy(np.sin(x.numpy()))  # here


@as_forward
def fails(_: nn.Module, x: Tensor) -> Tensor:
    return x.reshape(3, 3)  # here


REFUSED: list[tuple[Callable[..., Any], str, str]] = [
    (branches, "M201", "depends on the data; compute both branches and select with torch.where"),
    (slices_by_data, "M201", "depends on the data"),
    (loops, "M201", "depends on the data"),
    (selects, "M202", "a tensor whose size depends on the data; use a form of fixed size"),
    (lists, "M202", "aten.nonzero returns a tensor whose size depends on the data"),
    (takes_a_number, "M202", "converts data to a Python number; keep it a tensor"),
    (drops, "M203", "aten.dropout is in training mode; call model.eval() first"),
    (adds_noise, "M204", "aten.randn_like draws random numbers; pass them as an input"),
    (draws_choices, "M204", "aten.bernoulli_.float draws random numbers"),
    (attends_with_dropout, "M204", "scaled_dot_product_attention draws random numbers"),
    (bakes_a_python_number, "M204", "Python computes a value here that differs between calls"),
    (bakes_a_numpy_array, "M204", "Python computes a value here that differs between calls"),
    (counts_its_calls, "M204", "Python computes a value here that differs between calls"),
    (writes_to_its_buffer, "M205", "aten.add_.Tensor writes to buffer; a compiled model keeps no state"),
    (writes_to_a_view_of_its_buffer, "M205", "aten.copy_ writes to buffer"),
    (overwrites_its_buffer_after_reading_it, "M205", "aten.copy_ writes to buffer"),
    (overwrites_its_input, "M206", "writes to input args_0"),
    (writes_to_its_input, "M206", "writes to input args_0; work on a copy: x = x.clone()"),
    (writes_to_a_view_of_its_input, "M206", "writes to input args_0"),
    (writes_where_elements_overlap, "M210", "the view contains an element more than once"),
    (writes_to_a_part_of_complex_numbers, "M210", "another element type than its base"),
    (resizes, "M210", "aten.resize_ changes the memory of a tensor"),
    (writes_to_a_list, "M210", "in a way that is not supported; write it without the in-place operation"),
    (chooses_by_cond, "M211", "torch.cond is not supported"),
    (casts_by_itself, "M211", "autocast chooses element types; convert tensors with .to() instead"),
    (makes_an_unknown_type, "M208", "element type torch.float8_e4m3fn is not supported; convert it"),
    (makes_a_sparse_tensor, "M208", "gives a torch.sparse_coo tensor; convert it to a dense tensor"),
    (leaves_torch, "M200", "tracing raises RuntimeError: .numpy() is not supported"),
    (fails, "M200", "tracing raises RuntimeError: shape '[3, 3]' is invalid"),
]


@pytest.mark.parametrize(
    ("function", "code", "message"), REFUSED, ids=lambda value: getattr(value, "__name__", "")
)
def test_this_forward_is_refused_at_its_line(function: Callable[..., Any], code: str, message: str) -> None:
    model = Written(function, calls=0)
    model.register_buffer("buffer", torch.zeros(4))

    with pytest.raises(CaptureError) as caught:
        capture(model, (X,))

    (problem,) = caught.value.problems
    assert problem.code == code
    assert message in str(problem)
    assert problem.place == f"{HERE}:{_marked_line(function)}"


def _marked_line(function: Callable[..., Any]) -> int:
    lines = Path(__file__).read_text().splitlines()
    first = function.__code__.co_firstlineno
    return next(n for n in range(first, len(lines)) if lines[n - 1].endswith("# here"))


def test_a_refusal_leaves_the_module_and_the_screen_as_they_were(capfd: pytest.CaptureFixture[str]) -> None:
    model = Written(counts_its_calls, calls=0)

    for function in (counts_its_calls, branches):
        model.function = function
        with pytest.raises(CaptureError):
            capture(model, (X,))

    assert model.calls == 0
    assert capfd.readouterr() == ("", "")


def test_every_layer_in_training_mode_is_named_at_once() -> None:
    model = nn.Sequential(
        nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.1), nn.RReLU(), nn.AlphaDropout(0.1)
    )

    with pytest.raises(CaptureError) as caught:
        capture(model.train(), (X,))

    problems = caught.value.problems
    assert {problem.code for problem in problems} == {"M203"}
    assert [problem.message.split(":")[0] for problem in problems] == ["1", "2", "3", "4"]


def test_a_module_in_training_mode_that_has_nothing_to_train_by_is_captured() -> None:
    assert capture(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0)).train(), (X,)).deviation == 0.0


def test_many_layers_with_one_fault_are_counted() -> None:
    model = nn.Sequential(*(nn.Dropout(0.1) for _ in range(30))).train()

    with pytest.raises(CaptureError, match=r"7: .*\(and 22 more like it\)") as caught:
        capture(model, (X,))

    assert len(caught.value.problems) == 8


def test_weights_without_values_are_refused_by_name() -> None:
    with pytest.raises(
        CaptureError, match=r"weight is on the meta device and has no values; load its weights.*M212"
    ):
        capture(nn.Linear(4, 4, device="meta"), (X,))


def test_an_input_without_values_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"input 0 is on the meta device.*M212"):
        capture(nn.Linear(4, 4), (X.to("meta"),))


def test_a_sparse_weight_is_refused_by_name() -> None:
    model = Written(lambda s, x: s.weight @ x.t(), weight=nn.Parameter(X.to_sparse()))

    with pytest.raises(CaptureError, match=r"weight: is not a dense tensor.*M208|sparse"):
        capture(model, (X,))


def test_an_input_of_an_unknown_element_type_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"input x: element type torch.uint16 is not supported.*M208"):
        capture(Written(lambda _, x: x), (X.to(torch.uint16),), input_names=["x"])


class Opaque:
    """A result that torch cannot look into."""


def test_a_result_of_an_unknown_class_is_refused() -> None:
    with pytest.raises(
        CaptureError, match=r"Opaque.*cannot be flattened; return tensors.*register_dataclass.*M207"
    ):
        capture(Written(lambda _, x: Opaque()), (X,))


def test_a_script_module_is_refused() -> None:
    with pytest.raises(CaptureError, match="ScriptModule"):
        capture(torch.jit.script(nn.Linear(4, 4)), (X,))


def test_shapes_that_do_not_fit_are_refused_with_the_layer() -> None:
    with pytest.raises(CaptureError, match=r"tracing raises RuntimeError.*check that the module runs.*M200"):
        capture(nn.Sequential(nn.Linear(3, 3), nn.Linear(4, 4)), (X[:, :3],))


def test_an_embedding_of_floats_names_the_type_of_indices() -> None:
    with pytest.raises(CaptureError, match=r"indices are integers: give the input `dtype: int64`.*M200"):
        capture(nn.Embedding(4, 2), (torch.zeros(1, 3),))


class Hidden(nn.Module):
    """Gives another result when it is not traced, every time the same."""

    def forward(self, x: Tensor) -> Tensor:
        return x if torch.compiler.is_exporting() else x + 1


def test_a_module_that_differs_from_its_trace_is_refused() -> None:
    with pytest.raises(
        CaptureError, match=r"differs from the result of its trace by .* of its largest element.*M209"
    ):
        capture(Hidden(), (X,))


def test_a_difference_goes_unseen_only_when_it_is_not_looked_for() -> None:
    assert capture(Hidden(), (X,), check=False).deviation is None


def test_numbers_that_are_not_numbers_agree_with_themselves() -> None:
    assert capture(Written(lambda _, x: x * math.nan), (X,)).deviation == 0.0
