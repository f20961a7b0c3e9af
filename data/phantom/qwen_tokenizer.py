"""The Qwen2.5 tokenizer: its special tokens, chat template and pre-tokenisation, and two ways to fill its vocabulary.

`train_bpe` learns a small byte-level BPE from given texts (the tiny student). `published_bpe` rebuilds the true
Qwen2.5 vocabulary from `qwen.tiktoken`, which the PyPI package `dashscope` (Apache-2.0) ships: real token ids without a
download from a model hub. Only tests and trials need the latter, so dashscope is in `requirements-test.txt` alone.
"""

import base64
import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from data.errors import UserError
from data.files import write_atomic

# Qwen2.5's added tokens in the order of their ids (151643 ... 151664 at the published vocabulary). The plain ones are
# those that a decoder must not drop with `skip_special_tokens`.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PLAIN_ADDED_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
ADDED_TOKENS = SPECIAL_TOKENS + PLAIN_ADDED_TOKENS

PUBLISHED_BPE_SIZE = 151643
# Rows of the embedding of the released models up to 3B; the ids above the last added token are padding, never produced.
PUBLISHED_VOCAB_SIZE = 151936

# One number, one word with at most one leading character, one run of punctuation, or white space (transformers'
# Qwen2Tokenizer and dashscope's QwenTokenizer hold the same expression).
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# ChatML as Qwen2.5-VL writes it: the default system turn when there is none, one vision block an image or video.
CHAT_TEMPLATE = (
    "{% set images = namespace(n=0) %}{% set videos = namespace(n=0) %}"
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part or 'image_url' in part %}"
    "{% set images.n = images.n + 1 %}{% if add_vision_id %}Picture {{ images.n }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' or 'video' in part %}"
    "{% set videos.n = videos.n + 1 %}{% if add_vision_id %}Video {{ videos.n }}: {% endif %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _with_qwen_rules(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _with_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in PLAIN_ADDED_TOKENS])
    return tokenizer


# What the template itself puts around a conversation, and the two words of a yes/no question: a learnt vocabulary that
# never saw them would spell them byte by byte.
CHAT_WORDS = "system\nYou are a helpful assistant.\nuser\nassistant\nYes No yes no"


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE of at most `vocab_size` ids, added tokens included, learnt from `texts`.

    Any byte can be written, whatever the texts hold. The same texts in the same order give the same tokenizer.
    Fewer ids result when the texts have too few pairs worth merging. Raises UserError when `vocab_size` does not even
    hold the 256 bytes and the added tokens, or when there is no text.
    """
    smallest = 256 + len(ADDED_TOKENS)
    if vocab_size < smallest:
        raise UserError(
            f"vocabulary size {vocab_size} is too small; use at least {smallest} (256 bytes + added tokens)"
        )
    texts = list(texts)
    if not any(text.strip() for text in texts):
        raise UserError("no text to learn the tokenizer from; give study records with trajectories")
    tokenizer = _with_qwen_rules(Tokenizer(models.BPE()))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(ADDED_TOKENS),
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    return _with_added_tokens(tokenizer)


def tiktoken_file() -> Path:
    """Path of `qwen.tiktoken` in the installed dashscope; UserError when dashscope is not installed."""
    spec = importlib.util.find_spec("dashscope")
    path = None if spec is None or spec.origin is None else Path(spec.origin).parent / "resources" / "qwen.tiktoken"
    if path is None or not path.is_file():
        raise UserError("the published Qwen2.5 vocabulary needs `dashscope`; run: bash scripts/setup.sh --test")
    return path


def published_bpe() -> Tokenizer:
    """The true Qwen2.5 tokenizer, ids 0 ... 151664, rebuilt from dashscope's `qwen.tiktoken`."""
    ranks = _read_ranks(tiktoken_file())
    if sorted(ranks.values()) != list(range(PUBLISHED_BPE_SIZE)):
        raise UserError(f"{tiktoken_file()}: is not the published vocabulary; install dashscope as pinned")
    to_text = _byte_symbols()
    vocab = {_symbols(token, to_text): rank for token, rank in ranks.items()}
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        if len(token) > 1:
            left, right = _last_merge(token, ranks)
            merges.append((_symbols(left, to_text), _symbols(right, to_text)))
    return _with_added_tokens(_with_qwen_rules(Tokenizer(models.BPE(vocab=vocab, merges=merges))))


def _read_ranks(path: Path) -> dict[bytes, int]:
    lines = path.read_bytes().splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}


def _last_merge(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The pair whose merge made `token`: byte-pair merging of its bytes with the ranks below its own leaves two parts.

    tiktoken merges the pair whose joined bytes have the lowest rank; a merge list in order of rank does the same once
    every token is listed with the one pair that can occur.
    """
    limit = ranks[token]
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        best, at = min((ranks.get(parts[i] + parts[i + 1], limit), i) for i in range(len(parts) - 1))
        if best >= limit:
            raise UserError(f"qwen.tiktoken: rank {limit} cannot be reached by merges; install dashscope as pinned")
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def _byte_symbols() -> dict[int, str]:
    """GPT-2's byte-to-printable-character table, as byte-level BPE files use it: printable bytes are themselves, the
    other bytes are shifted to U+0100 and above in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    table = {byte: chr(byte) for byte in printable}
    table |= {byte: chr(256 + n) for n, byte in enumerate(b for b in range(256) if b not in table)}
    return table


def _symbols(token: bytes, table: dict[int, str]) -> str:
    return "".join(table[byte] for byte in token)


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json so that AutoTokenizer loads a Qwen2Tokenizer with the same ids."""
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_prefix_space": False,
        "add_bos_token": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
        "model_max_length": 131072,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(token)): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": token in SPECIAL_TOKENS,
            }
            for token in ADDED_TOKENS
        },
        "chat_template": CHAT_TEMPLATE,
    }
    write_atomic(folder / "tokenizer.json", tokenizer.to_str(pretty=False))
    write_atomic(folder / "tokenizer_config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
