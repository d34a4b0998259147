"""The private parts of eva, Lightning and PyTorch that this package touches, each with its reason.

Written for kaiko-eva 0.4.5 and Lightning 2.6.6. Where a public way appears, it replaces its entry
here. `tests/test_upstream.py` fails when a name is gone. Methods that subclasses are meant to
override are not listed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as pl
from eva.core.callbacks.config import _load_submitted_config
from eva.core.data.dataloaders import DataLoader
from eva.core.trainers import Trainer
from eva.core.trainers._recorder import SessionRecorder
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities import rank_zero_only
from torch.distributed import distributed_c10d


def submitted_config() -> dict[str, Any] | None:
    """The configuration that eva's command line received, resolved; None outside of it.

    eva 0.4.5 reads it from `sys.argv` for its ConfigurationLogger and offers no public way.
    """
    if not any(argument.endswith(".yaml") for argument in sys.argv[1:]):
        return None
    return _load_submitted_config()


def write_session_results_once() -> None:
    """Makes eva write a session's results.json on the first device only.

    eva 0.4.5 writes it on every device, into the same file.
    """
    SessionRecorder.save = rank_zero_only(SessionRecorder.save)  # type: ignore[method-assign]


def read_without_workers() -> None:
    """Lets eva's data loaders read in the main process, `num_workers: 0`.

    eva 0.4.5 then passes its defaults for workers all the same, and PyTorch refuses them.
    """
    make = DataLoader.__call__

    @functools.wraps(make)
    def call(self: DataLoader, *args: Any, **kwargs: Any) -> Any:
        if self.num_workers == 0:
            self = dataclasses.replace(self, prefetch_factor=None, persistent_workers=False)
        return make(self, *args, **kwargs)

    DataLoader.__call__ = call  # type: ignore[method-assign]


def set_session(trainer: Trainer, session_id: str) -> None:
    """Makes a trainer continue a session.

    eva 0.4.5 names a session by the time of its start and cannot be given one.
    """
    trainer._session_id = session_id


def attached_trainer(module: pl.LightningModule) -> pl.Trainer | None:
    """The trainer of a module; None outside of a run.

    The public property of Lightning 2.6 raises an error instead.
    """
    return module._trainer  # type: ignore[return-value]


def take_over_processes(trainer: pl.Trainer) -> list[subprocess.Popen]:
    """The processes of other devices that Lightning has started on this machine.

    Lightning 2.6 watches its list of them and kills this process when one ends. The list is
    emptied: the caller ends them.
    """
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, _SubprocessScriptLauncher):
        return []
    processes = list(launcher.procs)
    launcher.procs.clear()
    return processes


def validate_within_fit(trainer: pl.Trainer) -> None:
    """Runs a validation before the first step, or after the last one.

    Lightning 2.6 validates only after a step, and its sanity check logs nothing. Nothing happens
    where the run has no validation.
    """
    if not trainer.enable_validation:
        return
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True


def skip_sigterm_broadcast(trainer: pl.Trainer) -> None:
    """Keeps the host from waiting for the devices before each batch.

    Lightning 2.6 broadcasts there whether one of them received SIGTERM; `StepSync` does that
    without waiting.
    """
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]


def checkpoint_interval(callback: ModelCheckpoint) -> int:
    """Optimizer steps between two checkpoints; Lightning 2.6 keeps its argument private."""
    return callback._every_n_train_steps


@contextlib.contextmanager
def others_waiting(trainer: pl.Trainer) -> Iterator[bool]:
    """Lets the first device do something alone, as long as it takes; the others wait for its end.

    They would wait in their next collective call, and that gives up after 30 minutes: PyTorch's
    calls have no timeout of their own. So they wait for a key in PyTorch's store, which has no
    public name.

    Yields:
        Whether this is the first device.
    """
    key = trainer.strategy.broadcast(uuid.uuid4().hex)
    yield trainer.is_global_zero
    if trainer.world_size > 1:
        store = distributed_c10d._get_default_store()
        if trainer.is_global_zero:
            store.set(key, "")
        else:
            store.wait([key], datetime.timedelta(days=30))


def image_transforms(dataset: Any) -> Callable[..., Any] | None:
    """The image transforms of one of eva's datasets; eva 0.4.5 has two private names for them."""
    transforms = getattr(dataset, "_transforms", None)
    return transforms or getattr(dataset, "_image_transforms", None)


def image_files(dataset: Any) -> list[tuple[str, str]] | None:
    """The files that a dataset of eva reads its images from, each with the place in it that counts.

    eva 0.4.5 has no public way: `filename` is relative to one of two private folders, tiles of
    PatchCamelyon are in one file, and slides know the grid of their patches.

    Returns:
        Paths, each with the grid of patches for slides and "" otherwise; None if the dataset has no
        folder.
    """
    if (h5_file := getattr(dataset, "_h5_file", None)) is not None:
        return [(h5_file("x"), "")]
    if hasattr(dataset, "_concat_dataset"):
        return [(slide._file_path, _grid(slide._coords)) for slide in dataset.datasets]
    folder = getattr(dataset, "_dataset_path", None) or getattr(dataset, "_root", None)
    if folder is None:
        return None
    return [(os.path.join(folder, dataset.filename(n)), "") for n in range(len(dataset))]


def _grid(coords: Any) -> str:
    return f"{coords.width} {coords.height} {coords.level_idx} {coords.x_y}"


def registry_name(network: Any) -> str | None:
    """The name of a backbone in eva's registry; None for other networks."""
    return getattr(network, "_model_name", None)


def registry_out_indices(network: Any) -> Any:
    """The `out_indices` that a backbone of eva's registry was built with; None for other networks.

    eva 0.4.5 keeps the arguments of a backbone private.
    """
    return getattr(network, "_model_kwargs", {}).get("out_indices")


def _nothing() -> None:
    """Does nothing."""
