import time
import types

from torch import distributed
from two_processes import TIMEOUT, run_on_two

from g2l_plugin.distillation.running.trainer import KDTrainer
from g2l_plugin.runs.run_callback import RunCallback


def end_run(upload):
    class Upload(RunCallback):
        def on_run_end(self, trainer, run_folder):
            upload()

    def end(trainer):
        trainer.global_step, trainer.callbacks = 1, [Upload()]
        trainer._write_lost_tiles = trainer._save_last_checkpoint = lambda folder: None
        KDTrainer._end_run(trainer, types.SimpleNamespace(run_state=types.SimpleNamespace()))

    return run_on_two(end)


def test_the_other_devices_wait_for_a_long_upload():
    assert end_run(lambda: time.sleep(1.5 * TIMEOUT)) == (None, None)


def test_the_other_devices_end_when_the_upload_fails():
    def fail():
        raise OSError("the upload failed")

    first, other = end_run(fail)
    assert first == "OSError"
    assert issubclass(getattr(distributed, other), distributed.DistError)
