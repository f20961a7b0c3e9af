"""Tiny students of the other families that the template serves: Qwen2-VL, and Qwen3-VL with its deepstack."""

import torch

from data.phantom import qwen_tokenizer
from data.phantom.student import _scale_to_width

HIDDEN, LAYERS, HEADS, KV_HEADS = 64, 3, 4, 2


def build(family, out, texts, seed=0):
    """Write a checkpoint folder of `family` ("qwen2_vl" or "qwen3_vl") with random weights."""
    import transformers
    from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    out.mkdir()
    bpe = qwen_tokenizer.train_bpe(texts, 600)
    qwen_tokenizer.save_tokenizer(bpe, out)
    old = family == "qwen2_vl"
    patch = 14 if old else 16
    kind = transformers.Qwen2VLProcessor if old else transformers.Qwen3VLProcessor
    processor = kind(
        image_processor=Qwen2VLImageProcessor(patch_size=patch, merge_size=2),
        tokenizer=Qwen2Tokenizer.from_pretrained(out),
        video_processor=(Qwen2VLVideoProcessor if old else Qwen3VLVideoProcessor)(patch_size=patch, merge_size=2),
        chat_template=qwen_tokenizer.CHAT_TEMPLATE,
    )
    processor.save_pretrained(out)
    qwen_tokenizer.save_tokenizer(bpe, out)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = configuration(family, -(-bpe.get_vocab_size() // 64) * 64, bpe.token_to_id)
        name = "Qwen2VLForConditionalGeneration" if old else "Qwen3VLForConditionalGeneration"
        model = getattr(transformers, name)(config)
        _scale_to_width(model)
    model.save_pretrained(out)
    return out


def configuration(family, vocab, token_to_id):
    import transformers

    text = {
        "vocab_size": vocab,
        "hidden_size": HIDDEN,
        "intermediate_size": 128,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        "tie_word_embeddings": True,
        "bos_token_id": token_to_id("<|endoftext|>"),
        "eos_token_id": token_to_id("<|im_end|>"),
        "pad_token_id": token_to_id("<|endoftext|>"),
    }
    ids = {
        "image_token_id": token_to_id("<|image_pad|>"),
        "video_token_id": token_to_id("<|video_pad|>"),
        "vision_start_token_id": token_to_id("<|vision_start|>"),
        "vision_end_token_id": token_to_id("<|vision_end|>"),
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    if family == "qwen2_vl":
        vision = {"depth": 2, "embed_dim": 32, "hidden_size": HIDDEN, "num_heads": 4, "mlp_ratio": 2}
        return transformers.Qwen2VLConfig(text_config=text, vision_config=vision, **ids)
    text["head_dim"] = HIDDEN // HEADS
    text["rope_parameters"]["mrope_interleaved"] = True
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "out_hidden_size": HIDDEN,
        "num_position_embeddings": 64,
        # two of three vision layers also reach into the first two decoder layers
        "deepstack_visual_indexes": [0, 1],
    }
    return transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **ids)
