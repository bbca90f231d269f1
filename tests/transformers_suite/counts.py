"""A plugin of pytest that counts the tests of each configuration: failed, run, skipped."""

from __future__ import annotations

from collections import Counter

import pytest

_outcomes: dict[str, Counter] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A test counts once: by its call, or by a set-up that skips it or fails. Subtests are reports of other classes."""
    if type(report) is pytest.TestReport and (report.when == "call" or report.outcome != "passed"):
        _outcomes.setdefault(report.nodeid.split("::")[1], Counter())[report.outcome] += 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A line for each configuration."""
    import transformers

    for name, outcome in _outcomes.items():
        failed, passed, skipped = (outcome[key] for key in ("failed", "passed", "skipped"))
        terminalreporter.write_line(
            f"transformers {transformers.__version__}, {name}: {failed} failed of {failed + passed} run, {skipped} skipped"
        )
