"""A sample of random faults: each ends in exit status 2 with a message; `make faults` runs 300 of both kinds."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fault_generator import Case, damages, invocations, judge, make_project, report


@pytest.fixture(scope="module")
def faulty_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_project(tmp_path_factory.mktemp("faults") / "project")


@pytest.mark.parametrize("cases", [damages(31, seed=1), itertools.islice(invocations(300, seed=1), 12)])
def test_random_faults_end_in_a_message(cases: Iterator[Case], faulty_project: Path) -> None:
    verdicts = [judge(case, faulty_project, own_process=False) for case in cases]
    assert not any(v.wrong for v in verdicts), report(verdicts)


def test_a_case_that_ends_well_is_found(faulty_project: Path) -> None:
    case = Case("none", lambda project: None, ("explain", "out", "head"))
    assert judge(case, faulty_project, own_process=False).wrong == "exit status 0"
