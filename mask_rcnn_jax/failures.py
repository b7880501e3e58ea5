"""The end of a run of several processes when one of them fails: all end, within seconds, with one status and message.

Left to itself, a process that fails waits for the others at its exit, while they wait for it in a computation, until
jax aborts them all.
"""

import json
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import jax

# The store that all processes share has no public door; Orbax takes this one as well.
from jax._src import distributed

from mask_rcnn_jax.errors import Stopped, described, exit_status, let_go

_KEY = "mask_rcnn_jax/failure"
_INTERVAL = 0.5  # seconds between looks at the store
_FOREVER = 30 * 24 * 3600 * 1000  # milliseconds
_PATIENCE = 20  # seconds for the others to end too


@contextmanager
def failing_together() -> Iterator[None]:
    """Watch for failures of the other processes, and tell them of one in the `with`; all leave it together.

    The first failure decides: every process ends with its status, and the first process prints its message. A bug's
    traceback is printed by the process that has it. The process then ends at once: nothing after the `with` is run.
    """
    watch = _Watch()
    try:
        try:
            yield
        except Stopped:
            watch.wait_for_all()
            raise
        watch.wait_for_all()
    except Stopped as stopped:
        if distributed.global_state.process_id:
            sys.exit(exit_status(stopped))  # the first process says why
        raise
    except (Exception, KeyboardInterrupt) as error:
        watch.fail(error)
    finally:
        watch.close()


class _Watch:
    """A thread that ends this process when the store says that one of the run has failed."""

    def __init__(self) -> None:
        self._store: Any = distributed.global_state.client
        self._closed, self._ending = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._look, name="failures", daemon=True)
        self._thread.start()

    def wait_for_all(self) -> None:
        """Return when every process has come this far."""
        self._store.wait_at_barrier(f"{_KEY}/done", _FOREVER)

    def fail(self, error: BaseException) -> NoReturn:
        """End all processes because of `error`; or of what failed before, which may well be its cause."""
        index, status = distributed.global_state.process_id, exit_status(error)
        message = described(error) or "interrupted"
        if status == 1:
            last = "".join(traceback.format_exception_only(error)).strip()
            message = f"process {index} failed, and its output has the traceback: {last}"
        if not self._ending.is_set() and self._publish(status, message) and status == 1:
            traceback.print_exception(error)
        self._thread.join(2 * _PATIENCE)  # it ends the process
        # There is no store any more, and so no first process.
        traceback.print_exception(error)
        os._exit(status)

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _publish(self, status: int, message: str) -> bool:
        """Return whether no failure was known before."""
        try:
            self._store.key_value_set(_KEY, json.dumps([status, message]))
        except jax.errors.JaxRuntimeError:
            return False
        return True

    def _look(self) -> None:
        while not self._closed.wait(_INTERVAL):
            try:
                status, message = json.loads(self._store.key_value_try_get(_KEY))
            except jax.errors.JaxRuntimeError:
                continue  # nothing is there
            self._end(status, message)

    def _end(self, status: int, message: str) -> NoReturn:
        self._ending.set()
        if distributed.global_state.process_id == 0:
            print(message, file=sys.stderr)
        let_go()
        # All take leave of the store at the same time: jax aborts whoever finds it gone.
        leaving = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        leaving.start()
        leaving.join(_PATIENCE)
        os._exit(status)
