"""What SECURITY.md promises of this project's code, looked up in the code."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from data.collect import settings as collect
from tests.eval.cases import ALL_CLEAR, study, trajectory

ROOT = Path(__file__).resolve().parents[2]
CODE = sorted(path for room in ("apo", "data", "eval", "scripts") for path in (ROOT / room).rglob("*.py"))
PICKLES = "pickle|cPickle|dill|joblib|shelve|marshal"
FORBIDDEN = {
    "a pickle is loaded": rf"\b(?:{PICKLES})\.|import (?:{PICKLES})\b",
    "torch.load without weights_only": r"torch\.load\((?![^()]*weights_only=True)",
    "numpy takes pickles": r"allow_pickle\s*=\s*True",
    "code of a model is trusted": r"trust_remote_code\s*[=:]\s*True",
    "YAML makes objects": r"yaml\.(?:unsafe_load|full_load|load_all|Loader\b|UnsafeLoader|FullLoader)"
    r"|yaml\.load\((?!text, Loader=_Loader\))",
    "a shell is asked": r"shell\s*=\s*True|os\.system\(|os\.popen\(",
    "text becomes code": r"(?<![\w.])(?:eval|exec)\(",
    "HTML is not escaped": r"autoescape\s*=\s*False|\|\s*safe\b",
    "certificates are not checked": r"verify\s*=\s*False|_create_unverified_context",
}


def test_there_is_code_to_look_at():
    assert len(CODE) > 50


@pytest.mark.parametrize("what", FORBIDDEN)
def test_code_holds_none_of_it(what):
    found = []
    for path in CODE:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if re.search(FORBIDDEN[what], line.partition("  # ")[0]):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("a pickle is loaded", "x = pickle.load(f)"),
        ("torch.load without weights_only", "x = torch.load(path)"),
        ("code of a model is trusted", "load(trust_remote_code=True)"),
        ("YAML makes objects", "yaml.load(text)"),
        ("YAML makes objects", "yaml.load(text, Loader=yaml.Loader)"),
        ("a shell is asked", "run(words, shell=True)"),
        ("text becomes code", "eval(text)"),
    ],
)
def test_the_patterns_find_what_they_are_for(what, line):
    assert re.search(FORBIDDEN[what], line)


def test_the_one_yaml_loader_of_ours_is_a_safe_one():
    assert issubclass(collect._Loader, yaml.SafeLoader)


def test_requirements_are_pinned():
    names = ("", "-test", "-gpu", "-vllm", "-reports", "-radeval")
    for name in (f"requirements{kind}.txt" for kind in names):
        lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
        loose = [
            line for line in lines if line and not line.startswith("-r ") and not re.match(r"[\w.-]+==[\w.]+$", line)
        ]
        assert loose == [], name


class Page(HTMLParser):
    """The tags and attributes that a browser would see."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.handlers = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


HOSTILE = (
    "</pre></mark>No edema. <script>alert(1)</script><img src=x onerror=alert(2)><svg onload=alert(3)>&lt;b&gt; \"'>"
)


def test_a_script_in_a_trajectory_stays_text_on_every_page(tmp_path):
    from PIL import Image

    from apo import drift
    from data.records import write_studies
    from eval import phantom, report

    teacher = f"t{HOSTILE}"
    studies = [
        study(
            n,
            {"Edema": None},
            [trajectory(teacher, HOSTILE), trajectory("b", f"{ALL_CLEAR} {HOSTILE}")],
            consensus=f"There is edema. {HOSTILE}",
        )
        for n in range(3)
    ]
    (tmp_path / "films").mkdir()
    for one in studies:
        Image.new("L", (32, 32)).save(tmp_path / one["images"][0])
    path = tmp_path / "studies.jsonl"
    write_studies(path, studies)
    phantom.main(["--studies", str(path), "--out", str(tmp_path / "results.json")])
    report.main(
        ["--results", str(tmp_path / "results.json"), "--studies", str(path), "--out", str(tmp_path / "report.html")]
    )
    drift.main([str(path), "--out", str(tmp_path / "drift"), "--permutations", "10", "--workers", "1"])
    found = list(tmp_path.rglob("*.html"))
    assert len(found) == 2
    for file in found:
        text = file.read_text(encoding="utf-8")
        page = Page(text)
        assert "alert(1)" in text, "the hostile text is shown"
        assert not page.tags & {"script", "iframe", "object", "embed", "form", "link", "base"}, file.name
        assert page.handlers == [], file.name
        assert "default-src 'none'" in text, "and nothing could run if it were not"
