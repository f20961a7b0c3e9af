"""A pool of worker processes that neither Ctrl-C nor the end of its parent can leave behind, nor hang."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import resource_tracker


@contextlib.contextmanager
def held_back(*numbers: signal.Signals) -> Iterator[None]:
    """Hold signals back from this thread, and from processes that it starts, until the end of the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Pool(ProcessPoolExecutor):
    """Workers are started by `submit`, and never see SIGINT: a terminal sends it to them, too, and a worker that it
    ends halfway can leave the pool waiting for ever."""

    def submit(self, /, *args, **kwargs):
        with held_back(signal.SIGINT):
            return super().submit(*args, **kwargs)


def _end_with_parent() -> None:
    """Let this worker end when its parent was killed: waiting for a task, it would not notice, and wait for ever."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A `ProcessPoolExecutor` of `workers` spawned processes. Left by an exception, a signal's too, it drops what has
    not begun and waits for what has; a second signal (scripts/stages.py passes one on) takes effect after that."""
    # It lifts SIGINT's block when it starts, which would be within the first `submit`.
    resource_tracker.ensure_running()
    # spawn: the caller may have threads (torch), which a forked process must not inherit.
    pool = _Pool(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_end_with_parent)
    try:
        yield pool
    finally:
        with held_back(signal.SIGINT, signal.SIGTERM):
            pool.shutdown(cancel_futures=True)
