import json
import re

import pytest

from data.errors import UserError
from eval import charts, phantom
from eval import report as page
from tests.eval.cases import ALL_CLEAR, report, study, tables_of, trajectory

SCRIPT = "<script>alert('x')</script>"


@pytest.fixture
def files(make_file, tmp_path):
    hostile = f"No edema. {SCRIPT} \"quoted\" & 'single'"
    test = [
        study(0, {"Edema": None}, [trajectory(f"teacher {SCRIPT}", hostile)], consensus=report(Edema="present")),
        study(1, {}, [trajectory(f"teacher {SCRIPT}", "", "empty")], consensus=ALL_CLEAR),
        study(2, {"Pneumonia": "left"}, [trajectory(f"teacher {SCRIPT}", ALL_CLEAR)], consensus=ALL_CLEAR),
    ]
    studies = make_file([study(9, {}, split="train"), *test])
    learn = tmp_path / "learn.jsonl"
    learn.write_text("".join(json.dumps({"id": s["id"], "text": f"No edema. {SCRIPT}"}) + "\n" for s in test))
    results = tmp_path / "results.json"
    phantom.main(["--studies", str(studies), "--predictions", f"learn={learn}", "--out", str(results)])
    return {"--studies": studies, "--predictions": f"learn={learn}", "--results": results}


def make(files, tmp_path, **more):
    out = tmp_path / "report.html"
    argv = [str(word) for pair in (files | {"--out": out} | more).items() for word in pair]
    page.main(argv)
    return out.read_text(encoding="utf-8")


def test_every_text_is_escaped(files, tmp_path):
    html = make(files, tmp_path)
    assert "<script" not in html.lower()
    assert html.count("&lt;script&gt;") >= 4, "teacher name, teacher text and student text are shown as text"


def test_the_page_is_self_contained(files, tmp_path):
    html = make(files, tmp_path)
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", html)
    assert "http://" not in html and "https://" not in html and "url(" not in html
    assert html.count("data:image/png;base64,") == 3
    assert "Research use only" in html and "simulated" in html and tables_of(html) == 3
    assert str(tmp_path) not in html


def test_curves_from_an_ms_swift_log(files, tmp_path):
    log = tmp_path / "logging.jsonl"
    rows = [{"loss": 2 - 0.1 * i, "rewards/chosen": 0.1 * i, "global_step/max_steps": f"{i}/9"} for i in range(1, 10)]
    rows.append({"last_model_checkpoint": "x", "log_history": []})
    log.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"loss": 1.')
    read = page.read_log(log)
    assert [row["step"] for row in read] == list(range(1, 10))
    html = make(files, tmp_path, **{"--learn-log": log, "--critique-log": log})
    assert "loss <small>(last 1.1)</small>" in html and "rewards/chosen" in html
    assert "(second round)" not in html
    more = make(files, tmp_path, **{"--learn-log": log, "--critique-log": log, "--second-log": log})
    assert more.count("(second round)</h3>") == 4 == more.count("(critique)</h3>")
    assert html.count("No curve") == 2, "margins and accuracies are not in this log"


def test_the_consensus_of_another_round_is_shown_beside_the_first(files, tmp_path):
    again = tmp_path / "again.jsonl"
    rows = [json.loads(line) for line in files["--studies"].read_text().splitlines()]
    for number, row in enumerate(row for row in rows if "consensus" in row):
        row["consensus"]["text"] = f"Heard again {number}. No edema."
    del rows[-1]["consensus"]
    again.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "consensus, " not in make(files, tmp_path)
    words = ["--predictions", files["--predictions"], "--out", files["--results"]]
    words += ["--studies", files["--studies"], "--consensus", f"second round={again}"]
    phantom.main([str(word) for word in words])
    html = make(files, tmp_path, **{"--consensus": f"second round={again}"})
    assert html.count("<h3>consensus</h3>") == 3 == html.count("<h3>consensus, second round</h3>")
    assert [f"Heard again {number}" in html for number in range(3)] == [True, True, False]
    again.write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    with pytest.raises(UserError, match="--consensus second round=.*again.jsonl: another file was scored"):
        make(files, tmp_path, **{"--consensus": f"second round={again}"})


def test_without_logs_the_page_says_so(files, tmp_path):
    assert make(files, tmp_path).count("No curve") == 5


def test_a_run_that_diverged_is_drawn_as_far_as_it_went(files, tmp_path):
    log = tmp_path / "logging.jsonl"
    losses = [3.0, 2.0, float("nan"), 1e308, -1e308, 10**400, 1.0, 1.5]
    rows = [{"loss": loss, "global_step/max_steps": f"{i}/8"} for i, loss in enumerate(losses, 1)]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    html = make(files, tmp_path, **{"--learn-log": log})
    chart = html.split("<h3>Loss (learn)</h3>")[1].split("</div>")[0]
    assert chart.count("<polyline") == 2, "a gap where there is no number"
    assert "(last 1.5; 4 of 8 not drawn: not finite, or beyond 1e+100)" in html
    log.write_text(json.dumps(rows[2]) + "\n")
    assert make(files, tmp_path, **{"--learn-log": log}).count("No curve") == 5


@pytest.mark.parametrize(
    ("more", "message"),
    [
        *(
            ({"--out": name}, "--out .*: is the input file; choose another")
            for name in ("studies.jsonl", "results.json", "learn.jsonl")
        ),
        ({"--out": "log.jsonl", "--second-log": "log.jsonl"}, "--out .*: is the input file; choose another"),
        *(
            ({f"--{stage}-log": "none.jsonl"}, "none.jsonl: cannot be read .*; check the path")
            for stage in ("learn", "critique", "second")
        ),
        ({"--learn-log": "bad.jsonl"}, "bad.jsonl:1: not JSON at column 1 .*; write one JSON value"),
        ({"--studies": "other.jsonl"}, r"other.jsonl: is not the file that was scored \(studies.jsonl, sha256 "),
        ({"--predictions": "learn=other.jsonl"}, "--predictions learn=other.jsonl: another file was scored under this"),
        ({"--predictions": "learn=none.jsonl"}, "none.jsonl: cannot be read"),
        ({"--predictions": "leran=learn.jsonl"}, "--predictions leran=...: no such row .*did you mean 'learn'"),
        ({"--consensus": "again=studies.jsonl"}, "--consensus again=...: no such row in --results; they have none"),
        ({"--samples": "-1"}, "--samples -1: must be at least 0"),
    ],
)
def test_what_does_not_belong_is_refused_and_nothing_is_written(files, tmp_path, monkeypatch, more, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.jsonl").write_text(files["--studies"].read_text() + "\n")
    (tmp_path / "log.jsonl").write_text("{}\n")
    (tmp_path / "bad.jsonl").write_text("loss\n")
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(UserError, match=f"^{message}"):
        make(files, tmp_path, **more)
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_study_that_was_not_scored_is_not_shown(files, tmp_path):
    rows = [json.loads(line) for line in files["--studies"].read_text().splitlines()]
    del rows[1]["findings"]
    files["--studies"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers, results = files["--predictions"], files["--results"]
    phantom.main(["--studies", str(files["--studies"]), "--predictions", answers, "--out", str(results)])
    html = make(files, tmp_path)
    assert html.count("data:image/png;base64,") == 2 and "1 of 3 studies" in html


def test_samples_follow_a_rule():
    studies = [study(0, {}), study(1, {"Edema": None}), study(2, {"Edema": None}), study(3, {"Pneumonia": "left"})]
    assert [s["id"] for s in page.pick_samples(studies)] == ["test-3", "test-1", "test-0", "test-2"]
    assert [s["id"] for s in page.pick_samples(studies, 1)] == ["test-3"]


def test_marks_by_verdict():
    truth = {"Pneumothorax": ("present", "left"), "Edema": ("absent", None)}
    html = charts.marked_text("Left pneumothorax. No edema. Possible pneumonia.", truth)
    assert re.findall(r'class="(\w+)"', html) == ["ok", "ok", "unsure"]
    assert re.findall(r'class="(\w+)"', charts.marked_text("Right pneumothorax.", truth)) == ["bad"]
    assert re.findall(r'class="(\w+)"', charts.marked_text("No pneumothorax or edema.", truth)) == ["bad"]
    assert re.sub(r"<[^>]+>", "", html) == "Left pneumothorax. No edema. Possible pneumonia."


def test_an_answer_is_judged_in_the_chips_as_in_the_table():
    truth = {"Edema": ("present", None)}
    said = {label: kind for label, _, kind in charts.verdicts({}, truth)}
    assert said["Edema"] == "bad" and said["Pneumonia"] == "ok", "silence says absent"
    assert {kind for _, _, kind in charts.verdicts(None, truth)} == {"bad"}
    sided = charts.verdicts({"Edema": ("present", "left")}, {"Edema": ("present", "right")}, ["Edema"])
    assert sided == [("Edema", "present, left (wrong side)", "bad")]


def test_line_chart_edges():
    assert charts.line_chart([("a", [])], title="t") is None
    assert charts.line_chart([("a", [(1, float("nan"))])], title="t") is None
    one = charts.line_chart([("<b>", [(1, 2.0)])], title='"t"')
    assert "<circle" in one and "<b>" not in one and "&lt;b&gt;" in one
    assert "<circle" in charts.line_chart([("a", [(4, 1.0), (4, 1.0)])], title="t"), "logged twice, one point"
    points = re.search(r'polyline[^>]*points="([^"]+)"', charts.line_chart([("a", [(0, 0), (10, 1)])], title="t"))[1]
    (x0, y0), (x1, y1) = (map(float, p.split(",")) for p in points.split())
    assert x0 < x1 and y0 > y1, "SVG's y grows downwards"


@pytest.mark.parametrize("letters", [8, 40, 90])
def test_a_label_is_whole_or_says_that_it_is_cut(letters):
    label = "m" * letters
    svg = charts.interval_chart([(f"row {i}", [(label, 0.5, 0.4, 0.6)]) for i in range(8)], title="t")
    x, text = re.search(r'x="([\d.]+)" y="[\d.]+" text-anchor="end">(m[^<]*)<', svg).groups()
    assert float(x) - charts.LETTER * len(text) >= 0 and (text == label or text.endswith("m…"))
    assert (text == label) == (letters < 90) and label in svg, "the title of its dots has all of it"
    assert 'class="dot s0 d1"' in svg, "the seventh row looks unlike the first"


def test_ticks_enclose_the_data():
    for low, high in ((0, 1), (-1.3, 0.6), (5, 5), (0.001, 0.0012), (3, 977), (-1e100, 1e100), (1e20, 1e20 + 2**14)):
        found = charts.ticks(low, high, 5)
        slack = 1e-9 * max(1, abs(high))
        assert found[0] <= low + slack and found[-1] >= high - slack and 2 <= len(set(found)) <= 8


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 0}', "{"])
def test_a_file_that_is_no_results_file(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(UserError, match="eval.phantom"):
        page.read_results(path)
