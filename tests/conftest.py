"""Profiles of the property tests: `pytest --hypothesis-profile=long` looks longer, and elsewhere each time.

`pytest --every 4` runs every fourth test.
"""

import pytest
from hypothesis import HealthCheck, settings

_EVERYDAY = pytest.StashKey[dict[str, list[str]]]()
_FAULTS = pytest.StashKey[list[tuple[str, str]]]()

settings.register_profile(
    "short",
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
settings.register_profile("long", settings.get_profile("short"), max_examples=2000, derandomize=False)
settings.load_profile("short")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fault-table", action="store_true", help="print every bad input with the message it gets"
    )
    parser.addoption(
        "--everyday-table", action="store_true", help="print every everyday call with its errors in C"
    )

    parser.addoption("--every", type=int, default=1, metavar="N", help="run every Nth test only")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    every = config.getoption("--every")
    if every > 1:
        config.hook.pytest_deselected(items=[item for i, item in enumerate(items) if i % every])
        items[:] = items[::every]


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_FAULTS] = []
    config.stash[_EVERYDAY] = {}


@pytest.fixture
def fault_table(request: pytest.FixtureRequest) -> list[tuple[str, str]]:
    """Rows (entry, message) of the table that `--fault-table` prints."""
    return request.config.stash[_FAULTS]


@pytest.fixture
def everyday_table(request: pytest.FixtureRequest) -> dict[str, list[str]]:
    """Figures of each call of the table that `--everyday-table` prints."""
    return request.config.stash[_EVERYDAY]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--fault-table"):
        for entry, message in config.stash[_FAULTS]:
            terminalreporter.write_line(f"{entry}\n    {message}")
    if config.getoption("--everyday-table"):
        table = config.stash[_EVERYDAY]
        for name, figures in table.items():
            terminalreporter.write_line(f"{name:45} {'  '.join(figures)}")
        terminalreporter.write_line(f"{len(table)} calls compiled to C")
