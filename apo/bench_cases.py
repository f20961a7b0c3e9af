"""What `apo.bench` measures: settings, cases, and the random student, films and texts they all work on."""

import json
import os
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from apo.shapes import RELEASED, released_config
from data.errors import UserError
from data.phantom import PROMPT, qwen_tokenizer
from data.phantom.student import MERGE, PATCH, SHAPES, Shape, build_student
from scripts import machine

SYSTEM = "You are a helpful assistant."
PIXELS_A_TOKEN = PATCH * MERGE  # a side: one film token is 28 x 28 pixels
END_TOKENS = 2  # <|im_end|> and the newline that ms-swift trains on too
LEARNT_VOCAB = 8192
SPREAD = 0.25
# A worker with everything imported, before its model; and what a CUDA context takes of a GPU.
WORKER_BYTES = 1_200_000_000
CONTEXT_BYTES = 1_000_000_000
# Of stock logits [rows, L, V]: the logits, their log-softmax and their gradient are alive together.
LOGITS_COPIES = 3.5
TOKEN_IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


@dataclass(frozen=True)
class Settings:
    """One measurement. Token numbers are what the inputs aim at; the result holds what they really were.

    `batch`: pairs or rows a micro-batch of the stock cases, the rest by accumulation; 0: as many as memory allows.
    `threads`: 0 leaves the number to PyTorch. `size`: `mid`, a stand-in of `hidden`, `layers` and `vocab`, or `7B` and
    others, a released Qwen2.5-VL with random weights, which has its own.
    """

    prompt_tokens: int = 600
    response_tokens: int = 200
    negatives: int = 7
    vocab: int = LEARNT_VOCAB
    steps: int = 5
    warmup: int = 1
    studies: int = 1
    seed: int = 0
    hidden: int = 512
    layers: int = 6
    batch: int = 0
    threads: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    size: str = "mid"


CHOICES = {"device": ("cpu", "cuda"), "dtype": ("float32", "bfloat16"), "size": ("mid", *RELEASED)}
MINIMUM = {
    "prompt_tokens": 1,
    "response_tokens": 4,
    "negatives": 1,
    "vocab": 512,
    "steps": 1,
    "warmup": 0,
    "studies": 1,
    "seed": 0,
    "hidden": 32,
    "layers": 1,
    "batch": 0,
    "threads": 0,
}


@dataclass(frozen=True)
class Case:
    """`rows`: which of the three row files it reads. `model_kwargs`: project options; empty for a stock trainer."""

    label: str
    stage: str
    rows: str
    stock: bool = False
    model_kwargs: tuple[tuple[str, str], ...] = ()


SHARED = (("apo_layout", "shared"),)
CASES = {
    "stock_pairs": Case("stock ms-swift DPO on N pairs", "critique", "pairs", stock=True),
    "plain_rows": Case("plain rows", "critique", "studies", model_kwargs=(("apo_layout", "rows"),)),
    "shared_mask": Case("shared, mask", "critique", "studies", model_kwargs=(*SHARED, ("apo_attention", "mask"))),
    "shared_split": Case("shared, split", "critique", "studies", model_kwargs=(*SHARED, ("apo_attention", "split"))),
    "shared_split_cached": Case(
        "shared, split, cached reference",
        "critique",
        "studies",
        model_kwargs=(*SHARED, ("apo_attention", "split"), ("apo_cache_dir", "reference")),
    ),
    "learn_rows": Case("learn: stock ms-swift SFT on N rows", "learn", "learn_rows", stock=True),
    "learn_shared": Case("learn: shared, split", "learn", "learn_studies", model_kwargs=SHARED),
}


def check(settings: Settings) -> None:
    """Raise UserError for a setting outside its range."""
    for name, least in MINIMUM.items():
        if getattr(settings, name) < least:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} {getattr(settings, name)}: must be at least {least}")
    for name, choices in CHOICES.items():
        if getattr(settings, name) not in choices:
            raise UserError(f"--{name} {getattr(settings, name)}: choose from {', '.join(choices)}")
    for name in ("hidden", "layers", "vocab"):
        if settings.size != "mid" and getattr(settings, name) != getattr(Settings(), name):
            raise UserError(f"--{name} {getattr(settings, name)}: {settings.size} has its own; leave --{name} out")
    if settings.device == "cuda" and not machine.gpus():
        raise UserError("--device cuda: no GPU is visible here; leave it out to measure on the CPU")
    if settings.hidden % 32:
        raise UserError(f"--hidden {settings.hidden}: must be a multiple of 32 (eight heads, four in the vision tower)")


def student_shape(settings: Settings) -> Shape:
    """The mid-size student, its widths scaled with --hidden."""
    hidden = settings.hidden
    return replace(
        SHAPES["mid"],
        hidden=hidden,
        layers=settings.layers,
        intermediate=3 * hidden,
        vision_hidden=hidden // 2,
        vision_intermediate=3 * hidden // 2,
        vocab=min(settings.vocab, LEARNT_VOCAB) // 64 * 64,  # the student rounds up to 64 rows
    )


def random_words(rng: np.random.Generator, count: int) -> list[str]:
    """`count` different words of two to four syllables."""
    onsets, nuclei, codas = list("bdfgklmnprstvz"), list("aeiou"), ["", "", "l", "n", "r", "s"]
    words: dict[str, None] = {}
    while len(words) < count:
        parts = [rng.choice(onsets) + rng.choice(nuclei) + rng.choice(codas) for _ in range(rng.integers(2, 5))]
        words["".join(parts)] = None
    return list(words)


def make_student(folder: Path, settings: Settings, words: list[str]) -> str:
    """Write a random student of exactly the asked vocabulary to `folder`; returns where its tokenizer came from."""
    released = settings.size != "mid"
    published = released or settings.vocab == qwen_tokenizer.PUBLISHED_VOCAB_SIZE
    if published:
        try:
            qwen_tokenizer.tiktoken_file()
        except UserError:
            published = False
    texts = [
        *[PROMPT, SYSTEM, "system user assistant"] * 50,
        *(f"{a} {b} {a} {b}" for a, b in zip(words[::2], words[1::2], strict=True)),
    ]
    tokenizer = "qwen" if published else "bpe"
    shape = SHAPES["tiny"] if released else student_shape(settings)
    build_student(folder, seed=settings.seed, tokenizer=tokenizer, texts=texts, shape=shape)
    if released:
        _released_weights(folder, settings)
    else:
        _force_vocabulary(folder, settings)
    return "published Qwen2.5" if published else "learnt from random words"


def _released_weights(folder: Path, settings: Settings) -> None:
    """Random weights of a released size in place of the student's own, which leaves its tokenizer and processor."""
    import torch
    from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

    config, own = released_config(settings.size), AutoConfig.from_pretrained(folder)
    for name in TOKEN_IDS:
        setattr(config, name, getattr(own, name))
    dtype, usual = getattr(torch, settings.dtype), torch.get_default_dtype()
    config.dtype = dtype
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng(), torch.device(settings.device):
            torch.manual_seed(settings.seed)
            model = Qwen2_5_VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(usual)
    model.save_pretrained(folder)
    del model
    if settings.device == "cuda":
        torch.cuda.empty_cache()


def _force_vocabulary(folder: Path, settings: Settings) -> None:
    """Pad the embedding, and with it the head, to the asked rows: the head's cost depends on them alone."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    rows = json.loads((folder / "config.json").read_text(encoding="utf-8"))["text_config"]["vocab_size"]
    if rows > settings.vocab:
        raise UserError(f"--vocab {settings.vocab}: too small for its tokenizer; use at least {rows}")
    if rows == settings.vocab:
        return
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model.resize_token_embeddings(settings.vocab, mean_resizing=False)
    model.save_pretrained(folder)


def film_grid(tokens: int) -> tuple[int, int]:
    """Height and width in film tokens of a nearly square film of about `tokens`."""
    height = max(2, round(tokens**0.5))
    return height, max(2, round(tokens / height))


def response_lengths(rng: np.random.Generator, count: int, mean: int) -> list[int]:
    """`count` unequal lengths within about 25 % of `mean`, whose average is `mean` up to rounding."""
    spread = rng.uniform(-SPREAD, SPREAD, count)
    return [max(END_TOKENS + 1, round(mean * (1 + x))) for x in spread - spread.mean()]


def make_rows(folder: Path, settings: Settings, student: Path, words: list[str]) -> dict[str, Path]:
    """Write films and four row files over the same studies: `studies`, `pairs`, `learn_studies`, `learn_rows`.

    The learn stage trains on the negatives' texts, as it does on teachers' trajectories: N of them a study.
    """
    from PIL import Image
    from transformers import AutoTokenizer

    rng = np.random.default_rng(settings.seed)
    tokenizer = AutoTokenizer.from_pretrained(student)
    turn = (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n<|vision_start|><|vision_end|>"
        f"{PROMPT.replace('<image>', '')}<|im_end|>\n<|im_start|>assistant\n"
    )
    text_tokens = len(tokenizer(turn)["input_ids"])
    if settings.prompt_tokens < text_tokens + 4:
        raise UserError(
            f"--prompt-tokens {settings.prompt_tokens}: the text alone takes {text_tokens} and the smallest film 4; "
            f"use at least {text_tokens + 4}"
        )
    height, width = film_grid(settings.prompt_tokens - text_tokens)

    def text(tokens: int) -> str:
        picked = " ".join(rng.choice(words, size=tokens))  # a word is at least one token
        ids = tokenizer(picked)["input_ids"][: tokens - END_TOKENS]
        return re.sub(r"\s+", " ", tokenizer.decode(ids)).strip()

    def answer(content: str) -> dict[str, str]:
        return {"role": "assistant", "content": content}

    rows: dict[str, list[dict]] = {"studies": [], "pairs": [], "learn_studies": [], "learn_rows": []}
    for study in range(settings.studies):
        film = folder / f"film-{study}.png"
        pixels = rng.integers(0, 256, (height * PIXELS_A_TOKEN, width * PIXELS_A_TOKEN), dtype=np.uint8)
        Image.fromarray(pixels).save(film)
        user = {"role": "user", "content": PROMPT}
        common = {"images": [str(film)]}
        chosen, *others = (text(n) for n in response_lengths(rng, settings.negatives + 1, settings.response_tokens))
        messages = [user, answer(chosen)]
        rows["studies"].append({**common, "messages": messages, "negative_messages": [[answer(t)] for t in others]})
        rows["pairs"] += [{**common, "messages": messages, "rejected_response": t} for t in others]
        first, *rest = others
        learn = {**common, "messages": [user, answer(first)], "positive_messages": [[answer(t)] for t in rest]}
        rows["learn_studies"].append(learn)
        rows["learn_rows"] += [{**common, "messages": [user, answer(t)]} for t in others]
    paths = {}
    for name, items in rows.items():
        paths[name] = folder / f"{name}.jsonl"
        paths[name].write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return paths


def available_memory() -> int:
    """Bytes that can be allocated now without swapping."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def free_memory(settings: Settings, student: Path, workers: int) -> int:
    """Bytes left for steps once `workers` processes stand there, on a GPU each with its copy of the weights."""
    if settings.device == "cpu":
        return max(available_memory() - workers * WORKER_BYTES, 0)
    weights = sum(path.stat().st_size for path in student.glob("*.safetensors"))
    return max(int(machine.gpus()[0]["free_gib"] * 2**30) - workers * (weights + CONTEXT_BYTES), 0)


def stock_micro_batch(settings: Settings, case: Case, memory: int) -> int:
    """Pairs or rows a micro-batch of a stock case: a step's, or the most whose logits fit half of `memory` bytes.

    Always a divisor of a step's pairs or rows, so that micro-batches weigh alike.
    """
    total = settings.negatives * settings.studies
    if settings.batch:
        if total % settings.batch:
            raise UserError(f"--batch {settings.batch}: must divide the {total} pairs of a step")
        return settings.batch
    # Stock DPO keeps the logits of responses alone (two rows a pair); stock SFT keeps them all.
    longest = settings.response_tokens * (1 + 2 * SPREAD)
    tokens = 2 * longest if case.stage == "critique" else settings.prompt_tokens + longest
    vocab = settings.vocab if settings.size == "mid" else released_config(settings.size).text_config.vocab_size
    bytes_each = LOGITS_COPIES * 4 * tokens * vocab
    fitting = [n for n in range(1, total + 1) if total % n == 0 and n * bytes_each <= memory / 2]
    return max(fitting, default=1)


def worker_spec(name: str, settings: Settings, folder: Path, student: Path, rows: dict[str, Path], memory: int) -> dict:
    """Everything a worker process needs to know, as JSON."""
    case = CASES[name]
    micro, accumulation = settings.studies, 1
    if case.stock:
        micro = stock_micro_batch(settings, case, memory)
        accumulation = settings.negatives * settings.studies // micro
    model_kwargs = dict(case.model_kwargs)
    if "apo_cache_dir" in model_kwargs:
        model_kwargs["apo_cache_dir"] = str(folder / name / model_kwargs["apo_cache_dir"])
    return {
        "name": name,
        **asdict(case),
        "model_kwargs": model_kwargs,
        "micro_batch": micro,
        "accumulation": accumulation,
        "student": str(student),
        "rows": str(rows[case.rows]),
        "folder": str(folder / name),
        "seed": settings.seed,
        "threads": settings.threads,
        "device": settings.device,
        "dtype": settings.dtype,
    }
