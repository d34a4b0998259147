import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from g2l_plugin.distillation.running.full_disk import tolerate_full_disk


def test_a_full_disk_is_reported_once_and_ends_nothing(tmp_path, warned, monkeypatch):
    tensorboard = TensorBoardLogger(tmp_path, name="", version="")
    with tolerate_full_disk([tensorboard]):
        tensorboard.log_metrics({"loss": 1.0}, 0)

        def fail(*args):
            raise OSError(28, "No space left on device")

        for name in ("add_event", "flush", "close"):
            monkeypatch.setattr(EventFileWriter, name, fail)
        for step in range(3):
            tensorboard.log_metrics({"loss": 1.0}, step)
            tensorboard.save()
        tensorboard.finalize("failed")
    (message,) = warned
    assert "Logging stops: [Errno 28] No space left on device. The run continues." in message
    with pytest.raises(ValueError, match="tried to log"):
        tensorboard.log_metrics({"loss": 1.0}, 4)


def test_another_error_is_raised(tmp_path, warned):
    tensorboard = TensorBoardLogger(tmp_path, name="", version="")
    with tolerate_full_disk([tensorboard]), pytest.raises(ValueError, match="tried to log"):
        tensorboard.log_metrics({"loss": "no number"}, 0)
    assert not warned
