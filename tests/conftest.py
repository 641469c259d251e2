"""Profiles of the property tests: `pytest --hypothesis-profile=long` looks longer, and elsewhere each time."""

import pytest
from hypothesis import HealthCheck, settings

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


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_FAULTS] = []


@pytest.fixture
def fault_table(request: pytest.FixtureRequest) -> list[tuple[str, str]]:
    """Rows (entry, message) of the table that `--fault-table` prints."""
    return request.config.stash[_FAULTS]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--fault-table"):
        for entry, message in config.stash[_FAULTS]:
            terminalreporter.write_line(f"{entry}\n    {message}")
