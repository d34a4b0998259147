"""The cosine schedule of learning rate and weight decay, and the paper's early stop."""

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

from g2l_plugin.errors import UserError


class CosineSchedule(lr_scheduler.LRScheduler):
    """Anneals learning rate and weight decay from start to end on one cosine, by steps.

    The learning rate may first rise linearly. torch's CosineAnnealingLR leaves the weight decay as
    it is. A run that resumes with another T_max follows the cosine of that one from its step on.

    Source: arXiv 2510.11176 schedules both, and names neither end values nor a warm-up; here both
    end at zero.
    """

    def __init__(
        self,
        optimizer: optim.Optimizer,
        T_max: int,  # named as in torch's CosineAnnealingLR
        eta_min: float = 0.0,
        weight_decay_min: float = 0.0,
        warmup: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        """Initializes the schedule.

        Args:
            optimizer: The optimizer; its learning rate and weight decay are the start values.
            T_max: Steps to the end values, which hold from then on.
            eta_min: The learning rate at the end.
            weight_decay_min: The weight decay at the end.
            warmup: Share of the steps in which the learning rate rises to its start value, 0 to 1.
            last_epoch: The step to start from; -1 for a new run.

        Raises:
            UserError: `T_max` is below 1, or `warmup` no share.
        """
        if T_max < 1:
            raise UserError(
                f"CosineSchedule's `T_max` (MAX_STEPS) is {T_max}. Expected at least 1 step."
            )
        if not 0 <= warmup <= 1:
            raise UserError(f"CosineSchedule's `warmup` is {warmup}. Expected 0 to 1.")
        self.T_max = T_max
        self.warmup = warmup
        self.warmup_steps = round(warmup * T_max)
        self.eta_min = eta_min
        self.weight_decay_min = weight_decay_min
        for group in optimizer.param_groups:
            group.setdefault("initial_weight_decay", group["weight_decay"])
        self.base_weight_decays = [g["initial_weight_decay"] for g in optimizer.param_groups]
        super().__init__(optimizer, last_epoch)

    @override
    def get_lr(self) -> list[float | torch.Tensor]:
        rise = min((self.last_epoch + 1) / (self.warmup_steps + 1), 1.0)
        return [
            rise * self._anneal(group["initial_lr"], self.eta_min)
            for group in self.optimizer.param_groups
        ]

    @override
    def step(self, epoch: int | None = None) -> None:
        super().step(epoch)
        self._anneal_weight_decay()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on at the step of a state, on the cosine of this schedule's own T_max.

        Raises:
            UserError: Another setting of the schedule differs.
        """
        for name in ("base_lrs", "base_weight_decays", "eta_min", "weight_decay_min", "warmup"):
            now = getattr(self, name)
            if (before := state_dict.get(name, now)) != now:
                raise UserError(
                    f"The run to resume has `{name}` {before}; now it is {now}. Resume with its "
                    "value, or start a new run (RESUME=null)."
                )
        own = {"T_max": self.T_max, "warmup_steps": self.warmup_steps}
        super().load_state_dict(state_dict | own)
        self._last_lr = self.get_lr()
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr
        self._anneal_weight_decay()

    def _anneal_weight_decay(self) -> None:
        for group in self.optimizer.param_groups:
            group["weight_decay"] = self._anneal(
                group["initial_weight_decay"], self.weight_decay_min
            )

    def _anneal(self, start: float, end: float) -> float:
        progress = min(self.last_epoch / self.T_max, 1.0)
        return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


class LossEarlyStopping(pl.Callback):
    """Ends the run when the loss has exceeded its own moving average too often.

    The run ends when the loss of a step has been above the mean loss of the last `window` steps
    more than `max_exceedances` times in a row, counted from the first full window. The loss of a
    step is known one step later.

    Source: arXiv 2510.11176, which does not say whether the exceedances must be consecutive. If
    they need not be, noise alone ends a run soon after the first window.
    """

    def __init__(
        self, window: int = 100, max_exceedances: int = 10, consecutive: bool = True
    ) -> None:
        """Initializes the callback.

        Args:
            window: Steps in the mean.
            max_exceedances: Exceedances that a run survives.
            consecutive: Whether a step at or below the mean resets the count. False counts over
                the whole run.

        Raises:
            UserError: A value is out of range.
        """
        if window < 1 or max_exceedances < 0:
            raise UserError(
                f"LossEarlyStopping has window={window} (EARLY_STOP_WINDOW) and max_exceedances="
                f"{max_exceedances} (EARLY_STOP_EXCEEDANCES). Expected at least 1 and 0; to never "
                "stop early, a number above MAX_STEPS."
            )
        super().__init__()
        self.window = window
        self.max_exceedances = max_exceedances
        self.consecutive = consecutive
        self.exceedances = 0
        self._losses: collections.deque[float] = collections.deque(maxlen=window)

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        # A run that this callback had stopped, and that was killed before it could end.
        if self.exceedances > self.max_exceedances:
            self._stop(trainer, pl_module)

    @override
    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        # The synced step, the same on every device: all of them must stop together.
        last = pl_module.step_sync.last
        if last is not None and pl_module.loss_settled and self.exceeds(last.loss):
            self._stop(trainer, pl_module)

    def _stop(self, trainer: pl.Trainer, pl_module: Any) -> None:
        in_a_row = " in a row" if self.consecutive else ""
        rule = (
            f"early stop: the loss exceeded the mean of its last {self.window} steps "
            f"{self.exceedances} times{in_a_row}"
        )
        logger.info(f"Step {trainer.global_step:,}, {rule}.")
        pl_module.run_state.ending = rule
        trainer.should_stop = True

    def exceeds(self, loss: float) -> bool:
        """Counts the loss of one step; returns whether the run must end."""
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
