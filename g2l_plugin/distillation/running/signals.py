"""Requests to stop: from a scheduler (SIGTERM, SIGUSR1) or the keyboard (SIGINT)."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any


class StopSignals:
    """Records signals instead of ending at once; a second SIGINT ends at once.

    Attributes:
        received: The last signal; None if there was none.
    """

    def __init__(self) -> None:
        """Initializes the record; no signal is caught yet."""
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def start(self) -> None:
        """Starts to catch signals, in the main thread; other threads receive none."""
        if threading.current_thread() is threading.main_thread() and not self._previous:
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._record)

    def stop(self) -> None:
        """Restores the previous handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    @property
    def exit_status(self) -> int:
        """Exit status of the process by the convention of shells: 128 plus the signal."""
        return 128 + (self.received or signal.SIGTERM)

    def _record(self, number: int, frame: FrameType | None) -> None:
        received = signal.Signals(number)
        if received is signal.SIGINT and self.received is signal.SIGINT:
            raise KeyboardInterrupt
        self.received = received
        # Not through the logger: the signal may have interrupted it, and it would wait for itself.
        os.write(2, f"{received.name}: the run ends after a checkpoint of this step.\n".encode())
