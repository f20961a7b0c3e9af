"""Clinical metrics without RadEval: an environment whose Python is a script and whose radeval is a few lines."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score

from data.errors import UserError
from eval import clinical

ROOT = Path(__file__).resolve().parents[2]
LABELS = (
    *("Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation"),
    *("Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture"),
    *("Support Devices", "No Finding"),
)
DRAW = {"seed": 0, "resamples": 20}
# CheXbert labels a text by its words "+Edema" (present) and "?Edema" (uncertain). GREEN has no number for text 1.
FAKES = {
    "torch.py": "class cuda:\n    is_available = staticmethod(lambda: False)\n",
    "radeval/__init__.py": """
class RadEval:
    def __init__(self, metrics, per_sample):
        assert per_sample and len(metrics) == 1
        self.metric = metrics[0]

    def __call__(self, refs, hyps):
        print("a patient's text", refs)
        if any("CRASH" in text for text in hyps):
            raise OSError("cannot reach the Hub\\nfor weights")
        if self.metric == "radgraph":
            return {f"radgraph_{kind}": [len(h) / 100 for h in hyps] for kind in ("simple", "partial", "complete")}
        if self.metric == "radcliq":
            return {"radcliq_v1": [2.0] + [1.0] * (len(hyps) - 1)}
        return {"green": [None] + [0.5] * (len(hyps) - 1)}
""",
    "radeval/metrics/__init__.py": "",
    "radeval/metrics/f1chexbert/__init__.py": "",
    "radeval/metrics/f1chexbert/f1chexbert.py": f"""
class F1CheXbert:
    TARGET_NAMES = {LABELS!r}

    def __init__(self, device):
        assert device == "cpu"

    def get_labels(self, reports, mode):
        assert mode == "classification"
        name = lambda label, text: 1 if "+" + label.replace(" ", "") in text.split() else (
            -1 if "?" + label.replace(" ", "") in text.split() else 0)
        return [[name(label, text) for label in self.TARGET_NAMES] for text in reports]
""",
}


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """RADEVAL_VENV with a bin/python that runs this Python with the fakes in front, and refuses this one's path."""
    for name, text in FAKES.items():
        file = tmp_path / "fakes" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    python = tmp_path / "env/bin/python"
    python.parent.mkdir(parents=True)
    fakes = f'PYTHONPATH="{tmp_path / "fakes"}" exec "{sys.executable}" "$@"'
    python.write_text(f'#!/bin/sh\n[ -z "$PYTHONPATH" ] || exit 9\n{fakes}\n')
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    python.chmod(0o755)
    monkeypatch.setenv("RADEVAL_VENV", str(tmp_path / "env"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


def test_chexbert_in_both_uncertainty_modes_is_scikit_learns(environment):
    references = ["+Edema ?Atelectasis", "+PleuralEffusion", "+NoFinding", "?Edema +Fracture"]
    answers = ["+Edema +Atelectasis", "?PleuralEffusion", "+NoFinding", "+Edema"]
    found, notes = clinical.score(["chexbert"], references, answers, list("aabc"), **DRAW)
    truth = np.array([[1 if f"+{name.replace(' ', '')}" in t.split() else 0 for name in LABELS] for t in references])
    maybe = np.array([[1 if f"?{name.replace(' ', '')}" in t.split() else 0 for name in LABELS] for t in references])
    said = np.array([[1 if f"+{name.replace(' ', '')}" in t.split() else 0 for name in LABELS] for t in answers])
    hedged = np.array([[1 if f"?{name.replace(' ', '')}" in t.split() else 0 for name in LABELS] for t in answers])
    five = [LABELS.index(name) for name in clinical.CHEXBERT_FIVE]
    for group, y, p in (
        ("CheXbert F1, uncertain counts as positive", truth | maybe, said | hedged),
        ("CheXbert F1, uncertain counts as negative", truth, said),
    ):
        for average in ("micro", "macro"):
            theirs = f1_score(y, p, average=average, zero_division=0)
            assert found[f"{group}/14 labels, {average}"]["value"] == pytest.approx(theirs)
            theirs = f1_score(y[:, five], p[:, five], average=average, zero_division=0)
            assert found[f"{group}/5 labels, {average}"]["value"] == pytest.approx(theirs)
    values = [cell["value"] for name, cell in found.items() if name.endswith("14 labels, micro")]
    assert len(values) == 2 and values[0] != values[1]
    assert any("uncertain counts as negative: no reference has" in note and "Atelectasis" in note for note in notes)


def test_means_per_text_and_their_caveats(environment):
    found, notes = clinical.score(["radgraph", "radcliq", "green"], ["r"] * 3, ["ab", "abcd", "abc"], "aab", **DRAW)
    assert found["RadGraph-XL F1/partial"]["value"] == pytest.approx(0.03)
    # RadEval's own aggregate would print the inverse under the same name.
    assert found["RadCliQ-v1/mean, lower is better"]["value"] == pytest.approx(4 / 3)
    assert found["RadCliQ-v1/1 over mean, higher is better"]["value"] == pytest.approx(3 / 4)
    assert found["GREEN/mean"]["value"] == 0.5 and found["GREEN/mean"]["n"] == 2
    assert any("no number for 1 of 3 answers" in note for note in notes)
    assert found["RadGraph-XL F1/simple"]["low"] <= 0.03 <= found["RadGraph-XL F1/simple"]["high"]
    assert not [name for name in found if name.startswith("CheXbert")]


def test_texts_leave_no_file_and_no_line(environment, capfd):
    clinical.run(["radgraph"], ["secret"], ["secret"])
    assert not list(environment.glob("radeval.*"))
    assert "secret" not in "".join(capfd.readouterr())


def test_failure_is_told_in_radevals_words(environment):
    with pytest.raises(UserError, match=r"RadEval \(green\) failed: OSError: cannot reach the Hub for weights"):
        clinical.run(["green"], ["r"], ["CRASH"])


def test_no_environment_names_the_script(tmp_path, monkeypatch):
    monkeypatch.setenv("RADEVAL_VENV", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"none: no environment of RadEval.*bash scripts/radeval.sh.*RADEVAL_VENV=DIR"):
        clinical.environment_python()


@pytest.mark.parametrize("script", ["exit 3", 'echo "{}" > "$4"; echo not json > "$4"'])
def test_python_that_ends_without_a_result(environment, script):
    (environment / "env/bin/python").write_text(f"#!/bin/sh\n{script}\n")
    with pytest.raises(UserError, match=r"ended without a result \(exit status \d\).*scripts/radeval.sh --again"):
        clinical.run(["green"], ["r"], ["h"])


def test_result_of_another_shape_is_refused(environment):
    given = json.dumps({"versions": {}, "results": {"green": [0.5]}})
    (environment / "env/bin/python").write_text(f"#!/bin/sh\ncat > \"$4\" <<'END'\n{given}\nEND\n")
    with pytest.raises(UserError, match=r"no result for each of 2 texts \(green\)"):
        clinical.run(["green"], ["r", "r"], ["h", "h"])


def test_metrics_are_parsed():
    assert clinical.parse(None) == ()
    assert clinical.parse("all") == ("chexbert", "radgraph", "radcliq", "green")
    assert clinical.parse("green, chexbert,green") == ("green", "chexbert")
    with pytest.raises(UserError, match="no metric 'chexbrt'; did you mean 'chexbert'?"):
        clinical.parse("chexbrt")


def script(*flags, **environment):
    known = {key: value for key, value in os.environ.items() if key != "RADEVAL_VENV"}
    return subprocess.run(
        ["bash", ROOT / "scripts/radeval.sh", *flags],
        env=known | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_script_makes_the_environment_once(tmp_path):
    """With a python3 on PATH that makes a stub environment; pip and the import are its business."""
    stub = tmp_path / "bin/python3"
    stub.parent.mkdir()
    python = '#!/bin/sh\\necho "$@" >> "$LOG"\\n'
    stub.write_text(
        '#!/bin/sh\nif [ "$1" = -c ]; then exit 0; fi\n'
        f'mkdir -p "$3/bin"; touch "$3/pyvenv.cfg"; printf \'{python}\' > "$3/bin/python"; chmod +x "$3/bin/python"\n'
    )
    stub.chmod(0o755)
    log, venv = tmp_path / "log", tmp_path / "env"
    known = {"PATH": f"{stub.parent}:{os.environ['PATH']}", "LOG": str(log), "RADEVAL_VENV": str(venv)}
    first = script(**known)
    assert first.returncode == 0, first.stderr
    lines = log.read_text().splitlines()
    assert lines[0].startswith("-m pip install") and lines[0].endswith("-r requirements-radeval.txt")
    assert lines[1] == "-P -c import radeval"
    assert script(**known).stdout == f"radeval: ready, {venv}\n"
    assert len(log.read_text().splitlines()) == 2
    assert script("--again", **known).returncode == 0
    assert len(log.read_text().splitlines()) == 4


def test_script_never_takes_over_another_folder(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    ended = script("--again", RADEVAL_VENV=str(tmp_path / "mine"))
    assert ended.returncode == 2 and "is no virtual environment" in ended.stderr
    assert (tmp_path / "mine/thesis.txt").exists()
    assert "unknown flag --agian" in script("--agian").stderr


def test_labels_of_another_width_are_refused():
    labels = {"labels": list(LABELS), "references": [[0] * 13], "hypotheses": [[0] * 14]}
    with pytest.raises(UserError, match=r"no result for each of 1 texts \(chexbert\)"):
        clinical._check({"chexbert": labels}, ["chexbert"], 1)
