"""FLOPs of one study by closed formula, for this project's shared rows, for plain rows and for stock pairs.

One multiply-add is two FLOPs. Counted are matrix products: linear layers, attention (scores and values), patch
embedding, head, adapters. Not counted: norms, rotary embedding, softmax, activation functions, optimiser.

Attention is counted by the query-key pairs that are NEEDED: a causal row of L tokens has L (L + 1) / 2. Flash and
`causal_lower_right` kernels come close to it; a dense mask computes all L x L pairs (`dense`). The backward pass of an
attention counts twice its forward; the scores that flash kernels compute again there are not counted.
"""

from typing import NamedTuple

from apo.shapes import PATCHES_A_TOKEN, Shape


class Study(NamedTuple):
    """Tokens of a study: `prompt` with the film in it, `film` alone, of each `response`; and teachers' trajectories."""

    prompt: int
    film: int
    response: int
    trajectories: int


class Setup(NamedTuple):
    """What of a run's settings changes its FLOPs or its memory; the defaults are the published ones.

    `element_bytes`: of a weight and an activation (2 for bfloat16). `batch`: rows an optimiser step. `zero`: DeepSpeed
    stage.
    """

    full: bool = False
    rank: int = 8
    zero: int = 2
    gpus: int = 2
    checkpointing: bool = True
    freeze_vit: bool = True
    freeze_aligner: bool = True
    one_look: bool = True
    chunk: int = 256
    epochs: float = 1.0
    batch: int = 32
    element_bytes: int = 2

    @property
    def shares_look(self) -> bool:
        return self.one_look and self.freeze_vit and self.freeze_aligner


class Layout(NamedTuple):
    """What one pass takes through the model: decoder `tokens`, response tokens at the head (`targets`), query-key
    `pairs`, and films through the vision tower (`films`). `rows` is the number of rows it is spread over."""

    tokens: int
    targets: int
    pairs: int
    films: int
    rows: int


class Cost(NamedTuple):
    """FLOPs by part. `adapter` is LoRA's, in the language model."""

    vision: float
    linear: float
    attention: float
    head: float
    adapter: float


class Way(NamedTuple):
    """One way of training on a study: its policy pass with backward, and its reference pass (all 0 in Learn)."""

    name: str
    layout: Layout
    films: int
    policy: Cost
    reference: Cost

    @property
    def total(self) -> float:
        return sum(self.policy) + sum(self.reference)


NOTHING = Cost(0, 0, 0, 0, 0)


def causal(length: int) -> int:
    """Query-key pairs of a causal row."""
    return length * (length + 1) // 2


def rows(study: Study, responses: int) -> Layout:
    """Each response in a row of its own behind a copy of film and prompt."""
    length = study.prompt + study.response
    return Layout(responses * length, responses * study.response, responses * causal(length), responses, responses)


def shared(study: Study, responses: int) -> Layout:
    """Film and prompt once, then the responses; each sees the prefix and itself."""
    pairs = causal(study.prompt) + responses * (study.response * study.prompt + causal(study.response))
    return Layout(study.prompt + responses * study.response, responses * study.response, pairs, 1, 1)


def dense(layout: Layout) -> Layout:
    """The same with attention under a dense mask: every token against every token of its row."""
    return layout._replace(pairs=layout.tokens**2 // layout.rows)


def layer_linear(shape: Shape) -> int:
    """Weights of one decoder layer's linear layers."""
    return 2 * shape.hidden * shape.query + 2 * shape.hidden * shape.key + 3 * shape.hidden * shape.intermediate


def layer_adapter(shape: Shape, rank: int) -> int:
    """Parameters that LoRA adds to one decoder layer: rank x (inputs + outputs) of its seven linear layers."""
    h, q, k, i = shape.hidden, shape.query, shape.key, shape.intermediate
    return rank * (2 * (h + q) + 2 * (h + k) + 3 * (h + i))


def forward(shape: Shape, layout: Layout, rank: int = 0) -> Cost:
    """One forward pass of decoder and head, without the vision tower; rank 0: no adapters."""
    return Cost(
        vision=0,
        linear=2 * shape.layers * layer_linear(shape) * layout.tokens,
        attention=4 * shape.layers * shape.query * layout.pairs,
        head=2 * shape.hidden * shape.vocab * layout.targets,
        adapter=2 * shape.layers * layer_adapter(shape, rank) * layout.tokens,
    )


def vision_forward(shape: Shape, film: int) -> tuple[int, int, int, int]:
    """One film of `film` tokens: FLOPs of the patch embedding, of the blocks' linear layers, of attention, of the
    merger. Exact where the film's sides are multiples of the window, else a little high."""
    patches, h = film * PATCHES_A_TOKEN, shape.vision_hidden
    block = 4 * h * h + 3 * h * shape.vision_intermediate
    windowed = shape.vision_layers - shape.full
    attention = 4 * h * patches * (shape.full * patches + windowed * min(shape.window, patches))
    merged = PATCHES_A_TOKEN * h
    merger = 2 * film * merged * (merged + shape.hidden)
    return 2 * patches * shape.patch * h, 2 * patches * shape.vision_layers * block, attention, merger


def policy(shape: Shape, layout: Layout, study: Study, setup: Setup, *, chunked_head: bool = True) -> Cost:
    """Forward and backward: activations' gradients, weights' gradients where they train, recomputation of whole layers
    where they are checkpointed (the non-reentrant kind leaves out `down_proj` in full fine-tuning, 6 % of a step).
    `chunked_head`: a head that trains is computed again in the backward pass, chunk by chunk."""
    once = forward(shape, layout, 0 if setup.full else setup.rank)
    linear = 2 + setup.checkpointing + setup.full
    twice = 3 + setup.checkpointing  # two products in the backward pass for each of the forward pass
    embedding, blocks, attention, merger = vision_forward(shape, study.film)
    if setup.freeze_vit:
        vision = embedding + blocks + attention + merger * (1 if setup.freeze_aligner else 2 + setup.full)
    else:
        # no gradient of the pixels; the merger is not checkpointed
        vision = embedding * (1 + setup.full) + blocks * linear + attention * twice
        vision += merger * (2 + (setup.full and not setup.freeze_aligner))
    return Cost(
        vision=vision * layout.films,
        linear=once.linear * linear,
        attention=once.attention * twice,
        head=once.head * (2 + setup.full * (1 + chunked_head)),
        adapter=once.adapter * twice,
    )


def reference(shape: Shape, layout: Layout, study: Study, films: int) -> Cost:
    """A forward pass without adapters, with `films` films through the vision tower."""
    return forward(shape, layout)._replace(vision=films * sum(vision_forward(shape, study.film)))


def critique_ways(shape: Shape, study: Study, setup: Setup) -> list[Way]:
    """Critique of one study, consensus against its trajectories: ours, ours under a dense mask, plain rows, and the N
    pairs of stock DPO, which repeats the consensus in every pair and sees the film in every row and pass."""
    responses = study.trajectories + 1
    layouts = {
        "shared": shared(study, responses),
        "shared, mask": dense(shared(study, responses)),
        "plain rows": rows(study, responses),
        "stock pairs": rows(study, 2 * study.trajectories),
    }
    ways = []
    for name, layout in layouts.items():
        stock = name == "stock pairs"
        again = 0 if setup.shares_look and not stock else layout.films
        trained = policy(shape, layout, study, setup, chunked_head=not stock)
        ways.append(
            Way(name, layout, layout.films + again, trained, reference(shape, layout, study, again)),
        )
    return ways


def learn_ways(shape: Shape, study: Study, setup: Setup) -> list[Way]:
    """Learn on all trajectories of one study: behind one film and prompt, the same under a dense mask, as rows."""
    packed = shared(study, study.trajectories)
    layouts = {
        "shared": packed,
        "shared, mask": dense(packed),
        "separate rows": rows(study, study.trajectories),
    }
    return [
        Way(name, layout, layout.films, policy(shape, layout, study, setup), NOTHING)
        for name, layout in layouts.items()
    ]


def cached(way: Way) -> Way:
    """The same with the reference's log-probs read from disk."""
    return way._replace(name=f"{way.name}, cached", films=way.layout.films, reference=NOTHING)


def training(way: Way, studies: int, epochs: float, *, cache: bool = False) -> float:
    """FLOPs of a whole stage. `cache`: the reference runs in the first epoch only."""
    passes = min(epochs, 1.0) if cache else epochs
    return studies * (epochs * sum(way.policy) + passes * sum(way.reference))


def hours(flops: float, setup: Setup, peak_tflops: float, utilisation: float) -> float:
    return flops / (setup.gpus * peak_tflops * 1e12 * utilisation) / 3600
