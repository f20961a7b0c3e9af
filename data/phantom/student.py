"""A Qwen2.5-VL student of toy size, from random weights, saved as an ordinary checkpoint folder.

    python -m data.phantom.student --out DIR --seed 0 --texts STUDIES.jsonl

The folder holds config, weights, tokenizer, processor, chat template and generation settings under the names of a
released Qwen2.5-VL: transformers loads it, and stock ms-swift with `--model_type qwen2_5_vl --template qwen2_5_vl`.
`--tokenizer bpe` (default) learns a vocabulary of about 2,000 from the studies' training texts: the whole student then
has 1 to 2 million parameters and learns the phantom films on one core. `--tokenizer qwen` takes the published
vocabulary of 151,936 with its true token ids; with `--size mid` that is the stand-in for a 7B student in tests and
trials.

With the small vocabulary the image placeholder has another id than the 151655 that ms-swift's template assumes;
`apo/plugin.py` reads the id from the processor instead, so both training stages load that plugin.
"""

import argparse
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from data.errors import UserError, run_cli
from data.files import write_atomic
from data.phantom import qwen_tokenizer
from scripts.machine import write_problem


@dataclass(frozen=True)
class Shape:
    """Sizes of a Qwen2.5-VL. `vocab` is an upper bound for a vocabulary that is learnt."""

    hidden: int = 128
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 256
    vision_hidden: int = 96
    vision_depth: int = 3
    vision_heads: int = 4
    vision_intermediate: int = 256
    vocab: int = 2048


SHAPES = {
    "tiny": Shape(),
    # Wide enough that attention, head and vision tower cost what they cost relative to each other in a real student.
    "mid": Shape(
        hidden=512,
        layers=6,
        heads=8,
        kv_heads=2,
        intermediate=1536,
        vision_hidden=256,
        vision_depth=4,
        vision_heads=4,
        vision_intermediate=768,
        vocab=8192,
    ),
}

PATCH = 14
MERGE = 2


def build_student(
    out: Path, *, seed: int, tokenizer: str = "bpe", texts: Iterable[str] = (), shape: Shape = SHAPES["tiny"]
):
    """Write the checkpoint folder `out`: same seed, texts and shape, same bytes.

    Args:
        seed: decides the weights. The tokenizer depends on the texts alone.
        tokenizer: "bpe" learns one from `texts`; "qwen" is the published one and needs no texts.
        shape: sizes; `shape.vocab` is ignored by "qwen".

    Returns the number of parameters, the tied embedding counted once. Raises UserError for sizes that do not fit
    together, a folder that is in use or cannot be written, no texts, or dashscope missing for "qwen".
    """
    _check(shape)
    if not 0 <= seed < 2**63:  # torch takes no larger one
        raise UserError(f"--seed {seed}: must be a whole number of at least 0 and below 2**63")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already and is not an empty folder; choose another --out or remove it")
    if problem := write_problem("--out", out.parent):
        raise UserError(problem)
    if tokenizer == "qwen":
        bpe, vocab = qwen_tokenizer.published_bpe(), qwen_tokenizer.PUBLISHED_VOCAB_SIZE
    elif tokenizer == "bpe":
        bpe = qwen_tokenizer.train_bpe(texts, shape.vocab)
        # A round number of embedding rows, as in the released models; the rows above the last token are never produced.
        vocab = -(-bpe.get_vocab_size() // 64) * 64
    else:
        raise UserError(f"--tokenizer {tokenizer}: unknown; choose bpe or qwen")

    # Heavy imports only once the arguments are known to be sound.
    import torch
    from transformers import GenerationConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
    from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    # Built beside `out` and renamed at the end: an interrupted build never looks like a checkpoint.
    out.parent.mkdir(parents=True, exist_ok=True)
    work = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    work.mkdir()
    qwen_tokenizer.save_tokenizer(bpe, work)
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=PATCH, merge_size=MERGE),
        tokenizer=Qwen2Tokenizer.from_pretrained(work),
        video_processor=Qwen2VLVideoProcessor(patch_size=PATCH, merge_size=MERGE),
        chat_template=qwen_tokenizer.CHAT_TEMPLATE,
    )
    processor.save_pretrained(work)
    # save_pretrained rewrites the tokenizer's files in its own manner: ours name every added token as a release does.
    qwen_tokenizer.save_tokenizer(bpe, work)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(_config(shape, vocab, bpe.token_to_id))
        _scale_to_width(model)
    end, pad = bpe.token_to_id("<|im_end|>"), bpe.token_to_id("<|endoftext|>")
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=[end, pad], pad_token_id=pad)
    model.save_pretrained(work)
    parameters = model.num_parameters()
    note = {"seed": seed, "tokenizer": tokenizer, "vocab": vocab, "parameters": parameters, "shape": asdict(shape)}
    write_atomic(work / "student.json", json.dumps(note, indent=2) + "\n")
    if out.exists():
        out.rmdir()
    os.replace(work, out)
    return parameters


def _scale_to_width(model) -> None:
    """Draw the weights anew with deviation 1 / sqrt(inputs); embeddings stay as they are.

    transformers' 0.02 suits layers of thousands of inputs. At this width it leaves attention all but uniform: after
    4,000 films the consensus of unseen films cost 6.2 nats, with these weights 5.6 (one seed).
    """
    import torch

    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2 and "embed_tokens" not in name:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)


def _check(shape: Shape) -> None:
    for name, value in asdict(shape).items():
        if value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    if shape.hidden % shape.heads or (shape.hidden // shape.heads) % 4:
        raise UserError(f"--hidden {shape.hidden}: must be a multiple of 4 x --heads ({shape.heads})")
    if shape.heads % shape.kv_heads:
        raise UserError(f"--heads {shape.heads}: must be a multiple of --kv-heads ({shape.kv_heads})")
    if shape.vision_hidden % shape.vision_heads or (shape.vision_hidden // shape.vision_heads) % 4:
        raise UserError(f"--vision-hidden {shape.vision_hidden}: must be a multiple of 4 x --vision-heads")


def _config(shape: Shape, vocab: int, token_to_id):
    from transformers import Qwen2_5_VLConfig

    # Rotary frequencies shared by time, height and width as 16 : 24 : 24, the published ratio, of half the head size.
    half = shape.hidden // shape.heads // 2
    time = half // 4
    height = (half - time) // 2
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": vocab,
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [time, height, half - time - height],
            },
            "use_sliding_window": False,
            "tie_word_embeddings": True,
            "bos_token_id": token_to_id("<|endoftext|>"),
            "eos_token_id": token_to_id("<|im_end|>"),
            "pad_token_id": token_to_id("<|endoftext|>"),
        },
        vision_config={
            "depth": shape.vision_depth,
            "hidden_size": shape.vision_hidden,
            "intermediate_size": shape.vision_intermediate,
            "num_heads": shape.vision_heads,
            "out_hidden_size": shape.hidden,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "window_size": 8 * PATCH,
            # Few layers cannot spare one that sees a window only: attention over the whole film in all of them.
            "fullatt_block_indexes": list(range(shape.vision_depth)),
        },
        image_token_id=token_to_id("<|image_pad|>"),
        video_token_id=token_to_id("<|video_pad|>"),
        vision_start_token_id=token_to_id("<|vision_start|>"),
        vision_end_token_id=token_to_id("<|vision_end|>"),
        tie_word_embeddings=True,
        bos_token_id=token_to_id("<|endoftext|>"),
        eos_token_id=token_to_id("<|im_end|>"),
        pad_token_id=token_to_id("<|endoftext|>"),
        dtype="float32",
    )


def training_texts(studies: Path) -> list[str]:
    """Prompts, reports, consensus and "ok" trajectories of the training studies in the file `studies`, in order."""
    from data.records import read_studies

    texts = []
    for study in read_studies(studies):
        if study["split"] != "train":
            continue
        texts.append(qwen_tokenizer.CHAT_WORDS)
        texts.append(study["prompt"])
        texts.extend(t["text"] for t in study["trajectories"] if t["status"] == "ok")
        texts.extend(text for text in ((study.get("consensus") or {}).get("text"), study.get("report")) if text)
    if not texts:
        raise UserError(f"{studies}: no study of the split train to learn the tokenizer from")
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data.phantom.student", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write; must not hold anything")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights (default 0)")
    parser.add_argument("--texts", type=Path, help="study records whose training texts fill the vocabulary")
    parser.add_argument("--tokenizer", choices=("bpe", "qwen"), default="bpe", help="learn one, or the published one")
    parser.add_argument("--size", choices=tuple(SHAPES), default="tiny", help="sizes, changed by the flags below")
    for name, value in asdict(Shape()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"tiny: {value}", metavar="N")
    args = parser.parse_args()
    if args.tokenizer == "bpe" and args.texts is None:
        parser.error("--tokenizer bpe needs --texts STUDIES.jsonl")
    changes = {name: value for name in asdict(Shape()) if (value := getattr(args, name)) is not None}
    shape = replace(SHAPES[args.size], **changes)
    texts = training_texts(args.texts) if args.tokenizer == "bpe" else ()
    parameters = build_student(args.out, seed=args.seed, tokenizer=args.tokenizer, texts=texts, shape=shape)
    print(f"{args.out}: Qwen2.5-VL student, {parameters:,} parameters, tokenizer {args.tokenizer}, seed {args.seed}")
    print(f"next: bash SFT-Qwen2.5.sh configs/sft_phantom.yaml --model {args.out}")


if __name__ == "__main__":
    run_cli(main)
