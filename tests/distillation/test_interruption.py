import signal

import pytest
from loguru import logger

from g2l_plugin.distillation.interruption import Interruption


@pytest.fixture
def interruption():
    interruption = Interruption()
    interruption.start()
    yield interruption
    interruption.stop()


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGINT, 130)]
)
def test_a_signal_is_a_wish(interruption, number, status, capfd):
    assert interruption.wished is None
    signal.raise_signal(number)
    assert interruption.wished is number
    assert interruption.exit_status == status
    assert f"{number.name}: the run ends" in capfd.readouterr().err


def test_a_second_ctrl_c_ends_at_once(interruption):
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_what_was_there_before_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    interruption = Interruption()
    interruption.start()
    assert signal.getsignal(signal.SIGTERM) != before
    interruption.stop()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_while_something_is_logged_does_not_log(interruption, capfd):
    sink = logger.add(lambda _: signal.raise_signal(signal.SIGTERM))
    try:
        logger.info("interrupted here")
    finally:
        logger.remove(sink)
    assert interruption.wished is signal.SIGTERM
    assert "deadlock" not in capfd.readouterr().err
