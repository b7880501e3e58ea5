"""Signals that end a run in good order."""

import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils


class StopRequests:
    """Context manager in which SIGTERM, what clusters send before they take a machine away, asks the loop to stop.

    Of several processes one request stops all, after the same step: jax's own watch for preemption agrees on it.
    """

    def __init__(self) -> None:
        self._asked = False

    def reached(self, step: int) -> bool:
        """Whether the run stops after this step; every process asks after every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def __enter__(self) -> "StopRequests":
        # With several processes jax has a handler of its own.
        self._before = signal.signal(signal.SIGTERM, self._ask) if jax.process_count() == 1 else None
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
