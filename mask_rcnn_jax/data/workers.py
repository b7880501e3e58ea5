"""How the processes that load data start and end: with the process that started them, and not by themselves."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import connection, resource_tracker


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Block SIGINT in the threads and processes started meanwhile, from their first instruction on.

    Ctrl-C in a terminal reaches every process of the command: the one in front ends the others, which would each print
    a traceback of their own.
    """
    resource_tracker.ensure_running()  # started by whoever needs it first, it would lift the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent(index: int, count: int) -> None:
    """Make this process end when the one that started it does, however that ended; called by Grain in worker `index`.

    The system's own signal for it, PR_SET_PDEATHSIG, would come at the end of the *thread* that started the worker. The
    shared memory of both is then removed by Python's resource tracker, which outlives them.
    """
    del index, count
    threading.Thread(target=_wait_for_parent, name="end_with_parent", daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
