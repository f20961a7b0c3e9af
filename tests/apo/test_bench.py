"""The benchmark's accounting: what it counts, compares and divides. Never how long anything took."""

import json
import math
import statistics
import sys

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from apo import bench, bench_cases, bench_counts, bench_ratios, bench_report
from apo.bench_cases import CASES, Settings
from data.errors import UserError

N, STUDIES = 2, 2
COUNTS = {"prompt_tokens": 100, "response_tokens": 16, "negatives": N, "studies": STUDIES}
SMALL = Settings(**COUNTS, steps=2, warmup=1, hidden=64, layers=2)


@pytest.fixture(scope="module")
def result():
    return bench.measure(SMALL, list(CASES))


@pytest.mark.slow
def test_counts_films_and_tokens(result):
    cases = result["cases"]
    shapes = cases["shared_split"]["shapes"]
    assert [len(shape) for shape in shapes] == [N + 2] * STUDIES
    for prefix, *responses in shapes:
        assert prefix == pytest.approx(SMALL.prompt_tokens, abs=10)
        assert all(0.5 * SMALL.response_tokens <= r <= 1.5 * SMALL.response_tokens for r in responses)
        assert len(set(responses)) > 1
    once = sum(map(sum, shapes))
    rows = sum(p * len(r) + sum(r) for p, *r in shapes)
    pairs = sum(2 * N * p + N * r[0] + sum(r[1:]) for p, *r in shapes)
    learnt = sum(N * p + sum(r[1:]) for p, *r in shapes)
    encodes = {
        "stock_pairs": 4 * N,
        "plain_rows": N + 1,
        "shared_mask": 1,
        "shared_split": 1,
        "shared_split_cached": 1,
        "learn_rows": N,
        "learn_shared": 1,
    }
    tokens = {name: once for name in CASES} | {"stock_pairs": pairs, "plain_rows": rows, "learn_rows": learnt}
    tokens["learn_shared"] = sum(p + sum(r[1:]) for p, *r in shapes)
    for name, case in cases.items():
        assert case["vision_encodes"] == encodes[name] * STUDIES, name
        assert case["tokens_a_pass"] == tokens[name], name
        assert case["decoder_passes"] == (2 if name[:5] != "learn" and name != "shared_split_cached" else 1), name
        assert case["decoder_tokens"] >= tokens[name] * case["decoder_passes"], name
        assert len(case["seconds"]) == SMALL.steps
    limits = result["limits"]
    assert limits["plain_rows"] == pytest.approx(rows / once)
    assert limits["stock_pairs"] == pytest.approx(pairs / once)
    assert limits["learn_rows"] == pytest.approx(learnt / tokens["learn_shared"])
    assert limits["plain_rows_padded"] >= limits["plain_rows"]


@pytest.mark.slow
def test_the_cases_compute_the_same(result):
    worst = result["max_difference"]
    assert worst["token_logps"] < 1e-5
    assert worst["loss"] < 1e-6
    assert worst["gradient_relative"] < 1e-5
    assert result["difference_by_case"]["stock_pairs"]["summed_logps_relative"] < 1e-6
    # Not equal because nothing was computed: the adapters make policy and reference differ.
    assert abs(result["cases"]["plain_rows"]["loss"] - math.log(N + 1)) > 1e-3
    assert all(case["gradient_norm"] > 0 for case in result["cases"].values())


@pytest.mark.slow
def test_ratios_come_from_the_medians_of_one_run(result):
    cases, ratios = result["cases"], result["ratios"]
    median = {name: statistics.median(case["seconds"]) for name, case in cases.items()}
    assert ratios["stock_pairs"] == median["stock_pairs"] / median["shared_split"]
    assert ratios["stock_pairs_cached"] == median["stock_pairs"] / median["shared_split_cached"]
    assert ratios["learn_rows"] == median["learn_rows"] / median["learn_shared"]
    assert ratios["memory_plain_rows"] == cases["plain_rows"]["peak_mb"] / cases["shared_split"]["peak_mb"]
    assert ratios["share_of_token_ratio"] == ratios["plain_rows"] / result["limits"]["plain_rows"]
    assert {"plain_rows", "memory_stock_pairs", "share_of_learn_token_ratio"} <= ratios.keys()
    flops = {name: case["flops"] for name, case in cases.items()}
    assert flops["shared_split_cached"] < flops["shared_split"] < flops["shared_mask"] < flops["plain_rows"]
    assert flops["plain_rows"] < flops["stock_pairs"]
    assert all(0 < case["attention_flops"] < case["flops"] for case in cases.values())
    assert all(case["peak_mb"] >= case["loaded_mb"] > 0 for case in cases.values())


@pytest.mark.slow
def test_result_is_json_and_its_tables_name_every_case(result, tmp_path, monkeypatch, capsys):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result, allow_nan=False), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["bench", "--table", str(path)])
    bench.main()
    text = capsys.readouterr().out
    assert text == bench_report.results_text(result) + "\n"
    for case in CASES.values():
        assert f"| {case.label} " in text
    for key, label in (bench_report.RATIO_LABELS | bench_report.MEMORY_LABELS).items():
        rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()]
        (row,) = [row for row in rows if row[1:2] == [label]]
        assert row[2] == f"{result['ratios'][key]:.2f}"


def test_token_limit_is_the_formula_for_equal_responses():
    p, r, n = 600, 200, 7
    assert bench_ratios.token_limits([[p] + [r] * (n + 1)]) == pytest.approx((n + 1) * (p + r) / (p + (n + 1) * r))
    assert bench_ratios.token_limits([[100, 10, 30]]) == 240 / 140
    assert bench_ratios.token_limits([[100, 10, 30]], longest=True) == 260 / 140


class FakeWorker:
    def __init__(self, name, log):
        self.name, self.log = name, log

    def ask(self, command):
        self.log.append((self.name, command))
        return {"seconds": float(len(self.log))}


def test_cases_take_turns_and_each_round_begins_with_another():
    log = []
    seconds = bench.take_turns([FakeWorker(name, log) for name in "abc"], 4, lambda text: None)
    assert "".join(name for name, _ in log) == "abcbcacababc"
    assert [len(found) for found in seconds.values()] == [4, 4, 4]


def test_gradients_of_other_parameters_are_not_compared():
    ours = {"grad/a": np.ones(2), "logps/x": np.ones(1)}
    assert bench_ratios.gradient_difference(ours, {"grad/a": np.array([1.0, 1.1])}) == pytest.approx(
        0.1 / math.hypot(1, 1.1)
    )
    with pytest.raises(RuntimeError, match="same parameters"):
        bench_ratios.gradient_difference(ours, {"grad/b": np.ones(2)})
    with pytest.raises(RuntimeError, match="same parameters"):
        bench_ratios.gradient_difference({}, {})


@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_counted_where_pytorch_does_not(causal):
    q, k, v = (torch.randn(2, 3, 5, 8, requires_grad=True) for _ in range(3))
    with FlopCounterMode(display=False, custom_mapping=bench_counts.ATTENTION_FLOPS) as counter:
        torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal).sum().backward()
    pairs = 15 if causal else 25
    assert counter.get_total_flops() == 3 * (2 * 3 * 8 * 4 * pairs)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("op", bench_counts.ATTENTION_FLOPS, ids=str)
def test_attention_kernels_are_counted_by_the_arguments_of_their_schema(op, causal):
    """Those of a GPU cannot be called here; a formula that reads the wrong position counts something else."""
    known = {"query": (2, 28, 5, 8), "key": (2, 4, 5, 8), "value": (2, 4, 5, 8), "is_causal": causal}
    arguments = [known.get(a.name) for a in op.default._schema.arguments if not a.kwarg_only]
    passes = 2 if "backward" in str(op) else 1
    pairs = 15 if causal else 25
    assert bench_counts.ATTENTION_FLOPS[op](*arguments, out_shape=None, scale=None) == passes * 4 * 2 * 28 * 8 * pairs


def test_response_lengths_are_unequal_and_keep_their_mean():
    lengths = bench_cases.response_lengths(np.random.default_rng(0), 8, 200)
    assert len(set(lengths)) > 4
    assert sum(lengths) == pytest.approx(1600, abs=8)
    assert all(100 <= n <= 300 for n in lengths)


def test_stock_micro_batches_divide_the_step_and_fit_memory():
    settings = Settings(negatives=6, studies=2, vocab=151936)
    case = CASES["stock_pairs"]
    sizes = [bench_cases.stock_micro_batch(settings, case, gigabytes * 10**9) for gigabytes in (0, 4, 8, 1000)]
    assert sizes == sorted(sizes) and sizes[0] == 1 and sizes[-1] == 12
    assert all(12 % size == 0 for size in sizes)
    given = Settings(negatives=6, studies=2, batch=4)
    assert bench_cases.stock_micro_batch(given, case, 0) == 4
    with pytest.raises(UserError, match="--batch 5: must divide the 12 pairs"):
        bench_cases.stock_micro_batch(Settings(negatives=6, studies=2, batch=5), case, 0)


def test_a_case_that_fails_is_named_with_the_end_of_its_log(tmp_path, monkeypatch):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho the film is missing >&2\nexit 3\n", encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setattr(bench.sys, "executable", str(script))
    worker = bench.Worker({"name": "plain_rows", "folder": str(tmp_path / "plain_rows"), "threads": 1})
    try:
        with pytest.raises(RuntimeError, match="plain_rows ended with status 3(.|\n)*the film is missing"):
            worker.answer()
    finally:
        worker.close()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--negatives", "0"], "--negatives 0: must be at least 1"),
        (["--steps", "0"], "--steps 0: must be at least 1"),
        (["--hidden", "500"], "--hidden 500: must be a multiple of 32"),
        (["--device", "tpu"], "--device tpu: choose from cpu, cuda"),
        (["--device", "cuda"], "--device cuda: no GPU is visible"),
        (["--dtype", "int8"], "--dtype int8: choose from float32, bfloat16"),
        (["--size", "9B"], "--size 9B: choose from mid, 3B, 7B"),
        (["--size", "7B", "--layers", "2"], "--layers 2: 7B has its own; leave --layers out"),
        (["--prompt-tokens", "40"], "--prompt-tokens 40: the text alone takes"),
        (["--cases", "shared"], "--cases shared: unknown case"),
        (["--cases", ""], "--cases is empty"),
        (["--profile", "nothing"], "--profile nothing: unknown case"),
        (["--vary", "negatives=1,3"], "need --sweep"),
        (["--sweep", "s.json"], "--sweep needs --vary"),
        (["--sweep", "s.json", "--vary", "layers=1"], "vary prompt_tokens, response_tokens or negatives"),
        (["--sweep", "s.json", "--vary", "negatives=1,x"], "expected numbers with commas"),
        (["--sweep", "s.json", "--vary", "negatives=0"], "--negatives 0: must be at least 1"),
        (["--sweep", "s.json", "--figure", "f.pdf"], "must end in .png or .svg"),
        (["--sweep", "s.json", "--figure", "f.svg"], "s.json: cannot be read as JSON"),
        (["--table", "missing.json"], "missing.json: cannot be read as JSON"),
        (["--json", "b.json", "--sweep", "s.json", "--vary", "negatives=1"], "--json is for one measurement"),
        (["--json", "new/"], "new/: is not a regular file"),
        (["--sweep", ".", "--vary", "negatives=1"], ".: is not a regular file"),
    ],
)
def test_refuses_bad_arguments(argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench_cases.machine, "gpus", list)
    monkeypatch.setattr(bench, "Worker", None)  # whatever is refused is refused before a case starts
    monkeypatch.setattr(sys, "argv", ["bench", *argv])
    with pytest.raises(UserError) as error:
        bench.main()
    assert message in str(error.value)


@pytest.mark.parametrize(("text", "key"), [('{"cases": {}}', "settings"), ("[]", "cases"), ("{}", "cases")])
def test_a_table_of_something_else_is_refused(text, key, tmp_path, monkeypatch):
    (tmp_path / "b.json").write_text(text, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["bench", "--table", str(tmp_path / "b.json")])
    with pytest.raises(UserError, match=f"b.json: has no '{key}'"):
        bench.main()


def test_a_result_that_cannot_be_written_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "measure", lambda *args, **more: (tmp_path / "b.json").mkdir() or {"profiles": {}})
    monkeypatch.setattr(bench, "results_text", lambda result: "the table")
    monkeypatch.setattr(sys, "argv", ["bench", "--json", str(tmp_path / "b.json")])
    with pytest.raises(UserError, match=r"b\.json: is not a regular file"):
        bench.main()
    assert capsys.readouterr().out == "the table\n"


@pytest.fixture
def measured(monkeypatch):
    """`bench.measure` replaced by arithmetic; the list of settings it was asked for."""
    asked = []

    def measure(settings, names):
        asked.append(settings)
        limit = bench_ratios.token_limits(
            [[settings.prompt_tokens] + [settings.response_tokens] * (settings.negatives + 1)]
        )
        limits = {"plain_rows": limit, "stock_pairs": 2 * limit}
        ratios = {name: 0.9 * value for name, value in limits.items()}
        return {"settings": bench.asdict(settings), "ratios": ratios, "limits": limits}

    monkeypatch.setattr(bench, "measure", measure)
    return asked


def test_a_sweep_continues_where_it_stopped_and_is_drawn(tmp_path, measured):
    path, base = tmp_path / "sweep.json", Settings()
    bench.sweep(path, base, ["plain_rows"], {"negatives": [1, 7], "prompt_tokens": [300, 600]})
    assert [(s.negatives, s.prompt_tokens) for s in measured] == [(1, 600), (7, 600), (7, 300)]
    state = bench.sweep(path, base, ["plain_rows"], {"negatives": [1, 3, 7]})
    assert [s.negatives for s in measured[3:]] == [3]
    assert [p["settings"]["negatives"] for p in bench_report.points_over(state, "negatives")] == [1, 3, 7]
    assert len(bench_report.points_over(state, "prompt_tokens")) == 2
    figures = []
    for name in ("a.svg", "b.svg", "c.png"):
        bench_report.draw_sweep(json.loads(path.read_text(encoding="utf-8")), tmp_path / name)
        figures.append((tmp_path / name).read_bytes())
    assert figures[0] == figures[1] and b"<svg" in figures[0]
    assert figures[2].startswith(b"\x89PNG")


def test_a_sweep_refuses_points_around_another_base(tmp_path, measured):
    path = tmp_path / "sweep.json"
    bench.sweep(path, Settings(), ["plain_rows"], {"negatives": [1]})
    with pytest.raises(UserError, match="other settings or cases"):
        bench.sweep(path, Settings(layers=2), ["plain_rows"], {"negatives": [1]})
    with pytest.raises(UserError, match="no setting with two measured values"):
        bench_report.draw_sweep(json.loads(path.read_text(encoding="utf-8")), tmp_path / "f.svg")


def test_the_tool_warns_of_a_busy_machine(monkeypatch):
    monkeypatch.setattr(bench.os, "getloadavg", lambda: (50.0, 1.0, 1.0))
    monkeypatch.setattr(bench.os, "cpu_count", lambda: 2)
    assert bench.environment()["busy_at_start"]
    monkeypatch.setattr(bench.os, "getloadavg", lambda: (0.1, 1.0, 1.0))
    assert not bench.environment()["busy_at_start"]


@pytest.mark.slow
def test_a_released_size_has_its_own_shapes_and_vocabulary(monkeypatch, tmp_path):
    """Small shapes in place of 7B's; all else, from the tokenizer's ids to the steps of a case, is the real path."""
    from transformers import Qwen2_5_VLConfig

    def small(size):
        assert size == "7B"
        text = {"hidden_size": 128, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
        text |= {"intermediate_size": 64, "vocab_size": 4096}
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
        tower = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 128}
        return Qwen2_5_VLConfig(text_config=text, vision_config=tower, tie_word_embeddings=False)

    monkeypatch.setattr(bench_cases, "released_config", small)
    monkeypatch.setattr(bench_cases.qwen_tokenizer, "tiktoken_file", missing_tokenizer)
    result = bench.measure(
        Settings(**COUNTS, steps=1, warmup=0, size="7B", dtype="bfloat16"),
        ["plain_rows", "shared_split"],
        keep=tmp_path,
    )
    config = json.loads((tmp_path / "student" / "config.json").read_text(encoding="utf-8"))
    assert config["text_config"]["vocab_size"] == 4096 and config["text_config"]["hidden_size"] == 128
    assert config["dtype"] == "bfloat16"
    assert result["difference_by_case"]["shared_split"]["token_logps"] < 0.1  # two orders of rounding in bfloat16
    text = bench_report.results_text(result)
    assert "Qwen2.5-VL of 7B with random weights" in text and "bfloat16" in text


def missing_tokenizer():
    raise UserError("not here")
