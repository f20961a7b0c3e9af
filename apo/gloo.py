"""The end of a process whose ranks talk by gloo (training on CPUs), without an abort.

gloo's threads drop the tensors of a finished collective a moment after the main thread went on. A tensor that Python
has seen needs the interpreter's lock for that; when the interpreter is on its way out by then, CPython 3.11 ends the
thread by a forced unwind, C++ answers with `terminate called without an active exception`, and a training that
succeeded ends with exit code 134. `destroy_process_group` does not wait for these threads.
"""

import time

PATIENCE = 0.5  # seconds; the threads need microseconds once they are scheduled


def wait_for_gloo() -> None:
    """Leave gloo's threads, if any, the interpreter's lock for PATIENCE seconds. To be registered with `atexit`."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized() and "gloo" in dist.get_backend():
        time.sleep(PATIENCE)
