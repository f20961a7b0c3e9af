"""Going on from the last checkpoint of a run: one that was killed after saving it, or that somebody starts again.

transformers looks whether max_steps is reached only after a step. Where max_steps does not end an epoch, such a run
would take one step too many, and save it as a checkpoint of its own.
"""


class EndsAtMaxSteps:
    """Mixin for a transformers Trainer: resumed at max_steps or later, it ends as a whole run does."""

    def _init_training_state(self, max_steps, num_update_steps_per_epoch, num_train_epochs, *args, **kwargs):
        place = super()._init_training_state(max_steps, num_update_steps_per_epoch, num_train_epochs, *args, **kwargs)
        return (num_train_epochs, 0) if self.state.global_step >= max_steps else place
