"""Yes/no questions about films: P(yes) / (P(yes) + P(no)) at the first token of the answer.

The student writes nothing: film, question and the assistant prefix are teacher-forced, and the probabilities of the
next token are read. Each word is the sum over its variants that are one token ("Yes", "yes", "YES", each also with a
space in front), by token id. `mass` is P(yes) + P(no); where it is low the student would have said something else, and
the score ranks what it did not mean to say: below `LOW_MASS` an answer is counted and reported.

Questions about the same films share one forward pass (film and the common start of the questions once, as in training:
`apo.group.collate_shared`), so 14 labels cost little more than one. A student that thinks before it answers must be
given what closes the thought, e.g. prefix="<think>\n\n</think>\n\n"; the default is no prefix.
"""

import os
from collections.abc import Sequence

from data.errors import UserError

LOW_MASS = 0.25
FORMS = ("yes", "no")
HEAD_CHUNK = 256  # rows of the vocabulary projection at a time
TAIL_TOKENS = 4096  # question tokens behind one prefix; more make further passes

Prompt = tuple[str, Sequence[str]]  # question, image paths


def variant_ids(tokenizer) -> tuple[list[int], list[int]]:
    """Token ids that say yes and that say no: lower, title and upper case, with and without a space in front.

    Only variants that are a single token count. UserError where a word has none.
    """
    found = []
    for word in FORMS:
        forms = [space + form for space in ("", " ") for form in (word, word.title(), word.upper())]
        tokens = [tokenizer.encode(form, add_special_tokens=False) for form in forms]
        ids = sorted({one[0] for one in tokens if len(one) == 1})
        if not ids:
            raise UserError(
                f"the checkpoint's tokenizer has no single token for {word!r}, so yes/no questions cannot be scored; "
                "check its tokenizer files, or for a phantom student build it anew (python -m data.phantom.student)"
            )
        found.append(ids)
    return found[0], found[1]


def p_yes(student, prompts: Sequence[Prompt], *, prefix: str = "") -> list[dict]:
    """Score yes/no questions.

    Args:
        student: an `apo.student_engine.Student` of the transformers backend.
        prompts: (question, image paths) each; those with the same images should follow each other.
        prefix: what the assistant has said already; "" for nothing.

    Returns {"p_yes", "mass"} for each prompt, in order. UserError for the vLLM backend, a tokenizer without single
    tokens for the two words, or a prompt that is longer than the model takes.
    """
    engine = student.engine
    template, model = engine.template, getattr(engine, "model", None)
    if model is None:
        raise UserError("yes/no questions need the model's probabilities; use --backend transformers")
    ids = variant_ids(template.tokenizer)
    suffix = template.tokenizer.encode(prefix, add_special_tokens=False) if prefix else []
    by_images: dict[tuple[str, ...], dict[str, dict | None]] = {}
    for question, images in prompts:
        by_images.setdefault(tuple(images), {})[question] = None
    before = template.mode
    try:
        model.eval()
        for images, questions in by_images.items():
            heads, tails = _encode(student, list(questions), images, suffix)
            for part in _parts(tails):
                scored = _forward(template, model, heads, [tails[i] for i in part], ids)
                for i, one in zip(part, scored, strict=True):
                    questions[list(questions)[i]] = one
    finally:
        template.set_mode(before)
    return [dict(by_images[tuple(images)][question]) for question, images in prompts]


def low_mass_note(answers: Sequence[dict]) -> str | None:
    """One sentence about answers whose mass is below LOW_MASS; None when there is none."""
    low = sum(answer["mass"] < LOW_MASS for answer in answers)
    if not low:
        return None
    return (
        f"{low} of {len(answers)} answers put less than {LOW_MASS:g} of the probability on yes and no together: the "
        "student would have said something else, read these scores with care"
    )


def _encode(student, questions: list[str], images: tuple[str, ...], suffix: list[int]) -> tuple[dict, list[list[int]]]:
    """(what all questions share, encoded with its films; the rest of each question as token ids)."""
    template = student.engine.template
    template.set_mode("transformers")  # adds the opening of the assistant's turn
    texts = [[*template.encode(student._request(question, ()))["input_ids"], *suffix] for question in questions]
    # Every tail keeps a token: the last one is what the answer is read from.
    shared = min(len(os.path.commonprefix(texts)), *(len(text) - 1 for text in texts))
    tails = [text[shared:] for text in texts]
    whole = template.encode(student._request(questions[0], images))
    row = [*whole["input_ids"], *suffix]
    cut = len(row) - len(tails[0])
    if row[cut:] != tails[0]:
        raise RuntimeError("the films change how the end of a question is tokenised; it cannot be shared")
    longest = cut + max(map(len, tails))
    if longest > student.max_length:
        raise UserError(
            f"a question with its films takes {longest} tokens and the model takes {student.max_length}; lower the "
            "films' max_pixels"
        )
    head = {key: value for key, value in whole.items() if key not in ("labels", "loss_scale", "length")}
    head["input_ids"] = row[:cut]
    types = head.get("mm_token_type_ids")
    if types is not None:
        head["mm_token_type_ids"] = types[..., : min(cut, types.shape[-1])]
    return head, tails


def _parts(tails: list[list[int]]) -> list[list[int]]:
    """Indices of the tails, cut into runs of at most TAIL_TOKENS tokens."""
    parts: list[list[int]] = [[]]
    size = 0
    for i, tail in enumerate(tails):
        if parts[-1] and size + len(tail) > TAIL_TOKENS:
            parts.append([])
            size = 0
        parts[-1].append(i)
        size += len(tail)
    return parts


def _forward(template, model, head: dict, tails: list[list[int]], ids: tuple[list[int], list[int]]) -> list[dict]:
    """{"p_yes", "mass"} of each tail behind `head`, in one forward pass."""
    import torch
    from swift.utils import to_device

    from apo.attention import row_segments, shared_mask
    from apo.group import collate_shared
    from apo.head import logps_head

    words = [*ids[0], *ids[1]]
    # `collate_shared` finds the state that predicts the last token of every response: any token stands for the answer.
    study = {**head, "responses": [[*tail, words[0]] for tail in tails]}
    template.set_mode("train")  # positions are laid out by `collate_shared`, from the left, as in training
    inputs, batch = collate_shared(template, [study])
    inputs = to_device(inputs, model.device)
    implementation = model.config.get_text_config()._attn_implementation
    segments = row_segments(batch.shapes, inputs["input_ids"].shape[1], model.device)
    inputs["attention_mask"] = shared_mask(segments, model.dtype if implementation == "eager" else None)
    last = torch.tensor([len(tail) for tail in tails]).add(1).cumsum(0) - 1
    index = batch.index[last].repeat_interleave(len(words)).to(model.device)
    targets = torch.tensor(words, device=model.device).repeat(len(tails))
    with torch.inference_mode():
        _, inputs = template.pre_forward_hook(model, None, inputs)
        with logps_head(model, index, targets, HEAD_CHUNK):
            logps = model(**inputs, use_cache=False).logits
    chances = logps.double().exp().reshape(len(tails), len(words)).cpu()
    yes, no = chances[:, : len(ids[0])].sum(1).tolist(), chances[:, len(ids[0]) :].sum(1).tolist()
    return [_answer(a, b) for a, b in zip(yes, no, strict=True)]


def _answer(yes: float, no: float) -> dict:
    mass = yes + no
    # No mass at all (underflow): the two words are level, and `mass` says that this means nothing.
    return {"p_yes": yes / mass if mass > 0 else 0.5, "mass": min(mass, 1.0)}
