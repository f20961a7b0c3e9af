"""Shapes of the Qwen2.5-VL students: released sizes, a checkpoint's config.json, and the model without weights.

The model is built on the meta device by transformers' own class, so that its parameters and linear layers are the real
ones and nothing is allocated.
"""

import json
import re
from pathlib import Path
from typing import NamedTuple

from data.errors import UserError

PATCH = 14  # pixels on a side
PATCHES_A_TOKEN = 4  # 2 x 2 patches are merged into one token of the decoder
PIXELS_A_TOKEN = PATCHES_A_TOKEN * PATCH * PATCH

# config.json of Qwen/Qwen2.5-VL-{size}-Instruct: hidden, layers, heads, key-value heads, intermediate, vocabulary, tied
# embeddings, and the vision tower's intermediate size. The rest of the vision tower is the same for all.
RELEASED = {
    "3B": (2048, 36, 16, 2, 11008, 151936, True, 3420),
    "7B": (3584, 28, 28, 4, 18944, 152064, False, 3420),
    "32B": (5120, 64, 40, 8, 27648, 152064, False, 3456),
    "72B": (8192, 80, 64, 8, 29568, 152064, False, 3456),
}

# What a config.json must have of each part, each at least 1.
SIZES = {
    "text_config": (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
        "vocab_size",
    ),
    "vision_config": (
        "hidden_size",
        "depth",
        "num_heads",
        "intermediate_size",
        "out_hidden_size",
        "in_channels",
        "patch_size",
        "temporal_patch_size",
        "spatial_merge_size",
        "window_size",
    ),
}


class Shape(NamedTuple):
    """Sizes that the formulas need. `query`, `key`: features of all query heads, of all key-value heads (times two for
    keys and values). `patch`: inputs of one patch. `window`: patches in a vision window; `full`: vision layers that
    attend to the whole film."""

    hidden: int
    layers: int
    heads: int
    query: int
    key: int
    intermediate: int
    vocab: int
    vision_hidden: int
    vision_layers: int
    vision_intermediate: int
    patch: int
    window: int
    full: int


class Counts(NamedTuple):
    """Parameters. `head` is part of `language` where it is tied to the embedding; `targets` are LoRA's linear layers
    by name (q_proj, ...) and `adapter` the parameters that LoRA adds to them."""

    language: int
    head: int
    tied: bool
    vision: int
    aligner: int
    targets: dict[str, int]
    adapter: int

    @property
    def total(self) -> int:
        return self.language + self.vision + self.aligner + (0 if self.tied else self.head)


def released_config(size: str):
    """transformers' configuration of a released size. Raises UserError for a size that there is not."""
    from transformers import Qwen2_5_VLConfig

    if size.upper() not in RELEASED:
        raise UserError(f"--model-size {size}: unknown; Qwen2.5-VL was released as {', '.join(RELEASED)}")
    hidden, layers, heads, kv_heads, intermediate, vocab, tied, vision = RELEASED[size.upper()]
    text = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        # Rotary frequencies for time, height and width.
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }
    tower = {"hidden_size": 1280, "intermediate_size": vision, "num_heads": 16, "out_hidden_size": hidden}
    return Qwen2_5_VLConfig(text_config=text, vision_config=tower, tie_word_embeddings=tied)


def folder_config(folder: Path):
    """transformers' configuration of a checkpoint folder. Raises UserError unless it is a full Qwen2.5-VL, and for a
    size under 1."""
    from transformers import Qwen2_5_VLConfig

    path = folder / "config.json"
    if not path.is_file():
        adapter = (folder / "adapter_config.json").is_file()
        what = "is a LoRA adapter, not a model" if adapter else "holds no config.json"
        raise UserError(f"model {folder}: {what}; pass a full checkpoint, or --model-size {'|'.join(RELEASED)}")
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        kind = written.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not readable as a JSON object ({error}); copy it completely") from None
    if kind != "qwen2_5_vl":
        raise UserError(f"{path}: model_type {kind}; the planner knows the layers of qwen2_5_vl only")
    try:
        config = Qwen2_5_VLConfig.from_json_file(path)
    except Exception as error:
        # huggingface_hub's own validation errors, which differ by version
        raise UserError(f"{path}: refused by transformers ({str(error).splitlines()[0]}); copy it completely") from None
    for part, names in SIZES.items():
        for name in names:
            size = getattr(getattr(config, part), name)
            if size < 1:
                # Released checkpoints keep the sizes of the text at the top.
                where = f" of {part}" if part in written else ""
                raise UserError(f"{path}: {name}{where} is {size}, must be at least 1; copy it completely")
    return config


def size_in_name(name: str) -> str | None:
    """ "7B" for Qwen/Qwen2.5-VL-7B-Instruct or runs/sft_qwen2_5_vl_7b/merged; None where no size is named."""
    found = re.search(r"qwen2[._]5[-_]?vl[-_](\d+)b", name.lower())
    size = f"{found[1]}B" if found else None
    return size if size in RELEASED else None


def shape_of(config) -> Shape:
    text, vision = config.text_config, config.vision_config
    head = text.hidden_size // text.num_attention_heads
    return Shape(
        hidden=text.hidden_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        query=text.num_attention_heads * head,
        key=text.num_key_value_heads * head,
        intermediate=text.intermediate_size,
        vocab=text.vocab_size,
        vision_hidden=vision.hidden_size,
        vision_layers=vision.depth,
        vision_intermediate=vision.intermediate_size,
        patch=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
        window=(vision.window_size // vision.patch_size) ** 2,
        full=sum(layer < vision.depth for layer in vision.fullatt_block_indexes),
    )


def build(config):
    """The model of a configuration on the meta device: every layer and shape, no weights."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    with torch.device("meta"):
        return Qwen2_5_VLForConditionalGeneration(config)


def lora_targets(model, *, freeze_vit: bool = True, freeze_aligner: bool = True) -> list[str]:
    """Full names of the layers that ms-swift's `target_modules all-linear` gives an adapter: every linear layer of what
    is not frozen, the head excepted."""
    from torch import nn

    names = []
    for name, module in model.named_modules():
        part = part_of(name)
        frozen = {"language": False, "vision": freeze_vit, "aligner": freeze_aligner, "head": True}[part]
        if isinstance(module, nn.Linear) and not frozen:
            names.append(name)
    return names


def part_of(name: str) -> str:
    """ "vision", "aligner", "head" or "language" for the name of a module or parameter."""
    for start, part in (("model.visual.merger", "aligner"), ("model.visual", "vision"), ("lm_head", "head")):
        if name.startswith(start):
            return part
    return "language"


def count(model, rank: int, *, freeze_vit: bool = True, freeze_aligner: bool = True) -> Counts:
    """Parameters by part and what LoRA of this rank adds."""
    parts = dict.fromkeys(("language", "vision", "aligner", "head"), 0)
    for name, parameter in model.named_parameters():
        parts[part_of(name)] += parameter.numel()
    head = model.get_output_embeddings().weight
    targets: dict[str, int] = {}
    adapter = 0
    for name in lora_targets(model, freeze_vit=freeze_vit, freeze_aligner=freeze_aligner):
        layer = model.get_submodule(name)
        parent, _, kind = name.rpartition(".")
        if kind.isdigit():
            kind = f"{parent.rpartition('.')[2]}.{kind}"
        targets[kind] = targets.get(kind, 0) + 1
        adapter += rank * (layer.in_features + layer.out_features)
    tied = head is model.get_input_embeddings().weight
    return Counts(parts["language"], head.numel(), tied, parts["vision"], parts["aligner"], targets, adapter)
