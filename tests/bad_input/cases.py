"""A small world of good input, how to run a command line in this process, and what a refusal must leave alone."""

import contextlib
import hashlib
import importlib
import io
import json
import re
import sys
from pathlib import Path

import yaml
from PIL import Image
from safetensors.numpy import save

from data.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SECRET = "Wordsofapatient"  # in every text; must stand in no message
TEXTS = {"a": f"No pneumothorax. {SECRET}", "b": f"Left pleural effusion. {SECRET}", "c": f"Clear lungs. {SECRET}"}
OLD = "an earlier result\n"
# Files that each command would write; they hold OLD before the run and after it.
OUTPUTS = ("out.jsonl", "rows.jsonl", "predictions.jsonl", "results.json", "report.html")


def study(number=0, **changes):
    """A good record; a change to None takes the field out."""
    whole = {
        "id": f"s{number}",
        "patient": f"p{number}",
        "source": "test",
        "split": "train",
        "images": [f"films/{number}.png"],
        "prompt": f"What does this film show? {SECRET} <image>",
        "trajectories": [{"teacher": t, "text": text, "status": "ok"} for t, text in TEXTS.items()],
        "consensus": {"text": f"Small left pleural effusion. {SECRET}", "strategy": "self"},
        "findings": {"Pleural Effusion": {"state": "present", "side": "left"}},
    }
    return {key: value for key, value in (whole | changes).items() if value is not None}


def said(text, status="ok"):
    return [{"teacher": "a", "text": text, "status": status}]


class World:
    """`folder` with studies.jsonl, films/, student/ (nothing that could be loaded), train.yaml and collect.yaml."""

    def __init__(self, folder: Path, student: Path):
        self.folder, self.student = folder, student
        self.studies = folder / "studies.jsonl"
        (folder / "films").mkdir()
        for number in range(3):
            Image.new("L", (112, 84), 40 * number).save(folder / f"films/{number}.png")
        self.write([study(n) for n in range(3)])
        for name in OUTPUTS:
            (folder / name).write_text(OLD)

    def write(self, records, name="studies.jsonl"):
        """Records, or lines as they are (str, bytes), into a JSONL file."""
        lines = [r if isinstance(r, bytes) else r.encode() if isinstance(r, str) else dump(r) for r in records]
        (self.folder / name).write_bytes(b"".join(line + b"\n" for line in lines))
        return self.folder / name

    def config(self, text="", name="train.yaml", **settings):
        """A training configuration of Critique on a CPU; `text` in place of everything, settings of None left out."""
        whole = {
            "model": str(self.student),
            "dataset": str(self.studies),
            "output_dir": str(self.folder / "run"),
            "use_cpu": True,
            "beta": 0.1,
            "max_length": 1024,
            "model_type": "qwen2_5_vl",
            "template": "qwen2_5_vl",
        }
        whole = {key: value for key, value in (whole | settings).items() if value is not None}
        (self.folder / name).write_text(text or yaml.safe_dump(whole))
        return str(self.folder / name)

    def collect(self, text="", teacher=None, **settings):
        """A collection of one teacher on a loopback address where nothing listens."""
        one = {"name": "t", "base_url": "http://127.0.0.1:9/v1", "model": "m", "prompt": "open"} | (teacher or {})
        whole = {"studies": str(self.studies), "out": str(self.folder / "out.jsonl"), "teachers": [one]} | settings
        (self.folder / "collect.yaml").write_text(text or yaml.safe_dump(whole))
        return str(self.folder / "collect.yaml")

    def snapshot(self):
        """{path: hash of its bytes} of every file."""
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return {
            path.relative_to(self.folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
        }


def dump(record):
    return json.dumps(record, allow_nan=True).encode()


def adapter(folder: Path, base, weights=None):
    folder.mkdir()
    named = {} if base is None else {"base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(named))
    (folder / "adapter_model.safetensors").write_bytes(save({}) if weights is None else weights)
    return folder


def run(words, monkeypatch):
    """(exit status, everything that was printed and the error) of a command line such as ["records", "F"]."""
    modules = {
        "records": "data.records",
        "rows": "data.rows",
        "splits": "data.splits",
        "manifest": "data.manifest",
        "collect": "data.collect.__main__",
        "train": "scripts.launch",
        "doctor": "scripts.doctor",
        "compare": "apo.compare",
        "drift": "apo.drift",
        "plan": "apo.plan",
        "predict": "eval.predict",
        "score": "eval.phantom",
        "report": "eval.report",
        "checkpoints": "data.checkpoints",
    }
    name, *rest = [str(word) for word in words]
    main = importlib.import_module(modules[name]).main
    monkeypatch.setattr(sys, "argv", [name, *rest])
    out = io.StringIO()
    status = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            status = main()
        except UserError as error:
            status, message = 2, str(error)
            print(message)
        except SystemExit as error:
            status = error.code
    return status or 0, out.getvalue()


# Empty files that keep a second run out while films and earlier answers are looked at.
LOCKS = {"run/.launch.lock", ".out.jsonl.lock", ".predictions.jsonl.lock", ".films.lock"}


def refused(world, monkeypatch, words, message):
    """Run the words: they must be refused with the message, and leave every file that was there as it was."""
    before = world.snapshot()
    status, told = run(words, monkeypatch)
    assert status not in (0, None), f"accepted: {told}"
    assert re.search(message, told), told
    assert SECRET not in told, "a text of a patient is in the message"
    after = world.snapshot()
    assert {name: after.get(name) for name in before} == before, "a file was changed or removed"
    made = set(after) - set(before)
    assert made <= LOCKS, f"a file was made: {made}"
