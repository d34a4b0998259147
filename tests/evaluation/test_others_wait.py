import time
import types

import pytest
from two_processes import TIMEOUT, run_on_two

from g2l_plugin.evaluation.before_after import DistillationEvaluation
from g2l_plugin.evaluation.embedding_metrics import EmbeddingMetrics


def slow(*args):
    time.sleep(1.5 * TIMEOUT)
    return types.SimpleNamespace(values={"accuracy": 1.0})


class SlowMetrics(EmbeddingMetrics):
    _compute = slow


class SlowEvaluation(DistillationEvaluation):
    _evaluate_start = _evaluate_end = slow


def log(trainer):
    trainer.state = types.SimpleNamespace(fn="validate")
    logged = {}
    module = types.SimpleNamespace(log_dict=logged.update)
    SlowMetrics("root", "task", []).on_validation_epoch_end(trainer, module)
    assert logged == {"val/accuracy": 1.0}


@pytest.mark.parametrize(
    "call",
    [
        log,
        lambda trainer: SlowEvaluation(None, None, []).on_fit_start(trainer, None),
        lambda trainer: SlowEvaluation(None, None, []).on_fit_end(trainer, None),
    ],
    ids=["metrics", "before", "after"],
)
def test_the_other_devices_wait_while_the_first_computes_for_long(call):
    assert run_on_two(call) == (None, None)
