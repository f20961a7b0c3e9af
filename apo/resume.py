"""Going on from the last checkpoint of a run: one that was killed after saving it, or that somebody starts again.

transformers looks whether max_steps is reached only after a step. Where max_steps does not end an epoch, such a run
would take one step too many, and save it as a checkpoint of its own.
"""

import torch


class ResumesWhole:
    """Mixin for a transformers Trainer: resumed at max_steps or later it ends as a whole run does, and all ranks go on
    from one step.

    Raises:
        ValueError: ranks stand at different steps, as nodes do that do not see the same checkpoints.
    """

    def _init_training_state(self, max_steps, num_update_steps_per_epoch, num_train_epochs, *args, **kwargs):
        place = super()._init_training_state(max_steps, num_update_steps_per_epoch, num_train_epochs, *args, **kwargs)
        step = torch.tensor([self.state.global_step], device=self.accelerator.device)
        steps = self.accelerator.gather(step).tolist()
        if len(set(steps)) > 1:
            raise ValueError(
                f"the ranks would go on from different steps ({', '.join(map(str, steps))}, by rank): the nodes do not "
                f"see the same checkpoints in {self.args.output_dir}. Keep output_dir on a disk that all nodes share"
            )
        return (num_train_epochs, 0) if self.state.global_step >= max_steps else place
