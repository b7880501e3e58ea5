"""Requests to stop, in the main thread and outside it."""

import os
import signal
import threading

from mask_rcnn_jax.training.runs.stopping import StopRequests


def test_sigterm_is_noticed_and_what_was_there_before_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequests() as requests:
        assert not requests.reached(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert requests.reached(2)
    assert signal.getsignal(signal.SIGTERM) == before


def test_outside_the_main_thread_there_is_no_handler():
    """As in a notebook's or a server's thread, where Python refuses to set one."""
    before, reached = signal.getsignal(signal.SIGTERM), []

    def run() -> None:
        with StopRequests() as requests:
            reached.append(requests.reached(1))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert reached == [False]
    assert signal.getsignal(signal.SIGTERM) == before
