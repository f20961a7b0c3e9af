"""scripts/drift.sh: measures by hand, the test against known worlds, the page, the published case."""

import base64
import io
import itertools
import json
import os
import random
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from apo import drift, drift_page
from apo.consensus import STRATEGIES, hear
from apo.drift import OUTCOMES, consensus_decisions, lcs_length, outcome, positions, text_measures, tokens_of
from apo.stationarity import BINS, holm, permutation_tests
from data.errors import UserError
from data.findings import is_refusal, read_findings, summarise
from data.phantom import cohort

ROOT = Path(__file__).parents[2]
CASE = Path(__file__).parents[3] / "shared/data/cxr_max_case/trajectories.jsonl"
SCRIPT = "<script>alert('x')</script>"


def study(texts, *, name="s1", statuses=None, consensus=None, source="test"):
    """texts: {teacher: text}."""
    out = {
        "id": name,
        "patient": name,
        "source": source,
        "split": "train",
        "images": [f"films/{name}.png"],
        "prompt": "A chest film <image>. What is there?",
        "trajectories": [
            {"teacher": t, "text": text, "status": (statuses or {}).get(t, "ok")} for t, text in texts.items()
        ],
    }
    return out | ({"consensus": {"text": consensus, "strategy": "vote"}} if consensus else {})


def found(studies, permutations=20):
    return drift.results(drift.merge(None, drift.measure(studies)), permutations=permutations, seed=0)


def write(path, studies, films=True):
    path.write_text("".join(json.dumps(s) + "\n" for s in studies), encoding="utf-8")
    for s in studies if films else ():
        film = path.parent / s["images"][0]
        film.parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (400, 500), np.uint8)).save(film)
    return path


# --- text -----------------------------------------------------------------------------------------------------------


def test_text_measures_by_hand():
    a, b = tokens_of("**No** effusion, no edema."), tokens_of("No edema. Small effusion")
    # tokens: no effusion no edema / no edema small effusion; shared: no, edema, effusion; LCS: no edema
    assert text_measures(a, b) == (3 / 4, 3 / 4, 2 * 2 / 8)
    assert text_measures(tokens_of("edema edema edema"), tokens_of("edema")) == (1 / 3, 1.0, 2 / 4)
    assert text_measures(a, a) == (1.0, 1.0, 1.0)
    assert text_measures(tokens_of("**"), a) == (0.0, 0.0, 0.0)


def test_bit_parallel_lcs_is_that_of_the_textbook():
    def textbook(a, b):
        row = [0] * (len(b) + 1)
        for x in a:
            new = [0]
            for j, y in enumerate(b):
                new.append(row[j] + 1 if x == y else max(new[-1], row[j + 1]))
            row = new
        return row[-1]

    rng = random.Random(0)
    for _ in range(200):
        a, b = ([rng.choice("abcdef") for _ in range(rng.randrange(90))] for _ in range(2))
        assert lcs_length(positions(a), len(a), b) == textbook(a, b)


def test_precision_of_one_is_recall_of_the_other():
    r = found([study({"a": "No edema.", "b": "Small left effusion. No edema.", "c": "Edema."}, consensus="No edema.")])
    pairs = r["text"]["pairs"]
    assert pairs["a"]["b"]["precision"] == pairs["b"]["a"]["recall"] == 1.0
    assert pairs["a"]["b"]["recall"] == pairs["b"]["a"]["precision"] == 0.4
    assert pairs["a"]["b"]["similarity"] == pairs["b"]["a"]["similarity"] == round(4 / 7, 4)
    assert r["text"]["consensus"]["a"] == {"precision": 1.0, "recall": 1.0, "similarity": 1.0, "n": 1}
    assert r["text"]["consensus"]["b"] == {"precision": 0.4, "recall": 1.0, "similarity": round(4 / 7, 4), "n": 1}
    assert r["text"]["teachers"]["a"]["recall"] == (0.4 + 1.0) / 2


# --- findings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "a, b, want",
    [
        (("present", "left"), ("present", "left"), "same_side"),
        (("present", "left"), ("present", "right"), "opposed"),
        (("present", "left"), ("present", "bilateral"), "partial"),
        (("present", "left"), ("present", None), "agree"),
        (("absent", None), ("absent", "left"), "agree"),
        (("present", "left"), ("absent", None), "state"),
        (("uncertain", None), ("absent", None), "uncertain"),
        (("present", None), None, "unsupported"),
        (("absent", None), None, "silent"),
        (("uncertain", "left"), None, "silent"),
        (None, None, "silent"),
    ],
)
def test_outcomes(a, b, want):
    assert OUTCOMES[outcome(a, b)] == OUTCOMES[outcome(b, a)] == want


def test_silence_of_the_consensus_is_absent_and_normal_follows():
    assert consensus_decisions("Left effusion.", ["Edema", "No Finding"]) == {
        "Pleural Effusion": ("present", "left"),
        "Edema": ("absent", None),
        "No Finding": ("absent", None),
    }
    assert consensus_decisions("No edema.", ["No Finding"])["No Finding"] == ("present", None)


def test_conflicts_by_hand():
    texts = {"a": "Left effusion. Edema.", "b": "Right effusion. No edema.", "c": "Left effusion. Possible edema."}
    r = found([study(texts, consensus="Left pleural effusion. No pulmonary edema.")])
    pairs = r["findings"]["pairs"]
    assert pairs["a"]["b"]["conflict"] == 1.0 and (pairs["a"]["b"]["state"], pairs["a"]["b"]["opposed"]) == (1, 1)
    assert pairs["a"]["c"]["conflict"] == 0.0 and pairs["a"]["c"]["uncertain"] == 1
    assert {t: row["conflict"] for t, row in r["findings"]["consensus"].items()} == {"a": 0.5, "b": 0.5, "c": 0.0}
    assert r["findings"]["by_label"]["a"]["Pleural Effusion"]["conflict"] == 0.5
    assert r["findings"]["by_label_consensus"]["b"]["Edema"]["conflict"] == 0.0
    assert r["laterality"]["findings"] == {
        "Pleural Effusion": {"n": 1, "opposed": 1, "differing": 1, "opposed_share": 1.0}
    }
    assert r["laterality"]["pairs"]["a"]["b"] == {"n": 1, "opposed": 1, "partial": 0, "opposed_share": 1.0}
    assert r["laterality"]["consensus"]["a"] == {"n": 1, "opposed": 0, "partial": 0, "opposed_share": 0.0}


def test_what_is_not_ok_is_counted_and_not_compared():
    texts = {"a": "Left effusion.", "b": "As an AI, I cannot interpret medical images.", "c": "Right effu", "d": ""}
    r = found([study(texts, statuses={"c": "truncated", "d": "empty"}), study({"a": "Edema."}, name="s2")])
    assert r["heard"] == ["a"] and r["teachers"] == ["a", "b", "c", "d"]
    assert r["status"]["a"] == {"ok": 2, "not asked": 0}
    assert r["status"]["b"] == {"refused by its text": 1, "not asked": 1}
    assert r["status"]["c"] == {"truncated": 1, "not asked": 1}
    assert r["studies"]["with_a_single_voice"] == 2 and r["findings"]["consensus"] is None
    assert r["lengths"]["a"]["tokens_mean"] == 1.5


def test_parts_add_up_whatever_teachers_a_part_has():
    studies = cohort.plan("train", 24, seed=0, world="balanced")
    for s, c in zip(studies, STRATEGIES["vote"](studies), strict=True):
        s["consensus"] = c
    for s in studies[:8]:  # the first part lacks the first teacher by name
        s["trajectories"] = [t for t in s["trajectories"] if not t["teacher"].startswith("gemini")]
    whole = found(studies)
    total = None
    for at in range(0, 24, 8):
        total = drift.merge(total, drift.measure(studies[at : at + 8]))
    assert drift.results(total, permutations=20, seed=0) == whole


def test_processes_do_not_change_the_numbers():
    studies = cohort.plan("train", 130, seed=0, world="balanced")

    def all_of(workers):
        total = None
        for part in drift.parts(iter(studies), workers):
            total = drift.merge(total, part)
        return drift.results(total, permutations=5, seed=0)

    assert all_of(2) == all_of(1)


# --- depth ----------------------------------------------------------------------------------------------------------


TWO_SIDED = [
    "Small left effusion. Small right effusion.",
    "Right effusion. No left effusion.",
    "Left pneumothorax. The right lung shows no pneumothorax.",
    "Bilateral effusions. The left effusion is large.",
]


@pytest.mark.parametrize("text", TWO_SIDED)
def test_texts_that_say_the_same_are_in_no_conflict_anywhere(text):
    one = study({"a": text, "b": text, "c": text}, consensus=text)
    claims = drift.measure([one])["claims"]
    assert len(claims) == 6 and claims["conflict"].tolist() == claims["error"].tolist() == [0.0] * 6
    heard = hear(one)
    for decisions in (consensus_decisions(text), None):
        for claim in heard.claims["a"]:
            assert drift_page.mark(claim, "a", heard, decisions)[0] == "consistent"


def test_a_denial_of_one_side_contradicts_that_side_and_both():
    denial = ("absent", "left")
    assert outcome(denial, ("present", "right")) == outcome(("present", "right"), denial) == drift.AGREE
    for side in ("left", "bilateral", None):
        assert outcome(denial, ("present", side)) == drift.STATE
    assert outcome(("absent", None), ("present", "right")) == drift.STATE


def test_depth_bins():
    spans = ((0, 10), (9, 11), (10, 11), (99, 100), (100, 100))
    assert [drift.depth_bin(*span, 100) for span in spans] == [0, 1, 1, 9, 9]


def test_states_by_depth_are_the_readings_of_the_beginnings():
    text = "No edema. " + "The film is well exposed. " * 6 + "Left effusion. Possible edema. Right effusion."
    one = hear(study({"a": text}))
    states = drift.states_by_depth(one, "a")
    for j, state in enumerate(states):
        begun = [c for c in one.claims["a"] if drift.depth_bin(c.start, c.end, len(text)) <= j]
        assert state == summarise(begun)
    assert states[0] == {"Edema": ("absent", None)} and states[-1] == one.says["a"]
    assert states[-1]["Pleural Effusion"] == ("present", "bilateral") and states[-1]["Edema"] == ("uncertain", None)


def test_accumulated_divergence_by_hand():
    filler = "The film is well exposed and not rotated at all. "
    early, late = "Left effusion. " + filler * 6, filler * 6 + "Right effusion."
    r = found([study({"a": early, "b": late})])["depth"]["accumulated"]
    assert r["stated"][0] == 0.5 and r["stated"][-1] == 1.0
    assert r["conflict"] == [None] * 9 + [1.0]
    assert r["divergence_bits"][0] == 1.0, "one has spoken, one has not"
    assert r["divergence_bits"][-1] == 0.0, "both say present; the side is no state"
    assert r["error"] == [None] * BINS


def claims_of(rng, trajectories, rate, per=6, late=None):
    """Claims with a chance of conflict rate(bin): trajectory, group (two), bin, value; `late` ones have bins 5 to 9."""
    trajectory = np.repeat(np.arange(trajectories), per)
    bins = rng.integers(0, BINS, len(trajectory))
    if late is not None:
        bins = bins // 2 + 5 * late
    value = (rng.random(len(trajectory)) < rate(bins)).astype(float)
    return trajectory, trajectory % 2, bins, value


def test_the_test_holds_its_level_and_finds_drift():
    spread, lag = [], []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        # Each trajectory has its own rate all along, and those of high rate speak late: across trajectories this looks
        # like drift, within them there is none.
        base = np.repeat(rng.random(30), 6)
        flat = claims_of(rng, 30, lambda b, base=base: base, late=base > 0.5)
        tests = permutation_tests(*flat, groups=2, permutations=59, seed=seed)
        spread.append(tests.spread_p[0, -1])
        lag.append(tests.lag_p[0, 3])
    for p in (spread, lag):
        for level in (0.05, 0.2, 0.5):
            # The bounds are three standard errors wide, and p comes in steps of 1/60.
            slack = 3 * np.sqrt(level * (1 - level) / 100) + 1 / 60
            assert abs(np.mean(np.array(p) <= level) - level) < slack
    for seed in range(5):
        rising = claims_of(np.random.default_rng(seed), 150, lambda b: 0.1 + 0.08 * b)
        tests = permutation_tests(*rising, groups=2, permutations=59, seed=seed)
        assert tests.spread_p[0, -1] == tests.lag_p[0, 4] == 1 / 60, "the smallest p that 59 permutations allow"


def test_p_is_that_of_all_permutations_counted():
    # One trajectory, three cells in bins 0, 4, 9: six orders, of which two are as extreme as the observed one.
    trajectory, bins = np.zeros(3, int), np.array([0, 4, 9])
    values = np.array([0.0, 0.5, 1.0])
    tests = permutation_tests(trajectory, trajectory, bins, values, groups=1, permutations=6000, seed=0)

    def lag9(order):
        return abs(values[order[2]] - values[order[0]])

    exact = np.mean([lag9(o) >= lag9((0, 1, 2)) for o in itertools.permutations(range(3))])
    assert exact == 1 / 3 and abs(tests.lag_p[0, 8] - exact) < 0.03
    assert tests.spread_p[0, 0] == 1.0, "every order of three single cells has the same spread"
    assert np.isnan(tests.lag[0, 0]) and tests.lag[0, 8] == 1.0


def test_cells_stay_whole_and_trajectories_apart():
    # Two claims in one breath are one cell: with one cell a trajectory there is nothing to permute.
    trajectory, bins = np.array([0, 0, 1, 1]), np.array([0, 0, 9, 9])
    tests = permutation_tests(
        trajectory, trajectory * 0, bins, np.array([1.0, 1, 0, 0]), groups=1, permutations=50, seed=0
    )
    assert tests.trajectories == 0 and tests.spread_p.tolist() == [[1.0, 1.0]]
    assert tests.means[0, -1, 0] == 1.0 and tests.counts[-1].tolist() == [2] + [0] * 8 + [2]


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, float("nan")])[:3] == pytest.approx([0.03, 0.06, 0.06])
    assert np.isnan(holm([0.01, float("nan")])[1]) and holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


@pytest.fixture(scope="module")
def worlds():
    out = {}
    # The first has the same rates along the text, the second a steep ramp. Four families of tests at a level of 5 %
    # each: with one cohort in six or so the first world would look like drift by chance (seed 3 does, in one lag).
    for world in ("published", "drift"):
        studies = cohort.plan("train", 250, seed=1, world=world)
        for s, c in zip(studies, STRATEGIES["vote"](studies), strict=True):
            s["consensus"] = c
        out[world] = found(studies, permutations=199)["depth"]
    return out


def test_a_world_without_drift_along_the_text_is_found_stationary(worlds):
    depth = worlds["published"]
    # Unadjusted it looks like drift: other findings are told last, and only when present.
    assert depth["conflict"]["raw"]["spread"][0]["p_holm"] <= 0.05
    for name in ("conflict", "error"):
        assert min(row["p_holm"] for row in depth[name]["adjusted"]["spread"]) > 0.05
        assert min(row["p_holm"] for row in depth[name]["adjusted"]["lags"]) > 0.05


def test_a_world_with_drift_along_the_text_is_found_drifting(worlds):
    depth = worlds["drift"]
    for name in ("conflict", "error"):
        first = depth[name]["adjusted"]["spread"][0]
        assert (first["teacher"], first["p"]) == ("all", 0.005), "the smallest p that 199 permutations allow"
        means = depth[name]["adjusted"]["means"]["all"]
        assert means[7] > means[2] + 0.08
        assert [row["delta"] for row in depth[name]["adjusted"]["lags"]] == list(range(1, 10))
        assert depth[name]["adjusted"]["lags"][3]["p_holm"] <= 0.05


# --- the page -------------------------------------------------------------------------------------------------------


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
    assert "Research use only" in html and "keep it where the studies themselves" in html
    for definition in ("tokens", "precision", "recall", "similarity", "conflict", "depth", "adjusted", "test"):
        assert drift.DEFINITIONS[definition][:30] in html.replace("&#39;", "'").replace("&amp;", "&")


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


# --- the command ----------------------------------------------------------------------------------------------------


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


# --- the published case ---------------------------------------------------------------------------------------------


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


def test_both_sides_against_one_differ_and_are_not_opposed():
    r = found([study({"a": "Left effusion.", "b": "Bilateral effusions."})])
    assert r["laterality"]["findings"]["Pleural Effusion"] == {
        "n": 1,
        "opposed": 0,
        "differing": 1,
        "opposed_share": 0.0,
    }


def test_normal_beside_devices_and_beside_a_hedge():
    assert consensus_decisions("Support devices.", ["No Finding"])["No Finding"] == ("present", None)
    assert consensus_decisions("Possible edema.", ["No Finding"])["No Finding"] == ("absent", None)


def test_a_claim_is_held_against_the_others_and_hedged_sides_against_nobody():
    one = study({"a": "Left effusion.", "b": "Right effusion.", "c": "Left effusion. Edema. Possible pneumonia."})
    claims = drift.measure([one])["claims"]
    assert [round(float(x), 3) for x in claims["conflict"][:3]] == [0.5, 1.0, 0.5], "its own text is no other"
    assert len(claims) == 4 and np.isnan(claims["conflict"][3]), "nobody else speaks of edema, and hedges are no claims"
    r = found([study({"a": "Possible left effusion.", "b": "Right effusion."})])
    assert r["laterality"]["findings"] == {}


@pytest.mark.parametrize("which", range(4))
def test_adjusting_takes_off_what_teacher_finding_state_or_side_explain(which):
    """Early claims are all in conflict and late ones never, but the two differ in one thing else."""
    late = [int(which == n) for n in range(4)]
    rows = [(n, *((0, 0, 0, 0, 0, 1.0) if n % 2 else (*late, 9, 0.0)), np.nan) for n in range(8)]
    total = {"claims": [np.array(rows, drift.CLAIM)], "names": ["a", "b"], "accumulated": np.zeros((BINS, 4, 2))}
    found_ = drift.depth_results(total, ["a", "b"], permutations=1, seed=0)["conflict"]
    means = {form: found_[form]["means"]["all"] for form in ("raw", "adjusted")}
    assert (means["raw"][0], means["raw"][9]) == (1.0, 0.0)
    assert (means["adjusted"][0], means["adjusted"][9]) == (0.5, 0.5)


def test_lags_are_those_of_all_groups_together():
    trajectory, bins, values = np.arange(4), np.array([0, 9, 0, 9]), np.array([1.0, 1.0, 0.0, 1.0])
    tests = permutation_tests(trajectory, np.array([0, 0, 1, 1]), bins, values, groups=2, permutations=5, seed=0)
    assert tests.lag[0, 8] == 0.5, "1 and 1 in the first group, 0 and 1 in the second"


def test_lengths_and_silence_of_teachers_by_hand():
    films = [study({"a": " ".join(["word"] * n)}, name=f"s{n}") for n in range(1, 12)]
    films.append(study({"a": ""}, name="none", statuses={"a": "empty"}))
    r = found(films)
    lengths = {key: r["lengths"]["a"][f"tokens_{key}"] for key in ("p10", "median", "p90")}
    assert lengths == {"p10": 2.0, "median": 6.0, "p90": 10.0}
    assert r["lengths"]["a"]["without_a_claim"] == 11 and r["studies"]["without_a_voice"] == 1


def test_spread_and_lag_weigh_bins_by_their_claims():
    bins, values = np.array([0, 1, 2, 2, 2]), np.array([0.0, 1.0, 1.0, 1.0, 1.0])
    tests = permutation_tests(np.arange(5), np.zeros(5, int), bins, values, groups=1, permutations=5, seed=0)
    assert tests.spread[0, 0] == pytest.approx(np.sqrt((0.8**2 + 4 * 0.2**2) / 5))
    assert tests.lag[0, 0] == pytest.approx(np.sqrt((1 / 2) / (1 / 2 + 3 / 4)))
