"""Signals that end a run in good order."""

import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils


class StopRequests:
    """Context manager in which SIGTERM, what clusters send before they take a machine away, asks the loop to stop.

    Of several processes one request stops all, after the same step: jax's own watch for preemption agrees on it.
    Outside the main thread, where Python takes no handlers, SIGTERM stays with whatever the program does about it.
    """

    def __init__(self) -> None:
        self._asked = False

    def reached(self, step: int) -> bool:
        """Return whether the run stops after this step; every process asks after every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def __enter__(self) -> "StopRequests":
        # With several processes jax has a handler of its own.
        self._handles = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
        if self._handles:
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._handles:
            # None: what was there was not set by Python, and cannot be set again from it.
            signal.signal(signal.SIGTERM, signal.SIG_DFL if self._before is None else self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
