"""Memory of a GPU in training by closed formula: weights, gradients, optimizer by ZeRO stage, and activations.

What a decoder layer keeps for its backward pass is counted tensor by tensor, as transformers' Qwen2.5-VL layer saves
them (tests/apo/test_plan.py holds the formula against the tensors that autograd really saves).
"""

import math
from typing import NamedTuple

from apo.flops import Layout, Setup, Study
from apo.shapes import PATCHES_A_TOKEN, PIXELS_A_TOKEN, Counts, Shape

GIB = 2**30
CONTEXT = 2 * GIB  # CUDA context, NCCL, cuBLAS workspaces
FRAGMENTATION = 0.05
# DeepSpeed's stage3_max_live_parameters in ms-swift's zero3: weights that are gathered at the same time.
LIVE_PARAMETERS = 10**9
# Its buckets in zero2 (reduce_bucket_size, allgather_bucket_size): elements.
BUCKET = 2 * 10**8
MOST_STUDIES = 512
SMALLEST_FILM = 64  # tokens, 224 x 224 pixels: below that a film shows nothing


class States(NamedTuple):
    """Bytes on one GPU that do not depend on the micro-batch. `buffers`: DeepSpeed's buckets, gathered weights."""

    weights: float
    gradients: float
    optimizer: float
    reference: float
    buffers: float


class Activations(NamedTuple):
    """Bytes on one GPU for a micro-batch. `kept`: what stays from the forward pass to the backward pass of a layer.
    The others are not there at the same time: `layer` while one decoder layer is computed backwards, `head` while a
    chunk of response tokens is at the head, `vision` while the vision tower runs. `mask`: the dense path's L x L mask
    with the copy that the attention kernel makes."""

    kept: float
    layer: float
    head: float
    vision: float
    mask: float

    @property
    def peak(self) -> float:
        return self.kept + self.mask + max(self.layer, self.head, self.vision)


def trainable(counts: Counts, setup: Setup) -> int:
    if not setup.full:
        return counts.adapter
    head = 0 if counts.tied else counts.head
    vision = 0 if setup.freeze_vit else counts.vision
    return counts.language + head + vision + (0 if setup.freeze_aligner else counts.aligner)


def states(counts: Counts, setup: Setup, *, critique: bool) -> States:
    """Mixed-precision Adam: 2 bytes a weight and gradient, 12 bytes of float32 master weight and two moments for each
    trained parameter (in float32: 4, 4 and 8). ZeRO divides the optimizer by the GPUs from stage 1, gradients from
    stage 2, weights at stage 3. Full fine-tuning keeps a second, frozen model as the reference of Critique."""
    trained, size, n = trainable(counts, setup), setup.element_bytes, setup.gpus
    total = counts.total + (0 if setup.full else counts.adapter)
    part = n if setup.zero == 3 else 1
    buffers = 0
    if setup.zero in (1, 2):
        buffers = 2 * size * min(BUCKET, trained)
    elif setup.zero == 3 and n > 1:
        buffers = size * min(LIVE_PARAMETERS, total)
    return States(
        weights=size * total / part,
        gradients=size * trained / (n if setup.zero >= 2 else 1),
        optimizer=(12 if size == 2 else 8) * trained / (n if setup.zero >= 1 else 1),
        reference=size * counts.total / part if setup.full and critique else 0,
        buffers=buffers,
    )


def layer_saved(shape: Shape, setup: Setup) -> int:
    """Bytes a token that one decoder layer keeps for its backward pass, attention's own copies apart.

    Two norms in float32; query, key, value and output of the attention; gate, its activation and up of the MLP. LoRA
    keeps a copy of the input of each of its seven layers, as autocast makes it for PEFT's float32 adapters, and its
    rank-sized product; full fine-tuning keeps the inputs themselves.
    """
    h, q, k, i, size = shape.hidden, shape.query, shape.key, shape.intermediate, setup.element_bytes
    norms = 2 * (4 * h + 4)
    attention = size * (q + 2 * k) + 4 * shape.heads
    mlp = 3 * size * i
    if setup.full:
        inputs = 2 * size * h + size * (h + q + h + i)
    else:
        inputs = size * (5 * h + q + i) + 7 * size * setup.rank + size * q
    return norms + attention + mlp + inputs


def attention_copies(shape: Shape, layout: Layout, study: Study, setup: Setup, dense: bool) -> int:
    """Bytes that one layer's attention keeps beside `layer_saved`: keys and values repeated for every query head where
    the kernel needs that (under a mask, and in float32), and in the split path once more for every response together
    with the prefix, and the outputs of the pieces (apo/attention.py). The masks of responses are not counted: flash
    kernels keep none."""
    repeats = dense or setup.element_bytes == 4
    repeated = 2 * setup.element_bytes * shape.query * layout.tokens if repeats else 0
    if dense or layout.rows > 1:
        return repeated
    responses = layout.targets // study.response
    heads = shape.query if repeats else shape.key
    outputs = setup.element_bytes * shape.query * layout.tokens
    return repeated + outputs + 2 * setup.element_bytes * heads * responses * (study.prompt + study.response)


def activations(
    shape: Shape, layout: Layout, study: Study, setup: Setup, *, dense: bool = False, studies: int = 1
) -> Activations:
    """Activations of a micro-batch of `studies` equal studies, each laid out as `layout` (its `rows` at once)."""
    tokens, size = studies * layout.tokens, setup.element_bytes
    saved = layer_saved(shape, setup) * tokens
    saved += studies * attention_copies(shape, layout, study, setup, dense)
    # gradients of gate, activation, up and their product at the same time, and LoRA's float32 copy of the last
    backward = (4 * size + (0 if setup.full else 4)) * shape.intermediate * tokens
    # embeddings, last states and their gradient; the last norm in float32
    ends = (4 * size + 4) * shape.hidden * tokens
    kept, layer = (
        (shape.layers * size * shape.hidden * tokens, saved + backward)
        if setup.checkpointing
        else (shape.layers * saved, backward)
    )
    targets = studies * layout.targets
    chunk = min(setup.chunk, targets)
    # logits in the model's type and in float32, exp of them, gradient in the model's type
    head = chunk * shape.vocab * (2 * size + 8)
    # the gathered states and their gradient, formed in the forward pass, stay to the end
    ends += 2 * size * shape.hidden * targets
    mask = studies * (1 + size) * (layout.tokens // layout.rows) ** 2 * layout.rows if dense else 0
    tower_kept, tower = vision_activations(shape, studies * layout.films * study.film, setup)
    return Activations(kept + ends + tower_kept, layer, head, tower, mask)


def vision_activations(shape: Shape, film: int, setup: Setup) -> tuple[float, float]:
    """Bytes that the vision tower keeps for its backward pass (0 when frozen), and while one of its blocks runs."""
    patches, size, h = film * PATCHES_A_TOKEN, setup.element_bytes, shape.vision_hidden
    block = patches * (2 * (4 * h + 4) + size * (6 * h) + 4 * size * shape.vision_intermediate)
    pixels = patches * 4 * shape.patch
    if setup.freeze_vit:
        return pixels, block
    if setup.checkpointing:
        return pixels + shape.vision_layers * size * h * patches, 2 * block
    return pixels + shape.vision_layers * block, block


def usable(gpu_memory: float) -> float:
    """Bytes of a GPU of `gpu_memory` GiB that are left for a training process."""
    return max(0.0, gpu_memory * GIB * (1 - FRAGMENTATION) - CONTEXT)


def needed(counts: Counts, shape: Shape, layout: Layout, study: Study, setup: Setup, studies: int, **kind) -> float:
    """Bytes on one GPU. `kind`: critique=True|False, dense=True|False."""
    fixed = sum(states(counts, setup, critique=kind["critique"]))
    return fixed + activations(shape, layout, study, setup, dense=kind.get("dense", False), studies=studies).peak


def largest(counts: Counts, shape: Shape, layout: Layout, study: Study, setup: Setup, gpu_memory: float, **kind) -> int:
    """Most studies a micro-batch that fit one GPU, 0 when not even one does, at most MOST_STUDIES."""
    fits, over = 0, MOST_STUDIES + 1
    while over - fits > 1:
        middle = (fits + over) // 2
        if needed(counts, shape, layout, study, setup, middle, **kind) <= usable(gpu_memory):
            fits = middle
        else:
            over = middle
    return fits


def remedies(counts, shape, make_layout, study: Study, setup: Setup, gpu_memory: float, **kind) -> list[str]:
    """What alone would make one study fit. `make_layout(study)` lays a study out again with a smaller film."""

    def fits(study: Study, setup: Setup) -> bool:
        return largest(counts, shape, make_layout(study), study, setup, gpu_memory, **kind) > 0

    found = []
    if not setup.checkpointing and fits(study, setup._replace(checkpointing=True)):
        found.append("gradient_checkpointing: true")
    stages = [zero for zero in range(setup.zero + 1, 4) if setup.gpus > 1 and fits(study, setup._replace(zero=zero))]
    found += [f"deepspeed: zero{zero}" for zero in stages[:1]]
    text = study.prompt - study.film
    film = study.film - 1
    while film >= SMALLEST_FILM and not fits(study._replace(prompt=text + film, film=film), setup):
        film -= max(1, film // 50)
    if film >= SMALLEST_FILM:
        found.append(f"max_pixels: {film * PIXELS_A_TOKEN} ({film:,} film tokens)")
    if not found:
        found = together(lambda other: fits(study, other), setup)
    bigger = math.ceil(
        (needed(counts, shape, make_layout(study), study, setup, 1, **kind) + CONTEXT) / (1 - FRAGMENTATION) / GIB
    )
    return [*found, f"a GPU of {bigger} GiB"]


def together(fits, setup: Setup) -> list[str]:
    """Combinations that make a study fit where no single change does: more GPUs, with checkpointing, with LoRA; each
    with its fewest GPUs (doubled until it fits), where that is fewer than without the last change."""
    found, words, fewest = [], [], math.inf
    this = setup._replace(zero=3)
    for name, value, word in (
        ("gpus", setup.gpus, ""),
        ("checkpointing", True, "gradient_checkpointing: true"),
        ("full", False, "tuner_type: lora"),
    ):
        if word and getattr(this, name) != value:
            this = this._replace(**{name: value})
            words.append(word)
        elif word:
            continue
        counts = (setup.gpus * 2**power for power in range(11))
        gpus = next((n for n in counts if fits(this._replace(gpus=n))), math.inf)
        if gpus < fewest:
            fewest = gpus
            machines = f"{gpus} GPUs with deepspeed: zero3" if gpus > 1 else "1 GPU"
            found.append(" and ".join([machines, *words]))
    return found
