"""Removal of old checkpoints under a clock that was set back.

transformers takes the checkpoint whose folder changed last for the newest. When the clock has been set back since the
earlier ones were saved, that is one of them, and the checkpoint just saved counts as the oldest and is deleted.
"""

import os
import time
from pathlib import Path

from transformers import trainer_utils


def rotate_checkpoints(output_dir, *args, **kwargs) -> None:
    """transformers' function of that name, after checkpoints from the future were dated back, in the order of time."""
    now = time.time()
    found = [(path.stat().st_mtime, path) for path in Path(output_dir).glob("checkpoint-*") if path.is_dir()]
    future = sorted(one for one in found if one[0] > now + 1)
    for back, (_, path) in enumerate(reversed(future), 1):
        os.utime(path, (now - 60 * back, now - 60 * back))
    trainer_utils.rotate_checkpoints(output_dir, *args, **kwargs)
