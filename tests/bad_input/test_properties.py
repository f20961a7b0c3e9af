"""Whatever bytes come: readers read, or refuse with the project's own error. And laws of the loss and the groups.

Examples are derandomised, so every run tries the same ones; their number bounds the time.
"""

import json
import math

import pytest
import torch
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from apo import attention, group
from apo.loss import group_metrics, plackett_luce
from data import checkpoints, manifest
from data.collect.settings import read_config as read_collect
from data.errors import UserError
from data.files import read_jsonl
from data.images import decode_problem
from data.records import check_study, read_studies
from data.row_checks import check_rows, file_kind
from data.rows import apo_row, sft_rows, shared_row
from eval.report import read_log, read_results
from scripts.sampling import pick_lines
from scripts.settings import read_config, stage_of
from tests.bad_input.cases import study
from tests.bad_input.test_images import JPEG, PNG

FEW = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
SEEDS = [
    json.dumps(study()).encode(),
    b'{"messages": [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "x"}], "images": ["a"]}',
    b'{"schema": 1, "rows": [], "global_step/max_steps": "1/2", "loss": 1.0}',
    b"model: m\ndataset: [a, b]\nmodel_kwargs: {apo_layout: rows}\n"
    b"teachers: [{name: a, base_url: 'http://x', model: m}]\n",
]
FRAGMENTS = [
    b"null",
    b"[]",
    b"{}",
    b'"',
    b"\\ud800",
    b"1e999",
    b"NaN",
    b"\0",
    b"\xff",
    b"\n",
    b"!!x ",
    b"&a ",
    b"*a",
    b"- ",
]


@st.composite
def damaged(draw, seeds=SEEDS):
    """A file of a kind that the readers know, with up to four pieces replaced; or any bytes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=60))
    raw = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        at, cut = draw(st.integers(0, len(raw))), draw(st.integers(0, 12))
        raw[at : at + cut] = draw(st.binary(max_size=6) | st.sampled_from(FRAGMENTS))
    return bytes(raw)


READERS = {
    "lines": lambda path: list(read_jsonl(path)),
    "torn lines": lambda path: list(read_jsonl(path, torn="drop")),
    "records": lambda path: list(read_studies(path)),
    "learn rows": lambda path: check_rows(path, "sft"),
    "critique rows": lambda path: check_rows(path, "apo"),
    "kind": file_kind,
    "sample": pick_lines,
    "learn config": lambda path: read_config("learn", path),
    "critique config": lambda path: read_config("critique", path),
    "stage": stage_of,
    "collect config": read_collect,
    "results": read_results,
    "log": read_log,
}


@pytest.mark.parametrize("name", READERS)
@FEW
@given(raw=damaged())
def test_a_reader_reads_or_refuses(name, raw, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(raw)
    try:
        READERS[name](path)
    except UserError as error:
        assert str(path) in str(error), "the message names the file"


@FEW
@given(value=JSON)
def test_a_checkpoint_of_any_json_is_described_or_refused(value, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir(exist_ok=True)
    for name in ("config.json", "args.json", "model.safetensors.index.json", "adapter_config.json"):
        (folder / name).write_text(json.dumps(value))
        with pytest.raises(UserError):
            checkpoints.describe(folder)


@FEW
@given(value=JSON)
def test_a_manifest_of_any_json_is_read_or_refused(value, tmp_path):
    (tmp_path / "out").write_text("x")
    (tmp_path / "run").mkdir(exist_ok=True)
    manifest.sidecar(tmp_path / "out").write_text(json.dumps(value))
    (tmp_path / "run" / manifest.LAUNCH).write_text(json.dumps(value))
    for check in (lambda: manifest.stale(tmp_path / "out"), lambda: manifest.refuse_other_data(tmp_path / "run", [])):
        try:
            check()
        except UserError:
            continue


@FEW
@given(raw=damaged([PNG, JPEG]))
def test_an_image_decodes_or_has_a_problem(raw, tmp_path):
    path = tmp_path / "film.png"
    path.write_bytes(raw)
    found = decode_problem(str(path))
    assert found is None or ";" in found, "every problem has a remedy"


@FEW
@given(value=st.dictionaries(st.sampled_from(["model", "dataset", "beta", "model_kwargs", "on_identical"]), JSON))
def test_any_yaml_value_becomes_words(value, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(value | {"seed": 1}))  # a file without any setting is refused
    for words in read_config("critique", path).values():
        assert isinstance(words, str) or all(isinstance(word, str) for word in words)


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<\0"), min_size=1, max_size=12)


@FEW
@given(texts=st.lists(TEXT, max_size=5), statuses=st.data())
def test_rows_hold_every_ok_trajectory_once_and_nothing_else(texts, statuses):
    listed = [
        {"teacher": f"t{n}", "text": text, "status": statuses.draw(st.sampled_from(["ok", "refused"]))}
        for n, text in enumerate(texts)
        if text.strip()
    ]
    one = check_study(study(trajectories=listed))
    ok = [t["text"] for t in listed if t["status"] == "ok"]
    assert [row["messages"][1]["content"] for row in sft_rows(one, "/f")] == ok
    shared = shared_row(one, "/f")
    whole = [] if shared is None else [shared["messages"][1], *(turns[0] for turns in shared["positive_messages"])]
    assert [turn["content"] for turn in whole] == ok
    positive = one["consensus"]["text"]
    if ok and positive not in ok:
        row = apo_row(one, "/f")
        assert [turns[0]["content"] for turns in row["negative_messages"]] == ok
        assert row["images"] == ["/f/films/0.png"]


SIZES = st.lists(st.integers(2, 9), min_size=1, max_size=4)
NATS = st.floats(-5000, 5000)


@st.composite
def logps(draw):
    sizes = draw(SIZES)
    values = st.lists(NATS, min_size=sum(sizes), max_size=sum(sizes))
    policy, reference = (torch.tensor(draw(values), dtype=torch.float64) for _ in range(2))
    return policy, reference, sizes, draw(st.floats(1e-3, 10)), draw(st.floats(0, 0.49))


@FEW
@given(logps())
def test_the_loss_is_finite_bounded_and_blind_to_what_it_should_not_see(case):
    policy, reference, sizes, beta, smoothing = case
    policy.requires_grad_()
    plain = plackett_luce(policy, reference, sizes, beta=beta)
    smooth = plackett_luce(policy, reference, sizes, beta=beta, label_smoothing=smoothing)
    (gradient,) = torch.autograd.grad(smooth.losses.sum(), policy, retain_graph=True)
    assert plain.losses.isfinite().all() and smooth.losses.isfinite().all() and gradient.isfinite().all()
    assert (plain.losses >= 0).all()
    assert all(value.isfinite().all() for value in group_metrics(plain).values())
    # P(t+ > T) is a softmax: its gradient over a study's responses adds up to nothing.
    (gradient,) = torch.autograd.grad(plain.losses.sum(), policy)
    for part in gradient.split(sizes):
        assert abs(float(part.sum())) <= 1e-4 * beta
    # A study's loss at equal log-probs is log(N + 1), whatever they are.
    level = plackett_luce(reference, reference, sizes, beta=beta).losses
    torch.testing.assert_close(level, torch.tensor([math.log(size) for size in sizes]), rtol=1e-5, atol=1e-5)
    # Another order of the negatives changes nothing.
    ends = torch.tensor(sizes).cumsum(0).tolist()
    order = [i for end, size in zip(ends, sizes, strict=True) for i in (end - size, *range(end - 1, end - size, -1))]
    turned = plackett_luce(policy[order], reference[order], sizes, beta=beta).losses
    torch.testing.assert_close(turned, plain.losses, rtol=1e-4, atol=1e-4)


@FEW
@given(
    sizes=st.lists(st.integers(-1, 4), max_size=4),
    total=st.integers(0, 8),
    beta=st.sampled_from([0.1, 0, -1, math.nan]),
)
def test_the_loss_refuses_what_is_no_group(sizes, total, beta):
    values = torch.zeros(total, dtype=torch.float64)
    good = bool(sizes) and min(sizes) >= 2 and sum(sizes) == total and beta > 0
    assume(not good)
    with pytest.raises(ValueError):
        plackett_luce(values, values, sizes, beta=beta)


LENGTHS = st.lists(
    st.tuples(st.integers(1, 6), st.lists(st.integers(1, 5), min_size=1, max_size=4)), min_size=1, max_size=3
)


@FEW
@given(LENGTHS, st.integers(0, 3))
def test_a_token_of_a_shared_row_sees_its_prefix_and_itself_and_no_other_response(groups, padding):
    shapes = tuple((prefix, *responses) for prefix, responses in groups)
    length = max(map(sum, shapes)) + padding
    segments = attention.row_segments(shapes, length, torch.device("cpu"))
    mask = attention.shared_mask(segments, None)[:, 0]
    for row, (prefix, responses) in enumerate(groups):
        assert (segments[row] == 0).sum() == prefix
        assert [int((segments[row] == i + 1).sum()) for i in range(len(responses))] == responses
        for query in range(length):
            seen = set(mask[row, query].nonzero().flatten().tolist())
            if segments[row, query] < 0:
                assert seen == {query}
                continue
            own = [k for k in range(query + 1) if segments[row, k] in (0, segments[row, query])]
            assert seen == set(own)
    additive = attention.shared_mask(segments, torch.float32)[:, 0]
    assert torch.equal(additive == 0, mask)


@FEW
@given(LENGTHS)
def test_the_ratio_is_of_padded_batches(groups):
    made = [{"input_ids": [0] * p, "responses": [[0] * n for n in ns]} for p, ns in groups]
    rows = sum(len(ns) for _, ns in groups) * max(p + max(ns) for p, ns in groups)
    shared = len(groups) * max(p + sum(ns) for p, ns in groups)
    assert group.token_ratio(made) == pytest.approx(rows / shared)
