"""Counts what the fuzzer tried, and prints it with the seconds that it took."""

import os
import time
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "40"))
OUTCOMES = pytest.StashKey[dict]()

fuzz = settings(
    max_examples=EXAMPLES,
    derandomize=EXAMPLES <= 100,  # the suite tries the same inputs everywhere
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

_LONGEST = 20.0
"""Seconds that an input may take."""


@pytest.fixture
def tried(request):
    """Calls a function on an input: its result is right, or its error is one or two lines."""
    outcomes = request.config.stash.setdefault(OUTCOMES, {})
    outcomes[request.node.name] = (counts := Counter(), began := time.monotonic())

    def call(function, *args, **kwargs):
        from g2l_plugin.errors import UserError

        since = time.monotonic()
        try:
            result = function(*args, **kwargs)
        except UserError as error:
            lines = str(error).strip().splitlines()
            assert 1 <= len(lines) <= 3, f"the error has {len(lines)} lines: {error}"
            counts["refused in a line"] += 1
            result = None
        else:
            counts["read"] += 1
        assert time.monotonic() - since < _LONGEST
        return result

    yield call
    outcomes[request.node.name] = (counts, time.monotonic() - began)


def pytest_terminal_summary(terminalreporter, config):
    for name, (counts, seconds) in config.stash.get(OUTCOMES, {}).items():
        said = ", ".join(f"{count:,} {outcome}" for outcome, count in counts.items())
        terminalreporter.write_line(f"{name}: {counts.total():,} inputs in {seconds:.1f} s: {said}")
