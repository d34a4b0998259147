"""What a module needs so that its runs can be synchronised, saved and resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from eva.core.models.modules import ModelModule
from torch import nn
from tqdm import tqdm
from typing_extensions import override

from g2l_plugin.distillation.running.run_state import RunState
from g2l_plugin.distillation.running.step_sync import StepSync
from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.slides.batch import TileBatch
from g2l_plugin.slides.in_order import some_batches


class RunModule(ModelModule):
    """A module of eva whose steps keep no device waiting.

    Attributes:
        step_sync: Loss and requests of the last step, the same on all devices.
        run_state: What the run knows of itself, saved in every checkpoint.
    """

    def __init__(self) -> None:
        """Initializes the module."""
        super().__init__()
        self.step_sync = StepSync()
        self.run_state = RunState()

    @override
    def on_train_start(self) -> None:
        steps = self.all_gather(torch.tensor(self.global_step, device=self.device))
        if (steps != self.global_step).any():
            raise UserError(
                f"The devices resume at different steps: {sorted(set(steps.flatten().tolist()))}. "
                "Expected a folder of runs that all machines share (OUTPUT_ROOT)."
            )
        if self.run_state.finished:  # only what follows the training is left to do
            self.trainer.should_stop = True

    @override
    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: eva's metrics of a step would wait for the device."""

    def log_from_host(self, name: str, value: float) -> None:
        """Logs a value that the host knows; logging one of the device would wait for it."""
        self.log(name, torch.tensor(value), rank_zero_only=True)

    def gather_rows(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, D) of all devices, (devices * B, D); gradients flow back to each."""
        return self.all_gather(embeddings, sync_grads=True).flatten(0, -2)

    def gather_tiles(
        self, embeddings: Sequence[torch.Tensor], numbers: Sequence[np.ndarray | None]
    ) -> tuple[list[torch.Tensor], np.ndarray | None]:
        """Gathers the tiles of a validation from all devices, each tile once.

        Args:
            embeddings: Embeddings of this device's tiles by several encoders, (N, D).
            numbers: Numbers of the tiles, a part for each batch; None where unknown.

        Returns:
            The embeddings, ascending by number, and the numbers; in no order where unknown.
        """
        rows = [self.gather_rows(part) for part in embeddings]
        known = [part for part in numbers if part is not None]
        if len(known) < len(numbers):
            return rows, None
        column = torch.from_numpy(np.concatenate(known))[:, None].to(self.device)
        every = self.gather_rows(column).flatten().cpu().numpy()
        # Several devices repeat tiles, so that all have as many.
        unique, first = np.unique(every, return_index=True)
        return [part[first] for part in rows], unique

    def some_batches(self, n_tiles: int, description: str) -> Iterator[TileBatch]:
        """Some training tiles on this device, which together with others has `n_tiles`."""
        loader: Any = self.trainer.train_dataloader
        place = (self.global_rank, self.trainer.world_size)
        for batch in tqdm(some_batches(loader, n_tiles, *place), description, leave=False):
            yield self.transfer_batch_to_device(batch, self.device, 0)

    def share(self, module: nn.Module) -> None:
        """Copies a module's state from the first device to all: rounding differs between them."""
        for tensor in module.state_dict().values():
            if torch.is_tensor(tensor) and self.trainer.world_size > 1:
                torch.distributed.broadcast(tensor, 0)

    def mean_over_devices(self, values: torch.Tensor) -> torch.Tensor:
        """Averages values in place. Lightning's own reduction has a barrier that waits."""
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(values)
            values /= self.trainer.world_size
        return values


def check_optimizer(optimizer: Callable[..., Any], lr_scheduler: Callable[..., Any]) -> None:
    """Makes optimizer and schedule once for no weights: now, not after gigabytes were read.

    Raises:
        UserError: One of them cannot be made.
    """
    try:
        lr_scheduler(optimizer([nn.Parameter(torch.zeros(1))]))
    except (ValueError, TypeError) as error:  # torch's
        raise UserError(
            f"The optimizer or its schedule cannot be made: {in_one_line(error)}. Check LR_VALUE, "
            "WEIGHT_DECAY and MAX_STEPS."
        ) from error
