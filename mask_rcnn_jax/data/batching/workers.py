"""Start, end and interruption of loading: a thread that asks Grain for batches, and the processes that it starts.

Python raises KeyboardInterrupt wherever the main thread happens to be. In a destructor, such as that of Grain's shared
memory, it is ignored, so that Ctrl-C is lost; between the taking of a lock and its `with`, the lock stays taken.
"""

import gc
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Iterable, Iterator
from multiprocessing import connection, resource_tracker, util
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.structures import copied

T = TypeVar("T")


class BatchIterator(Iterator[T], Generic[T]):
    """Batches in order, loaded ahead. `close()`, which the end of the data calls too, stops the loading.

    An exception of the loading is raised in place of the batch and ends the data. After Ctrl-C in `next` the batch that
    was waited for comes next.
    """

    def __init__(self, dataset: Iterable[Any], from_workers: bool):
        # Queues of C code: an interrupt leaves them whole.
        self._requests: SimpleQueue[Any] = SimpleQueue()
        self._answers: SimpleQueue[T | BaseException | None] = SimpleQueue()
        # The end of an iterator that nobody closed is a request as well, made without a destructor of Python's.
        owner = weakref.ref(self, self._requests.put)
        arguments = (dataset, from_workers, self._requests, self._answers, owner)
        self._thread = threading.Thread(target=_load, args=arguments, name="batches", daemon=True)
        self._thread.start()

    def __next__(self) -> T:
        self._requests.put(_NEXT)
        answer = self._answered()
        if answer is None:
            self._answers.put(None)  # for whoever asks again
            self.close()
            raise StopIteration
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _answered(self) -> T | BaseException | None:
        while True:
            try:
                # Not for ever: a signal that comes right before the waiting does not end it.
                return self._answers.get(timeout=0.5)
            except Empty:
                pass

    def close(self) -> None:
        """Stop workers and threads; may be called twice."""
        _end(self._requests, self._thread)


_NEXT = "next"  # the request for a batch; every other one asks for the end


def _end(requests: SimpleQueue[Any], thread: threading.Thread) -> None:
    requests.put(None)
    thread.join()


def _load(
    dataset: Iterable[Any],
    from_workers: bool,
    requests: SimpleQueue[Any],
    answers: SimpleQueue[Any],
    owner: weakref.ref[Any],
) -> None:
    """Answer each request with a batch or an exception, and with None from the end on.

    Everything of Grain's happens here, its destructors too. `owner` is kept for what it calls.
    """
    del owner  # the thread has it among its arguments until it ends
    _block_interrupts()
    # Before Grain's own end of the processes, which must not come while they are in use here.
    at_exit = util.Finalize(None, _end, (requests, threading.current_thread()), exitpriority=2)
    try:
        _serve(dataset, from_workers, requests, answers)
    finally:
        if from_workers:
            # Grain's cycles of references keep the last batches in shared memory, which Python would report at exit.
            gc.collect()
        at_exit.cancel()
        answers.put(None)


def _serve(
    dataset: Iterable[Any],
    from_workers: bool,
    requests: SimpleQueue[Any],
    answers: SimpleQueue[Any],
) -> None:
    iterator: Any = None
    try:
        iterator = iter(dataset)
        # Without being asked for its state, Grain makes the workers with the first batch: none would start here.
        iterator.get_state()
        iterator.start_prefetch()
        while requests.get() == _NEXT:
            answers.put(_owned(next(iterator), from_workers))
    except StopIteration:
        pass
    except BaseException as error:
        answers.put(_explained(error))  # raised where the batch is asked for
    finally:
        if iterator is not None:
            iterator.close()


def _block_interrupts() -> None:
    """Block SIGINT in this thread, and in the threads and processes that it starts, from their first instruction on.

    Ctrl-C in a terminal reaches every process of the command: the one in front ends the others, which would each print
    a traceback of their own.
    """
    resource_tracker.ensure_running()  # started by whoever needs it first, it would lift the block
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])


def _owned(batch: T, from_workers: bool) -> T:
    """Copy a batch out of the memory shared with a worker, which can then be released."""
    return copied(batch) if from_workers else batch


def _explained(error: BaseException) -> BaseException:
    if not isinstance(error, RuntimeError) or "terminated unexpectedly" not in str(error):  # Grain's words
        return error
    explained = UserError(
        "A process that loads data was ended from outside, most likely because memory ran out; lower "
        f"data.num_workers or the batch size. ({error})"
    )
    explained.__cause__ = error
    return explained


def end_with_parent(index: int, count: int) -> None:
    """Make this process, worker `index` of `count`, end when the one that started it does, however that ended.

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
