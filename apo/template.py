"""ms-swift templates that read placeholder ids from the processor and encode a study as one group.

Registered under the stock template names, so a checkpoint's args.json keeps naming a template that stock ms-swift has;
outside preference training the only change is where the placeholder ids come from.
"""

from typing import Any

import torch
from swift.dataset import RowPreprocessor
from swift.template import TEMPLATE_MAPPING
from swift.template.template_inputs import TemplateInputs
from swift.template.templates.qwen import Qwen2_5VLTemplate, Qwen2VLTemplate, Qwen3VLTemplate
from swift.utils import get_logger

from apo import group, options
from apo.attention import SHAPES_KEY
from apo.reference_cache import response_keys

logger = get_logger()
WEIGHTS = "negative_weights"  # a row's weights of its negatives in the loss, one for each (apo/loss.py)


class GroupTemplateMixin:
    """Adds the group encoding to a Qwen-VL template.

    In preference training a row with `negative_messages` is a group: consensus first, then the negatives. In supervised
    training a row with `positive_messages` is one: all its responses are trained on. Every other row keeps the stock
    encoding, so stock training runs unchanged under the same plugin.
    """

    def init_processor(self, processor) -> None:
        super().init_processor(processor)
        # The stock class attributes are the ids of the Qwen vocabulary. Under another vocabulary they name ordinary
        # tokens: training then would go wrong silently (no placeholder is expanded into image tokens).
        for kind in ("image", "video"):
            token_id = getattr(processor, f"{kind}_token_id", None)
            if token_id is not None:
                setattr(self, f"{kind}_token_id", token_id)

    def _rlhf_encode(self, inputs: TemplateInputs, check_rejected: bool = True) -> dict[str, Any]:
        if not inputs.negative:
            return super()._rlhf_encode(inputs, check_rejected)
        encoded = group.encode_group(self, inputs.chosen, inputs.negative, "negative_messages")
        if options.resolve().cache_dir:
            encoded["response_keys"] = response_keys(encoded)
        return encoded

    @torch.inference_mode()
    def encode(self, inputs, return_template_inputs: bool = False, return_length: bool = False) -> dict[str, Any]:
        if self.mode != "train" or not isinstance(inputs, dict) or inputs.get("positive_messages") is None:
            encoded = super().encode(inputs, return_template_inputs, return_length)
            if self.mode == "rlhf" and isinstance(inputs, dict) and inputs.get(WEIGHTS) is not None:
                encoded[WEIGHTS] = [float(weight) for weight in inputs[WEIGHTS]]
            return encoded
        study = TemplateInputs.from_dict(inputs)
        encoded = group.encode_group(self, study.chosen, study.positive, "positive_messages")
        length = encoded.pop("length")
        return {**encoded, "lengths": [length]} if return_length else encoded

    def _rlhf_data_collator(self, batch: list[dict[str, Any]], *, padding_to: int | None = None, **prefixes):
        if self._are_groups(batch):
            return group.collate(self, batch, options.resolve())
        return super()._rlhf_data_collator(batch, padding_to=padding_to, **prefixes)

    def _data_collator(self, batch: list[dict[str, Any]], *, padding_to: int | None = None) -> dict[str, Any]:
        if self._are_groups(batch):
            inputs = group.collate(self, batch, options.resolve())
            # transformers counts what a step trains on in `labels`, without the first, which nothing predicts.
            targets = inputs[group.BATCH_KEY]["targets"]
            inputs["labels"] = torch.cat([targets.new_tensor([-100]), targets])[None]
            return inputs
        return super()._data_collator(batch, padding_to=padding_to)

    def print_inputs(self, inputs: dict[str, Any]) -> None:
        """Log the first row's lengths. ms-swift would log its prompt and answers, which are patients' text."""
        lengths = {key: len(value) for key, value in inputs.items() if key.endswith("input_ids")}
        if "responses" in inputs:
            lengths["responses"] = [len(ids) for ids in inputs["responses"]]
        logger.info(f"first row, tokens: {lengths} (texts are not logged)")

    @staticmethod
    def _are_groups(batch: list[dict[str, Any]]) -> bool:
        grouped = ["responses" in row for row in batch]
        if any(grouped) and not all(grouped):
            raise ValueError(
                "a micro-batch mixes studies with single rows; every row needs negative_messages (critique) or "
                "positive_messages (learn), or none may have them"
            )
        return all(grouped)

    def _post_encode(self, model, inputs: dict[str, Any]) -> dict[str, Any]:
        encoded = super()._post_encode(model, inputs)
        # ms-swift's forward hook passes on only the arguments it knows and those returned here.
        if SHAPES_KEY in inputs:
            encoded[SHAPES_KEY] = inputs[SHAPES_KEY]
        return encoded


class ApoQwen2VLTemplate(GroupTemplateMixin, Qwen2VLTemplate):
    pass


class ApoQwen2_5VLTemplate(GroupTemplateMixin, Qwen2_5VLTemplate):
    pass


class ApoQwen3VLTemplate(GroupTemplateMixin, Qwen3VLTemplate):
    pass


SUBCLASSES = {
    Qwen2VLTemplate: ApoQwen2VLTemplate,
    Qwen2_5VLTemplate: ApoQwen2_5VLTemplate,
    Qwen3VLTemplate: ApoQwen3VLTemplate,
}


def register_templates() -> None:
    """Let every template name that uses one of the three stock classes use its subclass instead, and let rows keep
    the weights of their negatives; safe to repeat."""
    for meta in TEMPLATE_MAPPING.values():
        meta.template_cls = SUBCLASSES.get(meta.template_cls, meta.template_cls)
    if WEIGHTS not in RowPreprocessor.standard_keys:  # ms-swift drops the columns that it does not know
        RowPreprocessor.standard_keys.append(WEIGHTS)
