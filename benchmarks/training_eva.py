"""`eva fit` for `training.py`: its config, and what measures it from within.

The config is `configs/g2l_breast.yaml` as it is, the paper's recipe, with the variables that it
takes from the environment. Added are a callback that counts steps and a profiler that sums up what
Lightning times of its own; left out of the measured steps are checkpoints and validation.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.pytorch.profilers import Profiler
from training_data import N_VAL_TILES
from training_options import RECIPE
from training_settings import Settings
from training_turns import Clock

_NEVER = 10**9


def eva_command(
    settings: Settings, folder: Path, data_options: dict[str, Any]
) -> tuple[list[str], dict[str, str]]:
    """What a user would type, and the environment for it; writes the config.

    Args:
        settings: What to train.
        folder: Where to write the config and the run.
        data_options: Arguments of the config's datasets that it takes from no variable.
    """
    config = yaml.safe_load(RECIPE.read_text())
    trainer, data = config["trainer"]["init_args"], config["data"]["init_args"]
    trainer["callbacks"].append({"class_path": "training_eva.StepClock"})
    trainer["profiler"] = {"class_path": "training_eva.HostTimes"}
    for dataset in data["datasets"].values():
        dataset["init_args"] |= data_options
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    environment = {
        "PYTHONPATH": os.pathsep.join(
            [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
        "TEACHER": settings.teacher.source,
        "TEACHER_PRETRAINED": "false",
        "TEACHER_KWARGS": json.dumps(settings.teacher.kwargs),
        "TEACHER_DTYPE": settings.teacher_dtype,
        "STUDENT": settings.student.source,
        "STUDENT_PRETRAINED": "false",
        "STUDENT_KWARGS": json.dumps(settings.student.kwargs),
        "VIEW_SIZE": str(settings.image_size),
        "BATCH_SIZE": str(settings.batch_size),
        "N_DATA_WORKERS": str(settings.workers),
        "PRECISION": settings.precision,
        "ACCELERATOR": settings.device,
        "NUM_DEVICES": "1",
        "SLIDES_ROOT": settings.slides,
        "INDEX_ROOT": settings.index,
        "N_VAL_TILES": str(N_VAL_TILES),
        "OUTPUT_ROOT": str(folder / "logs"),
        "MAX_STEPS": str(_NEVER),
        "EARLY_STOP_EXCEEDANCES": str(_NEVER),
        "VAL_CHECK_INTERVAL": str(_NEVER),
        "CHECKPOINT_INTERVAL": str(_NEVER),
        "CHECKPOINT_MINUTES": str(_NEVER),
        "RESUME": "null",
    }
    eva = Path(sys.executable).with_name("eva")
    return [str(eva), "fit", "--config", str(path)], environment


class StepClock(pl.Callback):
    """Counts the steps of a fit."""

    def __init__(self) -> None:
        super().__init__()
        self._clock: Clock | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        times = trainer.profiler  # type: ignore[attr-defined]
        assert isinstance(times, HostTimes)
        self._clock = Clock.of(Settings.read(os.environ["SETTINGS"]), times.take)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        assert self._clock is not None
        self._clock.step()


class HostTimes(Profiler):
    """Sums the seconds that the host spends in what Lightning names.

    On CUDA, work goes on when the host is through with it: there these are no times of the device,
    but tell whether the host keeps up.
    """

    def __init__(self) -> None:
        super().__init__()
        self._since: dict[str, float] = {}
        self._totals: dict[str, float] = defaultdict(float)

    def start(self, action_name: str) -> None:
        self._since[action_name] = time.perf_counter()

    def stop(self, action_name: str) -> None:
        since = self._since.pop(action_name, None)
        if since is not None:
            self._totals[action_name] += time.perf_counter() - since

    def take(self) -> dict[str, Any]:
        """Seconds by part of the step since the last call."""
        totals, self._totals = self._totals, defaultdict(float)
        self._since.clear()  # the pause is in the clock's own callback

        def total(*endings: str) -> float:
            return sum(seconds for name, seconds in totals.items() if name.endswith(endings))

        forward, backward = total("Strategy.training_step"), total("Strategy.backward")
        return {
            "host_seconds": {
                "data wait": total(".train_dataloader_next"),
                "transfer and views": total("Strategy.batch_to_device"),
                "teacher and student forward, objective": forward,
                "backward": backward,
                "optimizer": total(".optimizer_step") - forward - backward,
                "callbacks and hooks": total("on_train_batch_start", "on_train_batch_end"),
            }
        }
