"""ms-swift templates that read placeholder ids from the processor and encode a study as one group.

Registered under the stock template names, so a checkpoint's args.json keeps naming a template that stock ms-swift has;
outside preference training the only change is where the placeholder ids come from.
"""

from typing import Any

from swift.template import TEMPLATE_MAPPING
from swift.template.template_inputs import TemplateInputs
from swift.template.templates.qwen import Qwen2_5VLTemplate, Qwen2VLTemplate, Qwen3VLTemplate

from apo import group, options
from apo.attention import SHAPES_KEY


class GroupTemplateMixin:
    """Adds the group encoding to a Qwen-VL template.

    Rows with `negative_messages` become groups; all other preference rows keep the stock encoding, so stock DPO runs
    unchanged under the same plugin.
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
        if inputs.negative:
            return group.encode_group(self, inputs)
        return super()._rlhf_encode(inputs, check_rejected)

    def _rlhf_data_collator(self, batch: list[dict[str, Any]], *, padding_to: int | None = None, **prefixes):
        grouped = ["responses" in row for row in batch]
        if not any(grouped):
            return super()._rlhf_data_collator(batch, padding_to=padding_to, **prefixes)
        if not all(grouped):
            raise ValueError("a micro-batch mixes rows with negative_messages and rows without; use one kind of row")
        chosen = options.resolve()
        shared = chosen.layout == "shared" or (
            chosen.layout == "auto" and group.token_ratio(batch) >= chosen.shared_min_ratio
        )
        inputs, layout = (group.collate_shared if shared else group.collate_rows)(self, batch)
        inputs[group.BATCH_KEY] = group.pack_batch(layout._replace(keys=group.batch_keys(batch)))
        return inputs

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
    """Let every template name that uses one of the three stock classes use its subclass instead; safe to repeat."""
    for meta in TEMPLATE_MAPPING.values():
        meta.template_cls = SUBCLASSES.get(meta.template_cls, meta.template_cls)
