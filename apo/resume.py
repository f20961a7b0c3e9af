"""Beginning a run, and going on from its last checkpoint: one that was killed after saving it, or is started again.

transformers looks whether max_steps is reached only after a step. Where max_steps does not end an epoch, such a run
would take one step too many, and save it as a checkpoint of its own.
"""

from collections.abc import Sized
from typing import Any

import torch
from swift.utils import get_logger

logger = get_logger()


def left_out(rows: Any, ranks: int) -> str | None:
    """What to tell of rows that ranks cannot share evenly; None where there are none, or where rows are streamed.

    ms-swift's sampler gives each rank len(rows) // ranks of them, of the same first ones in every epoch.
    """
    over = len(rows) % ranks if isinstance(rows, Sized) else 0
    if not over:
        return None
    return f"the last {over} of {len(rows)} rows are never trained on: {ranks} processes cannot share them evenly"


class ResumesWhole:
    """Mixin for a transformers Trainer: resumed at max_steps or later it ends as a whole run does, and all ranks go on
    from one step.

    Raises:
        ValueError: ranks stand at different steps, as nodes do that do not see the same checkpoints.
    """

    def _init_training_state(self, max_steps, num_update_steps_per_epoch, num_train_epochs, *args, **kwargs):
        told = left_out(self.train_dataset, self.accelerator.num_processes)
        if told and self.is_world_process_zero():
            logger.warning(told)
        place = super()._init_training_state(max_steps, num_update_steps_per_epoch, num_train_epochs, *args, **kwargs)
        step = torch.tensor([self.state.global_step], device=self.accelerator.device)
        steps = self.accelerator.gather(step).tolist()
        if len(set(steps)) > 1:
            raise ValueError(
                f"the ranks would go on from different steps ({', '.join(map(str, steps))}, by rank): the nodes do not "
                f"see the same checkpoints in {self.args.output_dir}. Keep output_dir on a disk that all nodes share"
            )
        return (num_train_epochs, 0) if self.state.global_step >= max_steps else place
