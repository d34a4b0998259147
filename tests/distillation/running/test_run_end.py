import datetime
import multiprocessing
import socket
import time
import types

import pytest
from torch import distributed

from g2l_plugin.distillation.running.trainer import KDTrainer
from g2l_plugin.runs.run_callback import RunCallback

_TIMEOUT = 8.0


class Upload(RunCallback):
    def __init__(self, seconds):
        self.seconds = seconds

    def on_run_end(self, trainer, run_folder):
        time.sleep(self.seconds)
        if self.seconds == 0:
            raise OSError("the upload failed")


def broadcast(value):
    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


def end_run(rank, port, seconds, reports):
    """The end of a run on one of two devices, and the first collective call that follows it."""
    distributed.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=_TIMEOUT),
    )
    trainer = types.SimpleNamespace(
        global_step=1,
        log_dir=".",
        world_size=2,
        is_global_zero=rank == 0,
        strategy=types.SimpleNamespace(broadcast=broadcast),
        callbacks=[Upload(seconds)],
        _write_lost_tiles=lambda folder: None,
        _save_last_checkpoint=lambda folder: None,
    )
    model = types.SimpleNamespace(run_state=types.SimpleNamespace())
    try:
        KDTrainer._end_run(trainer, model)
        distributed.barrier()  # of eva's validation
        reports.put((rank, None))
    except Exception as error:
        reports.put((rank, type(error).__name__))


@pytest.mark.parametrize("seconds", [1.5 * _TIMEOUT, 0])
def test_the_others_wait_for_a_long_upload_and_end_if_it_fails(seconds):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    reports = context.Queue()
    devices = [
        context.Process(target=end_run, args=(rank, port, seconds, reports)) for rank in (0, 1)
    ]
    for device in devices:
        device.start()
    found = dict(reports.get(timeout=120) for _ in devices)
    for device in devices:
        device.join(60)
    if seconds:
        assert found == {0: None, 1: None}
    else:
        assert found[0] == "OSError"
        assert issubclass(getattr(distributed, found[1]), distributed.DistError)
