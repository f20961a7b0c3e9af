"""The README can be typed as it stands: commands, flags, options and links exist, and nothing is left to fill in."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

from apo import options
from scripts import launch, plan

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MARKER = "<!-- quickstart-table -->"
LAUNCHERS = {"SFT-Qwen2.5.sh": "sft", "APO-Qwen2.5.sh": "apo"}
# Commands of others, which no test starts.
OTHERS = {"source", "wget", "hf", "swift"}


def commands(text):
    """The words of every command in the ```bash blocks, those inside $( ) as well, variable assignments left out."""
    found = []
    for block in re.findall(r"^```bash\n(.*?)^```$", text, re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            found += re.findall(r"\$\((.*?)\)", line)
            found.append(re.sub(r"\$\(.*?\)", "VALUE", line))
    split = [shlex.split(line, comments=True) for line in found]
    assigned = re.compile(r"[A-Za-z_]+=")
    kept = [words[next((i for i, w in enumerate(words) if not assigned.match(w)), len(words)) :] for words in split]
    return [words for words in kept if words]


COMMANDS = commands(README)


def flags(words):
    return {word.partition("=")[0] for word in words if word.startswith("--")}


def help_text(*command):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "VIRTUAL_ENV": sys.prefix, "COLUMNS": "200"}
    done = subprocess.run([*command, "--help"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)} --help: {done.stderr[-500:]}"
    return done.stdout


def unknown_flags(words, text):
    return {flag for flag in flags(words) if not re.search(rf"{re.escape(flag)}(?![\w-])", text)}


def test_the_blocks_are_found():
    assert {words[1] for words in COMMANDS if words[0] == "bash"} >= {*LAUNCHERS, "scripts/quickstart.sh"}
    assert ["python", "-m", "data.checkpoints", "latest", "runs/apo_qwen2_5_vl_7b"] in COMMANDS


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_command(words, monkeypatch, capsys):
    if words[0] == "bash":
        script = words[1]
        assert (ROOT / script).is_file()
        if script in LAUNCHERS:
            monkeypatch.chdir(ROOT)
            monkeypatch.setattr(plan, "visible_gpus", lambda: 0)
            for name in plan.WORLD_VARIABLES:
                monkeypatch.delenv(name, raising=False)
            assert launch.main([LAUNCHERS[script], *words[2:], "--dry-run"]) == 0
            assert "swift.cli.main" in capsys.readouterr().out
        elif flags(words):
            assert not unknown_flags(words, help_text("bash", script))
    elif words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]), f"no module {words[2]}"
        if flags(words):
            assert not unknown_flags(words, help_text(sys.executable, "-m", words[2]))
    else:
        assert words[0] in OTHERS


def test_files_named_in_commands_are_there():
    named = {word for words in COMMANDS for word in words if word.startswith(("configs/", "scripts/"))}
    assert named
    assert not [name for name in sorted(named) if not (ROOT / name).exists()]


def test_relative_links_resolve():
    links = re.findall(r"\]\(([^)\s]+)\)", README) + re.findall(r'(?:src|href)="([^"]+)"', README)
    relative = [link.partition("#")[0] for link in links if not link.startswith(("https://", "#"))]
    assert relative
    assert not [link for link in relative if not (ROOT / link).exists()]


def test_nothing_is_left_to_fill_in():
    assert not re.findall(r"\b(?:TODO|TBD|FIXME|XXX|lorem|placeholder|coming soon)\b", README, re.I)
    comments = re.findall(r"<!--.*?-->", README, re.S)
    assert comments in ([], [MARKER])


def test_table_of_options_is_that_of_the_code():
    section = README.split("## Options of APO")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "| `apo_" in line]
    written = {cells[0].strip("`").removeprefix("apo_"): cells[2].strip("`") for cells in rows}
    assert written.keys() == options.PARSERS.keys()
    for name, default in options.Options()._asdict().items():
        assert written[name] == (str(default).lower() if default != "" else "none"), name


def test_settings_told_are_those_of_the_configs():
    told = {
        "sft_qwen2_5_vl_7b": {
            "learning_rate": 1e-4,
            "max_length": 2304,
            "lora_rank": 8,
            "lora_alpha": 32,
            "eval_steps": 200,
        },
        "apo_qwen2_5_vl_7b": {
            "learning_rate": 5e-7,
            "on_identical": "drop-negative",
            "max_length": 4096,
            "lora_rank": 8,
            "lora_alpha": 32,
            "eval_steps": 100,
        },
        "sft_phantom": {"share_prefix": True, "max_pixels": 112 * 112, "tuner_type": "full", "torch_dtype": "float32"},
        "apo_phantom": {"rpo_alpha": 1.0, "beta": 0.1, "tuner_type": "full", "torch_dtype": "float32"},
    }
    published = {"effective_batch_size": 32, "warmup_ratio": 0.05, "num_train_epochs": 1, "seed": 42}
    published |= {"freeze_vit": True, "freeze_aligner": True, "max_pixels": 1003520, "save_total_limit": 5}
    for name, values in told.items():
        config = yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text(encoding="utf-8"))
        wanted = values | (published if name.endswith("7b") else {})
        assert {key: config.get(key) for key in wanted} == wanted, name
    apo = yaml.safe_load((ROOT / "configs/apo_qwen2_5_vl_7b.yaml").read_text(encoding="utf-8"))
    assert (apo["beta"], apo["loss_type"], apo["deepspeed"], apo["rpo_alpha"]) == (0.1, "plackett_luce", "zero2", 1.0)


def test_version_is_the_same_everywhere():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version


def test_picture_needs_nothing_from_elsewhere():
    picture = ROOT / "docs/method.svg"
    hrefs = [v for e in ElementTree.parse(picture).iter() for k, v in e.attrib.items() if k.endswith("href")]
    assert hrefs
    assert all(href.startswith("#") for href in hrefs)
    assert "url(http" not in picture.read_text() and "@import" not in picture.read_text()
