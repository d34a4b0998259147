"""Being asked to end: by a scheduler (SIGTERM, SIGUSR1) or from the keyboard (SIGINT)."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any


class Interruption:
    """Takes note of signals instead of ending at once; a second SIGINT ends at once.

    Attributes:
        wished: The signal that was received; None before one was.
    """

    def __init__(self) -> None:
        """Initializes the interruption; no signal is caught yet."""
        self.wished: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def start(self) -> None:
        """Catches signals from here on; in a thread beside the main one there are none to catch."""
        if threading.current_thread() is threading.main_thread() and not self._previous:
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._take_note)

    def stop(self) -> None:
        """Puts back what was there before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    @property
    def exit_status(self) -> int:
        """What the process exits with, as a shell counts it: 128 and the signal."""
        return 128 + (self.wished or signal.SIGTERM)

    def _take_note(self, number: int, frame: FrameType | None) -> None:
        received = signal.Signals(number)
        if received is signal.SIGINT and self.wished is signal.SIGINT:
            raise KeyboardInterrupt
        self.wished = received
        # Not by the logger: it may be what the signal interrupted, and wait for itself for ever.
        os.write(2, f"{received.name}: the run ends after a checkpoint of this step.\n".encode())
