import signal

import pytest
from loguru import logger

from g2l_plugin.distillation.running.signals import StopSignals


@pytest.fixture
def signals():
    signals = StopSignals()
    signals.start()
    yield signals
    signals.stop()


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGINT, 130)]
)
def test_a_signal_is_recorded(signals, number, status, capfd):
    assert signals.received is None
    signal.raise_signal(number)
    assert signals.received is number
    assert signals.exit_status == status
    assert f"{number.name}: the run ends" in capfd.readouterr().err


def test_a_second_ctrl_c_ends_at_once(signals):
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_the_previous_handlers_are_restored():
    before = signal.getsignal(signal.SIGTERM)
    signals = StopSignals()
    signals.start()
    assert signal.getsignal(signal.SIGTERM) != before
    signals.stop()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_while_something_is_logged_does_not_log(signals, capfd):
    sink = logger.add(lambda _: signal.raise_signal(signal.SIGTERM))
    try:
        logger.info("interrupted here")
    finally:
        logger.remove(sink)
    assert signals.received is signal.SIGTERM
    assert "deadlock" not in capfd.readouterr().err
