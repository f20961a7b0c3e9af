"""`setup.sh --gpu` without a GPU, a network or a compiler: a stand-in for Python notes what it is asked."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Plays `python -m pip`: a download writes a source that asks for C++17 as flash-attn's does, an installation of a
# folder notes what its setup.py asks for then.
PYTHON = """#!/usr/bin/env bash
set -eu
echo "$*" >>"$NOTES/asked"
case "$*" in
    -V) echo "Python 3.11.0" ;;
    *hashlib*) cat >/dev/null; echo 0 ;;
    *importlib.metadata*) if [[ -e "$NOTES/there" ]]; then cat "$NOTES/there"; else exit 1; fi ;;
    *"pip download"*)
        while [[ "$1" != -d ]]; do shift; done
        mkdir "$NOTES/flash_attn-9.9"
        printf '%s\\n' 'flags = ["-O3", "-std=c++17"]' >"$NOTES/flash_attn-9.9/setup.py"
        tar -czf "$2/flash_attn-9.9.tar.gz" -C "$NOTES" flash_attn-9.9 ;;
    *flash_attn-*)
        echo "${@: -1}" >"$NOTES/source"
        cat "${@: -1}/setup.py" >"$NOTES/built"
        [[ ! -e "$NOTES/fail" ]] ;;
esac
"""


@pytest.fixture
def setup(tmp_path):
    """Runs `setup.sh --gpu`; gives the process and the notes of what pip was asked for."""
    venv, notes, tools = tmp_path / "venv", tmp_path / "notes", tmp_path / "tools"
    (venv / "bin").mkdir(parents=True)
    notes.mkdir()
    tools.mkdir()
    for path, text in ((venv / "bin" / "python", PYTHON), (tools / "nvcc", "#!/bin/sh\n")):
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)

    def run():
        words = ["bash", ROOT / "scripts" / "setup.sh", "--gpu"]
        path = f"{tools}{os.pathsep}{os.environ['PATH']}"
        environ = os.environ | {"VIRTUAL_ENV": str(venv), "NOTES": str(notes), "PATH": path}
        done = subprocess.run(words, env=environ, capture_output=True, text=True)
        return done, notes

    run.stamp = venv / ".installed-requirements-gpu.txt"
    return run


def test_flash_attn_is_built_for_the_standard_that_torch_asks_for(setup):
    done, notes = setup()
    assert done.returncode == 0, done.stderr
    assert (notes / "built").read_text() == 'flags = ["-O3", "-std=c++20"]\n'
    asked = (notes / "asked").read_text().splitlines()
    order = [
        next(i for i, line in enumerate(asked) if words in line) for words in ("-r requirements.txt", "pip download")
    ]
    assert order == sorted(order), "torch comes first: the build imports it"
    assert "--no-build-isolation" in asked[order[1]]
    assert any(line.endswith("-r requirements-gpu.txt") for line in asked), "what flash-attn itself needs"
    assert not Path((notes / "source").read_text().strip()).exists(), "the source is removed"
    assert setup.stamp.is_file()


def test_what_is_there_is_not_built_again(setup):
    line = next(li for li in (ROOT / "requirements-gpu.txt").read_text().splitlines() if li.startswith("flash-attn=="))
    _, notes = setup()
    setup.stamp.unlink()
    for name in ("built", "asked"):
        (notes / name).unlink()
    (notes / "there").write_text(line.partition("==")[2] + "\n")
    done, _ = setup()
    assert done.returncode == 0, done.stderr
    assert not (notes / "built").exists() and "download" not in (notes / "asked").read_text()


def test_a_failed_build_is_no_installation(setup, tmp_path):
    (tmp_path / "notes" / "fail").touch()
    done, _ = setup()
    assert done.returncode == 2
    assert "flash-attn could not be built" in done.stderr and "sdpa" in done.stderr
    assert not setup.stamp.exists()
