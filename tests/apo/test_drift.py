"""scripts/drift.sh: the page, the command, the published case."""

import base64
import io
import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from apo import drift, drift_page
from apo.consensus import STRATEGIES
from apo.drift_measures import merge
from apo.drift_results import DEFINITIONS, results
from data.errors import UserError
from data.findings import is_refusal, read_findings, summarise
from data.phantom import cohort
from tests.apo.drift_cases import found, study
from tests.eval.cases import tables_of

ROOT = Path(__file__).parents[2]
CASE = Path(__file__).parents[3] / "shared/data/cxr_max_case/trajectories.jsonl"
SCRIPT = "<script>alert('x')</script>"


def write(path, studies, films=True):
    path.write_text("".join(json.dumps(s) + "\n" for s in studies), encoding="utf-8")
    for s in studies if films else ():
        film = path.parent / s["images"][0]
        film.parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (400, 500), np.uint8)).save(film)
    return path


def hostile():
    texts = {
        f"teacher {SCRIPT}": f"Left effusion. {SCRIPT} \"quoted\" & 'single'",
        "b": "Right effusion. No edema.",
        "c": "Possible left effusion. No edema.",
        "d": f"{SCRIPT}",
    }
    return study(texts, name="s1", statuses={"d": "refused"}, consensus=f"Left pleural effusion. No edema. {SCRIPT}")


def make(tmp_path, studies, *flags, films=True):
    path = write(tmp_path / "studies.jsonl", studies, films)
    out = tmp_path / "out"
    drift.main([str(path), "--out", str(out), "--permutations", "20", *flags])
    return json.loads((out / "drift.json").read_text()), (out / "drift.html").read_text()


def test_every_text_stays_text(tmp_path):
    _, html = make(tmp_path, [hostile()])
    assert "<script" not in html.lower()
    assert html.count("&lt;script&gt;alert(") >= 5, "teacher, teacher's text, consensus, refused text, audit"
    marks = re.findall(r'<mark class="(\w+)" title="[^"]*">([^<]*)</mark>', html)
    assert ("ok", "Left effusion.") in marks and ("bad", "Right effusion.") in marks
    assert ("unsure", "Possible left effusion.") in marks and ("fix", "Left pleural effusion.") in marks
    assert ("ok", "No edema.") in marks


def test_the_page_needs_no_network(tmp_path):
    r, html = make(tmp_path, [hostile(), hostile() | {"id": "s2"}])
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in html
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", html) and "url(" not in html
    assert "http://" not in html and "https://" not in html and str(tmp_path) not in html
    assert html.count("data:image/jpeg;base64,") == 2 and r["sample"]["films_missing"] == 0
    assert tables_of(html) == len(set(re.findall('aria-label="([^"]+)" tabindex', html))), "each has a name of its own"
    assert "Research use only" in html and "keep it where the studies themselves" in html
    for definition in ("tokens", "precision", "recall", "similarity", "conflict", "depth", "adjusted", "test"):
        assert DEFINITIONS[definition][:30] in html.replace("&#39;", "'").replace("&amp;", "&")


def test_films_are_shrunk_and_missing_ones_are_said(tmp_path):
    studies = [hostile(), hostile() | {"id": "s2", "images": ["films/none.png"]}]
    path = write(tmp_path / "studies.jsonl", studies[:1])
    path = write(path, studies, films=False)
    found_, chosen = drift.run(path, sample=5, seed=0, permutations=5, workers=1)
    html, missing = drift_page.render(found_, chosen, str(tmp_path))
    assert missing == 1 and "No film to show: missing or unreadable" in html
    uri, _ = drift_page.film_uri(studies[0], str(tmp_path))
    assert Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).size == (320, 256)


def test_a_large_cohort_shows_a_sample_and_says_so(tmp_path):
    studies = [study({"a": "Left effusion.", "b": "No effusion."}, name=f"s{i}") for i in range(60)]
    r, html = make(tmp_path, studies, films=False)
    assert html.count('<details class="study"') == 40 and "60 studies, 40 shown, seed 0" in html
    assert r["sample"]["shown"] == 40 and r["sample"]["of"] == 60 and r["studies"]["n"] == 60
    r["studies"]["n"] = r["sample"]["of"] = 24000
    page, _ = drift_page.render(r, [], str(tmp_path))
    assert "24,000 studies, 40 shown, seed 0" in page
    other, _ = make(tmp_path, studies, "--seed", "1", "--sample", "7", films=False)
    assert len(other["sample"]["ids"]) == 7 and not set(other["sample"]["ids"]) <= set(r["sample"]["ids"])


def test_the_sample_does_not_depend_on_the_order_of_the_file():
    studies = [study({"a": "Edema."}, name=f"s{i}") for i in range(50)]

    def ids(rows):
        sampler = drift.Sampler(5, 0)
        assert len(list(sampler.watch(rows))) == 50
        return {s["id"] for s in sampler.chosen()}

    assert ids(studies) == ids(studies[::-1]) and len(ids(studies)) == 5
    studies[0]["trajectories"][0]["status"] = "empty"
    sampler = drift.Sampler(50, 0)
    list(sampler.watch(studies))
    assert sampler.seen == 49 and studies[0] not in sampler.chosen()


def test_without_a_consensus_the_page_says_how_to_get_one(tmp_path, capsys):
    texts = {"a": "Left effusion.", "b": "Left effusion.", "c": "No effusion.", "d": "Cardiomegaly."}
    r, html = make(tmp_path, [study(texts)])
    assert r["text"]["consensus"] is None and r["depth"]["error"] is None
    assert "scripts/compare.sh - STUDIES.jsonl" in html and "no consensus in the file" in capsys.readouterr().out
    marks = re.findall(r'<mark class="(\w+)" title="[^"]*">([^<]*)</mark>', html)
    assert ("bad", "No effusion.") in marks and ("ok", "Left effusion.") in marks
    assert not any("Cardiomegaly." in text for _, text in marks), "nobody else speaks of it"


def test_marks_of_overlapping_spans_show_the_graver_kind():
    spans = [(0, 10, "consistent", "A"), (4, 10, "conflict", "B"), (4, 20, "agreed", "C")]
    assert drift_page.marked("No <edema & x", spans) == (
        '<mark class="ok" title="A">No &lt;</mark><mark class="bad" title="A; B; C">edema </mark>'
        '<mark class="ok" title="C">&amp; x</mark>'
    )


def test_an_audit_of_any_shape_does_no_harm(tmp_path):
    for audit in (None, [1], {}, {"findings": []}, {"findings": {"Edema": 3, "Pleural Effusion": {"votes": [1]}}}):
        one = hostile()
        one["consensus"]["audit"] = audit
        _, html = make(tmp_path, [one])
        assert "not recorded" in html
    one["consensus"] = STRATEGIES["dawid_skene"]([one])[0]
    assert re.search(r"posterior 0\.\d\d; \d present", make(tmp_path, [one])[1])


def test_processes_do_not_change_the_numbers():
    studies = cohort.plan("train", 130, seed=0, world="balanced")

    def all_of(workers):
        total = None
        for part in drift.parts(iter(studies), workers):
            total = merge(total, part)
        return results(total, permutations=5, seed=0)

    assert all_of(2) == all_of(1)


@pytest.mark.parametrize(
    "rows, flags, complaint",
    [
        ([], [], "holds no study"),
        ([study({"a": "x"}, statuses={"a": "filtered"})], [], "no trajectory can be compared .1 filtered."),
        ([study({"a": "No edema."})] * 2, [], "stands in line 1 already"),
        ([study({"a": "No edema."})], ["--permutations", "0"], "--permutations 0: must be at least 1"),
        ([study({"a": "No edema."})], ["--sample", "-1"], "--sample -1"),
        ([study({"a": "No edema."})], ["--image-root", "nowhere"], "image root is not a folder"),
    ],
)
def test_bad_input(tmp_path, rows, flags, complaint):
    path = write(tmp_path / "studies.jsonl", rows, films=False)
    with pytest.raises(UserError, match=complaint):
        drift.main([str(path), "--out", str(tmp_path / "out"), *flags])
    assert not (tmp_path / "out").exists()


def test_a_file_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(drift, "run", lambda *_, **__: pytest.fail("the studies were read"))
    path = write(tmp_path / "studies.jsonl", [hostile()])
    for out in (path, path / "drift"):
        with pytest.raises(UserError, match=f"--out {out}: {path} is not a folder; choose another"):
            drift.main([str(path), "--out", str(out)])


@pytest.mark.slow
def test_the_script_runs(tmp_path):
    path = write(tmp_path / "studies.jsonl", [hostile()])
    out = tmp_path / "made"
    command = ["bash", str(ROOT / "scripts/drift.sh"), str(path), "--out", str(out), "--permutations", "5"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert "1 studies, 4 teachers, 3 trajectories compared" in done.stdout and "not compared: 1 refused" in done.stdout
    assert (out / "drift.json").is_file() and (out / "drift.html").is_file()
    assert "Left effusion" not in done.stdout + done.stderr
    done = subprocess.run([*command[:2], "none.jsonl"], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 2 and done.stderr.startswith("error: none.jsonl: cannot be read")


def published():
    if not CASE.exists():
        pytest.skip(f"the published case is not here ({CASE.name} in shared data): its audit was NOT checked")
    rows = [json.loads(line) for line in CASE.read_text(encoding="utf-8").splitlines()]
    texts = {row["teacher"]: row["trajectory"] for row in rows}
    return study(texts, statuses={t: "refused" for t, text in texts.items() if is_refusal(text)})


@pytest.mark.parametrize("name", ["vote", "dawid_skene", "medoid"])
def test_published_case_every_rule_follows_the_majority_to_the_wrong_side(name):
    """docs/drift.md tells this case. The radiologist: left lower lobe atelectasis, bilateral effusions."""
    one = published()
    (result,) = STRATEGIES[name]([one])
    said = summarise(read_findings(result["text"]))
    assert said["Atelectasis"] == said["Pleural Effusion"] == said["Lung Opacity"] == ("present", "right")
    audit = result["audit"]
    assert audit["unheard"] == {"Moonshot-v1": "refused"}
    for label in ("Atelectasis", "Pleural Effusion"):
        assert audit["findings"][label]["votes"] == {"present": 6, "absent": 0, "uncertain": 0, "silent": 0}
        assert audit["findings"][label]["corrected"] == ["GPT-5-nano", "Qwen-VL-Max"]
    assert audit["findings"]["Support Devices"]["corrected"] == ["GPT-5-nano"], "one voice of six: dropped"
    if name == "medoid":
        assert audit["medoid"]["teacher"] == "Claude Sonnet-4"
    else:
        assert result["text"] == "Right pleural effusion. Right atelectasis. Right lung opacity."


def test_published_case_drift():
    one = published()
    one["consensus"] = STRATEGIES["dawid_skene"]([one])[0]
    r = found([one], permutations=50)
    assert r["laterality"]["findings"]["Pleural Effusion"]["opposed"] == 1
    opposed = {t: row["opposed"] for t, row in r["laterality"]["consensus"].items()}
    assert opposed == {t: 3 * (t in ("GPT-5-nano", "Qwen-VL-Max")) for t in r["heard"]}
    assert r["status"]["Moonshot-v1"] == {"refused": 1, "not asked": 0} and "Moonshot-v1" not in r["heard"]
    assert r["depth"]["conflict"]["adjusted"]["spread"][0]["p"] == 1.0, "one film cannot tell drift along the text"


def test_the_axis_begins_below_the_lowest_point():
    svg = str(drift_page.line_chart([("adjusted", [(5, -0.07), (15, 0.05)])], title="t")).partition("</svg>")[0]
    frame = [float(y) for y in re.findall(r'<line [^>]*y1="([\d.]+)"', svg)]
    drawn = [float(y) for _, y in re.findall(r"([\d.]+),([\d.]+)", re.search(r'points="([^"]+)"', svg)[1])]
    assert min(frame) <= min(drawn) < max(drawn) <= max(frame)
