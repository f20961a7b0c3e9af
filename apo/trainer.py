"""ms-swift's DPO trainer with the APO objective: N negatives a study in one Plackett-Luce loss.

Encode (apo/group.py), forward and log-probs (apo/forward.py), and loss (apo/loss.py) are separate; this file joins them
to the trainer that ms-swift already has: arguments, reference model, accumulation, logging, saving and resuming are
its own.
"""

from collections.abc import Sized
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import transformers
from peft import PeftModel
from swift.rlhf_trainers import DPOTrainer
from swift.utils import get_logger
from torch import nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm
from transformers.trainer_utils import TrainOutput

from apo import group, options
from apo.forward import ResponseLogps, check_template, forward_logps, settle_attention
from apo.loss import LOSSES, group_metrics
from apo.reference_cache import ReferenceCache, config_digest, reference_parameters, weights_digest
from apo.refusals import (
    ALLOWED_IN_CRITIQUE,
    refuse_critique_settings,
    refuse_moving_reference,
    refuse_unread_options,
)
from apo.resume import ResumesWhole
from apo.vision import has_adapter, is_frozen, one_look, same_weights
from apo.windows import use_window_attention

LOSS_TYPE = "plackett_luce"  # the published one; the others of apo.loss.LOSSES are for comparison
logger = get_logger()


def loss_types(args) -> list[str]:
    """--loss_type as a list, whether one or several were given."""
    return args.loss_type if isinstance(args.loss_type, list) else [args.loss_type]


def check_arguments(args, template) -> None:
    """Refuse what the objective cannot be combined with, before any step.

    Raises:
        ValueError: the setting, the reason and the flag to change.
    """
    if len(loss_types(args)) > 1:
        raise ValueError(f"--loss_type {LOSS_TYPE} stands alone; a likelihood term on the consensus is --rpo_alpha")
    if not args.beta or args.beta <= 0:
        raise ValueError(f"--beta must be positive, got {args.beta}")
    if not 0 <= args.label_smoothing < 0.5:
        raise ValueError(f"--label_smoothing must be in [0, 0.5), got {args.label_smoothing}")
    if args.rpo_alpha is not None and not args.rpo_alpha >= 0:
        raise ValueError(f"--rpo_alpha must not be negative, got {args.rpo_alpha}")
    for flag in ("reference_free", "use_weighting", "ld_alpha", "loss_weights"):
        if getattr(args, flag, None):
            raise ValueError(f"--{flag} has no meaning for --loss_type {LOSS_TYPE}; leave it out")
    refuse_critique_settings({name: getattr(args, name, None) for name in ALLOWED_IN_CRITIQUE})
    check_template(template, args)


class APOTrainer(ResumesWhole, DPOTrainer):
    """`--loss_type plackett_luce` trains APO on groups, `pairwise` on their pairs (apo/loss.py); with any other loss
    type this is the stock DPO trainer."""

    def __init__(self, model=None, ref_model=None, *_args, **kwargs):
        args, template = kwargs["args"], kwargs["template"]
        self.groups = next((name for name in loss_types(args) if name in LOSSES), None)
        if self.groups:
            check_arguments(args, template)
            self.options = options.resolve()
            if self.options.reference_free and ref_model is not None:
                ref_model.to("meta")  # ms-swift loads a copy for full fine-tuning and holds on to it: its memory goes
                ref_model = None
        else:
            refuse_unread_options(options.resolve())
        super().__init__(model, ref_model, *_args, **kwargs)
        if self.groups:
            self._check_reference()
            self.attention = settle_attention(self._models(), self.options)
            for each in self._models():
                use_window_attention(each)
            self._settle_vision()
            self.cache = self._open_cache()
            if self.is_world_process_zero():
                options.write_options(
                    self.options,
                    args.output_dir,
                    loss_type=self.groups,
                    beta=self.beta,
                    rpo_alpha=args.rpo_alpha,
                    label_smoothing=args.label_smoothing,
                    attention_used=self.attention._asdict(),
                    vision_encodes_shared_with_reference=bool(self.shared_towers),
                )

    def _check_reference(self) -> None:
        if self.options.reference_free or self.ref_model is not None:
            return
        trained = (name for name, parameter in self.model.named_parameters() if parameter.requires_grad)
        refuse_moving_reference(trained, is_adapter=isinstance(self.model, PeftModel))
        if not self.ref_adapter_name:  # else the adapters that were given decide what the base weights are
            for config in self.model.peft_config.values():
                refuse_critique_settings({"init_weights": getattr(config, "init_lora_weights", None)})

    def _models(self) -> list[nn.Module]:
        """The policy and, if it is a copy of its own, the reference, without their distributed wrappers."""
        return [self.accelerator.unwrap_model(m) for m in (self.model, self.ref_model) if m is not None]

    def _settle_vision(self) -> None:
        towers = [getattr(model, "visual", None) for model in self._models()]
        shareable = self.options.one_look and not self.options.reference_free
        shareable = shareable and all(tower is not None and is_frozen(tower) for tower in towers)
        # With an adapter as the reference, a tower that carries a part of it looks differently for either.
        shareable = shareable and not (self.ref_adapter_name and has_adapter(towers[0]))
        shareable = shareable and all(same_weights(towers[0], t) for t in towers[1:])
        self.shared_towers = towers if shareable else []
        if self.options.reference_free:
            how = "no reference; the vision tower runs for the policy alone"
        elif shareable:
            how = "the vision tower is frozen and runs once for policy and reference"
        else:
            how = "the vision tower runs separately for policy and reference"
        logger.info(f"APO: {how}")

    def _forward_logps(self, model: nn.Module, inputs: dict[str, Any], batch: group.Batch) -> ResponseLogps:
        unwrapped = self.accelerator.unwrap_model(model)
        return forward_logps(model, unwrapped, inputs, batch, self.attention, self.options.chunk_size)

    @contextmanager
    def _reference(self):
        """Yield the frozen reference: its own copy, or the policy without its adapter."""
        autocast = torch.autocast(self.accelerator.device.type) if self._peft_has_been_casted_to_bf16 else nullcontext()
        with torch.no_grad(), autocast:
            if self.ref_model is not None:
                yield self.ref_model
            else:
                with self.null_ref_context():
                    # Without its distributed wrapper: this pass has no gradients to synchronise.
                    yield self.accelerator.unwrap_model(self.model)

    def _reference_sums(self, inputs: dict[str, Any], batch: group.Batch) -> torch.Tensor:
        """[S] float64 log-probs of the responses under the reference, from the cache where they are in it.

        Zeros if there is to be no reference: a constant of a study changes no probability among its responses.
        """
        if self.options.reference_free:
            return torch.zeros(sum(batch.group_sizes), dtype=torch.float64, device=batch.index.device)
        if self.cache is None:
            with self._reference() as model:
                return self._forward_logps(model, inputs, batch).sums
        counts = torch.bincount(batch.response, minlength=sum(batch.group_sizes)).tolist()
        found = self.cache.lookup(batch.keys, counts)
        if found is not None:
            return torch.tensor(found, dtype=torch.float64, device=batch.index.device)
        with self._reference() as model:
            sums = self._forward_logps(model, inputs, batch).sums
        self.cache.append(batch.keys, sums.tolist(), counts)
        return sums

    def _open_cache(self) -> ReferenceCache | None:
        if not self.options.cache_dir:
            return None
        reference = self._models()[-1]
        parameters = reference_parameters(reference, self.ref_adapter_name)
        identity = {
            "weights": weights_digest(parameters),
            "config": config_digest(reference, self.ref_adapter_name),
            "dtype": str(reference.dtype),
            "autocast": str(self._peft_has_been_casted_to_bf16 or self.accelerator.mixed_precision),
            "attention": f"{self.options.layout} {self.attention.kind} {self.attention.implementation}",
            "template": self.template.template_meta.template_type,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        cache = ReferenceCache(self.options.cache_dir, identity)
        state = "complete" if cache.complete else f"{len(cache.logps)} responses so far"
        logger.info(f"APO: reference cache {cache.folder}: {state}")
        return cache

    def train(self, *args, **kwargs):
        if self.groups and self.options.cache_only:
            return self._fill_cache()
        result = super().train(*args, **kwargs)
        if self.groups and self.cache is not None:
            self.cache.sync()
            logger.info(f"APO: reference cache: {self.cache.hits} responses read, {self.cache.computed} computed")
        return result

    def _share(self, dataset, batch_size: int) -> DataLoader:
        """This rank's rows of a data set; stock loaders leave out, or give twice, what ranks cannot share evenly."""
        ranks = range(self.accelerator.process_index, len(dataset), self.accelerator.num_processes)
        workers = self.args.dataloader_num_workers
        return DataLoader(Subset(dataset, ranks), batch_size, collate_fn=self.data_collator, num_workers=workers)

    def _fill_cache(self) -> TrainOutput:
        """Compute and verify the reference log-probs of all training and validation rows; each rank takes its share."""
        if not isinstance(self.train_dataset, Sized):
            raise ValueError("apo_cache_only visits every row once, and a stream has no end; leave --streaming out")
        self.template.register_post_encode_hook(self._models())
        if self.ref_model is None:
            # As training would have done later: moved, and its forward under autocast (not what comes before it, as the
            # vision tower's hook), or the numbers would be others.
            model = self.accelerator.prepare_model(self.accelerator.unwrap_model(self.model), evaluation_mode=True)
            if self.is_deepspeed_enabled and model.dtype == torch.float32 and self.accelerator.mixed_precision != "no":
                raise ValueError(
                    "apo_cache_only under DeepSpeed, which computes in another dtype than the weights': give "
                    "--torch_dtype bfloat16 (or float16), or fill the cache without --deepspeed"
                )
        loaders = [self._share(self.train_dataset, self.args.per_device_train_batch_size)]
        if self.eval_dataset is not None:
            loaders.append(self._share(self.eval_dataset, self.args.per_device_eval_batch_size))
        seen: set[str] = set()
        visited = 0
        for loader in loaders:
            for inputs in tqdm(loader, desc="reference", disable=not self.is_world_process_zero()):
                inputs = dict(self._prepare_inputs(inputs))
                batch = group.unpack_batch(inputs)
                self._reference_sums(inputs, batch)
                seen.update(batch.keys)
                visited += len(batch.group_sizes)
        self.cache.sync()
        self.accelerator.wait_for_everyone()
        self.cache.reread()
        lost = len(seen - self.cache.logps.keys())
        studies = len(self.train_dataset) + len(self.eval_dataset or ())
        totals = torch.tensor([lost, visited], device=self.accelerator.device)
        lost, visited = self.accelerator.reduce(totals, reduction="sum").tolist()
        if lost or visited < studies:
            raise ValueError(
                f"reference cache {self.cache.folder}: {lost} response(s) not found again, {visited} of {studies} "
                "studies visited; are all ranks on one file system? Run it again"
            )
        if self.is_world_process_zero():
            self.cache.mark_complete()
        logger.info(f"APO: reference cache {self.cache.folder} is complete: {len(self.cache.logps)} responses")
        return TrainOutput(0, 0.0, {})

    def get_batch_samples(self, *args, **kwargs):
        """The micro-batches of a step; how many studies they hold is kept for `_mean`."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        self._studies_a_step = sum(len(b[group.BATCH_KEY]["group_sizes"]) for b in batches if group.BATCH_KEY in b)
        return batches, items

    def _mean(self, losses: torch.Tensor, train_eval: str) -> torch.Tensor:
        """Mean of a micro-batch's losses. In training its share of the step's mean, times the micro-batches that it
        will be divided by: the last one of an epoch may not be full, and its studies weigh no more than the others."""
        mean = losses.mean()
        if train_eval == "train":
            mean = mean * (len(losses) * self.current_gradient_accumulation_steps / self._studies_a_step)
        return mean

    def get_batch_loss_metrics(self, model, batch, train_eval="train", pair_loss_scale=None):
        """Loss of a micro-batch of studies (`_mean`), and sum and count of each of its metrics (`_shares`)."""
        if not self.groups:
            if group.BATCH_KEY in batch:
                raise ValueError(
                    f"rows with negative_messages are trained by --loss_type {LOSS_TYPE}, not {self.loss_type}"
                )
            return super().get_batch_loss_metrics(model, batch, train_eval, pair_loss_scale)
        inputs = dict(batch)
        if group.BATCH_KEY not in inputs:
            raise ValueError(
                f"--loss_type {LOSS_TYPE} trains on rows with negative_messages; these rows have none "
                "(a single rejected_response belongs into negative_messages as a list of one)"
            )
        layout = group.unpack_batch(inputs)
        with one_look(self.shared_towers) if self.shared_towers else nullcontext():
            reference_sums = self._reference_sums(inputs, layout)
            policy = self._forward_logps(model, inputs, layout)
        result = LOSSES[self.groups](
            policy.sums,
            reference_sums,
            layout.group_sizes,
            beta=self.beta,
            label_smoothing=self.args.label_smoothing,
            lengths=policy.counts if self.options.length_normalised else None,
            weights=None if layout.weights is None else reference_sums.new_tensor(layout.weights),
        )
        losses = result.losses
        metrics = group_metrics(result)
        chosen = torch.tensor([0, *layout.group_sizes[:-1]], device=losses.device).cumsum(0)
        # Length-normalised and averaged over studies, as in Pang et al. 2024 (arXiv 2404.19733), eq. 1.
        nll = -(policy.sums[chosen] / policy.counts[chosen]).float()
        if self.args.rpo_alpha is not None:
            losses = losses + self.args.rpo_alpha * nll
            metrics["nll_loss"] = nll.detach()
        if train_eval == "eval":
            # transformers' own is made of means by micro-batch, and some of these hold studies given twice (`_shares`).
            metrics["loss"] = losses.detach()
        sizes = torch.tensor(layout.group_sizes, device=losses.device)
        sums = policy.sums.detach()
        metrics["logps/chosen"] = sums[chosen]
        shares = {key: torch.stack([v.double(), torch.ones_like(v.double())], 1) for key, v in metrics.items()}
        study = torch.arange(len(sizes), device=losses.device).repeat_interleave(sizes)
        negatives = torch.stack([sums.index_fill(0, chosen, 0.0), torch.ones_like(sums).index_fill(0, chosen, 0.0)], 1)
        shares["logps/rejected"] = negatives.new_zeros(len(sizes), 2).index_add(0, study, negatives)
        return self._mean(losses, train_eval), self._shares(shares, train_eval)

    def _shares(self, by_study: dict[str, torch.Tensor], train_eval: str) -> dict[str, torch.Tensor]:
        """Sum and count, [2], of each metric of a micro-batch; in training of this rank's studies, in evaluation of
        all ranks', without those that a loader gave twice to make the ranks even. `by_study`: [S, 2] each."""
        if train_eval == "train":
            return {key: value.sum(0) for key, value in by_study.items()}
        table = self.accelerator.gather_for_metrics(torch.stack(list(by_study.values()), 1)).sum(0)
        return {f"eval_{key}": row for key, row in zip(by_study, table, strict=True)}

    def log(self, logs, start_time=None):
        """Divide once: over all studies since the last log, whatever micro-batch, step or rank they came in."""
        mode = "train" if "loss" in logs else "eval"
        stored = self._stored_metrics[mode]
        if self.groups and stored:
            totals = torch.stack([torch.stack(parts).sum(0) for parts in stored.values()])
            if mode == "train":
                totals = self.accelerator.reduce(totals, reduction="sum")
            means = (totals[:, 0] / totals[:, 1]).tolist()
            stored.update({key: [mean] for key, mean in zip(list(stored), means, strict=True)})
        super().log(logs, start_time)

    def prediction_step(self, model, inputs, prediction_loss_only=False, *args, **kwargs):
        if not self.groups:
            return super().prediction_step(model, inputs, prediction_loss_only, *args, **kwargs)
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            loss, metrics = self.get_batch_loss_metrics(model, inputs, train_eval="eval")
        self.store_metrics(metrics, train_eval="eval")
        return loss.detach(), None, None
