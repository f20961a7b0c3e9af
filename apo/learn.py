"""Supervised learning on all trajectories of a study behind one film and prompt.

A row with `positive_messages` holds every trajectory of its study. The loss and its gradients are those of the separate
rows of the same batch: negative log-likelihood summed over response tokens and divided by their number in the whole
optimizer step, as ms-swift does. What differs from the shuffled recipe is the order: a step sees few films with all
their trajectories, not many films with one each.
"""

from typing import Any

import torch
from swift.trainers import Seq2SeqTrainer

from apo import group, options
from apo.forward import check_template, forward_logps, settle_attention
from apo.refusals import (
    ALLOWED_IN_SHARED_LEARN,
    READ_IN_SHARED_LEARN,
    refuse_shared_learn_settings,
    refuse_unread_options,
)
from apo.resume import ResumesWhole
from apo.windows import use_window_attention


class LearnTrainer(ResumesWhole, Seq2SeqTrainer):
    """ms-swift's supervised trainer: rows with `positive_messages` are trained as groups, all others as ever. The
    vision tower takes its windows by size for either."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        use_window_attention(self.accelerator.unwrap_model(self.model))

    def _settle(self) -> None:
        check_template(self.template, self.args)
        refuse_shared_learn_settings({name: getattr(self.args, name, None) for name in ALLOWED_IN_SHARED_LEARN})
        self.options = options.resolve()
        refuse_unread_options(self.options, READ_IN_SHARED_LEARN)
        self.attention = settle_attention([self.accelerator.unwrap_model(self.model)], self.options)
        if self.is_world_process_zero():
            used = self.attention._asdict()
            options.write_options(self.options, self.args.output_dir, attention_used=used)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        if group.BATCH_KEY in inputs:
            return self._prepare_input(inputs)
        return super()._prepare_inputs(inputs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if group.BATCH_KEY not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not hasattr(self, "attention"):
            self._settle()
        inputs = {key: value for key, value in inputs.items() if key != "labels"}
        batch = group.unpack_batch(inputs)
        unwrapped = self.accelerator.unwrap_model(model)
        logps = forward_logps(model, unwrapped, inputs, batch, self.attention, self.options.chunk_size)
        loss = -logps.tokens.sum() / (len(batch.targets) if num_items_in_batch is None else num_items_in_batch)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        return (loss, None) if return_outputs else loss

    def prediction_step(self, model, inputs, prediction_loss_only, *args, **kwargs):
        if group.BATCH_KEY not in inputs:
            return super().prediction_step(model, inputs, prediction_loss_only, *args, **kwargs)
        with torch.no_grad():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach(), None, None
