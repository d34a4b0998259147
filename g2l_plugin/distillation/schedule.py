"""Cosine schedule of learning rate and weight decay, and the paper's early stop."""

from __future__ import annotations

import collections
import math
from typing import Any

import lightning.pytorch as pl
import torch
from loguru import logger
from torch import optim
from torch.optim import lr_scheduler
from typing_extensions import override


class CosineSchedule(lr_scheduler.LRScheduler):
    """Takes learning rate and weight decay from their start to their end on one cosine, by steps.

    Source: arXiv 2510.11176 schedules both; it names no end values, so both end at zero here.
    """

    def __init__(
        self,
        optimizer: optim.Optimizer,
        T_max: int,  # named as torch's CosineAnnealingLR names it
        eta_min: float = 0.0,
        weight_decay_min: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        """Initializes the schedule.

        Args:
            optimizer: The optimizer; its learning rate and weight decay are the start.
            T_max: Steps until the end values are reached; they hold from there.
            eta_min: The learning rate at the end.
            weight_decay_min: The weight decay at the end.
            last_epoch: The step to start from; -1 starts anew.
        """
        self.T_max = T_max
        self.eta_min = eta_min
        self.weight_decay_min = weight_decay_min
        for group in optimizer.param_groups:
            group.setdefault("initial_weight_decay", group["weight_decay"])
        super().__init__(optimizer, last_epoch)

    @override
    def get_lr(self) -> list[float | torch.Tensor]:
        return [
            self._anneal(group["initial_lr"], self.eta_min) for group in self.optimizer.param_groups
        ]

    @override
    def step(self, epoch: int | None = None) -> None:
        super().step(epoch)
        for group in self.optimizer.param_groups:
            group["weight_decay"] = self._anneal(
                group["initial_weight_decay"], self.weight_decay_min
            )

    def _anneal(self, start: float, end: float) -> float:
        progress = min(self.last_epoch / max(self.T_max, 1), 1.0)
        return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


class LossEarlyStopping(pl.Callback):
    """Ends the run when the loss has exceeded its own moving average too often, one step later.

    The run ends when the current loss has been above the mean of the last `window` iterations'
    losses more than `max_exceedances` times, counted from the first full window.

    Source: arXiv 2510.11176, which does not say whether the times must follow each other. Counted
    over the whole run, as the words go, noise alone ends it soon after the first window; with
    `consecutive` a run goes on while its loss still falls below the mean now and then.
    """

    def __init__(
        self, window: int = 100, max_exceedances: int = 10, consecutive: bool = False
    ) -> None:
        """Initializes the callback.

        Args:
            window: Iterations that the mean is taken over.
            max_exceedances: The run goes on through this many exceedances.
            consecutive: Whether an iteration below the mean starts the count anew.
        """
        super().__init__()
        self.window = window
        self.max_exceedances = max_exceedances
        self.consecutive = consecutive
        self.exceedances = 0
        self._losses: collections.deque[float] = collections.deque(maxlen=window)

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        # A run that was ended after this had stopped it, and before it could end.
        if self.exceedances > self.max_exceedances:
            trainer.should_stop = True

    @override
    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        # Of the step before, the same on every rank: some would wait for ranks that have stopped.
        known = pl_module.agreement.known
        if known is not None and self.exceeds(known.loss):
            logger.info(
                f"Early stop at step {trainer.global_step}: the loss exceeded the mean of its last "
                f"{self.window} iterations {self.exceedances} times."
            )
            trainer.should_stop = True

    def exceeds(self, loss: float) -> bool:
        """Takes note of one iteration's loss; returns whether the run shall end."""
        if len(self._losses) == self.window:
            if loss > sum(self._losses) / self.window:
                self.exceedances += 1
            elif self.consecutive:
                self.exceedances = 0
        self._losses.append(loss)
        return self.exceedances > self.max_exceedances

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"exceedances": self.exceedances, "losses": list(self._losses)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.exceedances = state_dict["exceedances"]
        self._losses = collections.deque(state_dict["losses"], maxlen=self.window)
