import json
import subprocess
import sys
from pathlib import Path

import pytest

from data.errors import UserError
from scripts import stages

CHAIN = ["one", "two", "three"]


def command(out, name, text="x"):
    """Make DIR/NAME/file and add a line to DIR/ran, so that every run of a stage leaves a trace."""
    script = f"mkdir -p {out}/{name} && echo {text} >> {out}/{name}/file && echo {name} >> {out}/ran"
    return [["sh", "-c", script]]


def run_all(out, texts=None, **options):
    texts = texts or {}
    for name in CHAIN:
        stages.run_stage(out, CHAIN, name, command(out, name, texts.get(name, "x")), **options)
    ran = (out / "ran").read_text().split()
    (out / "ran").write_text("")
    return ran


def test_finished_stages_are_not_repeated(tmp_path):
    assert run_all(tmp_path) == CHAIN
    assert run_all(tmp_path) == []


def test_a_changed_command_reruns_the_stage_and_all_after_it(tmp_path, capsys):
    run_all(tmp_path)
    assert run_all(tmp_path, {"two": "y"}) == ["two", "three"]
    assert (tmp_path / "two/file").read_text() == "y\n", "the old output is gone, not added to"
    assert "[2/3] two: runs again" in capsys.readouterr().out
    assert run_all(tmp_path, {"two": "y"}) == []


def test_a_stage_that_names_its_own_json_output_is_not_repeated(tmp_path):
    script = [["sh", "-c", 'echo "{}" > "$0"', f"{tmp_path}/results.json"]]
    assert stages.run_stage(tmp_path, ["one"], "one", script, outputs=["results.json"])
    assert not stages.run_stage(tmp_path, ["one"], "one", script, outputs=["results.json"])


@pytest.mark.parametrize(("name", "ran"), [("c.yaml", True), ("s.jsonl", True), ("labels", True), ("c.py", False)])
def test_a_changed_file_reruns_what_reads_it(tmp_path, name, ran):
    file = tmp_path / name
    file.write_text("a: 1")
    tmp_path = tmp_path / "out"
    command = [["sh", "-c", f"mkdir {tmp_path}/one", str(file)]]
    assert stages.run_stage(tmp_path, ["one"], "one", command)
    assert not stages.run_stage(tmp_path, ["one"], "one", command)
    file.write_text("a: 2")
    assert stages.run_stage(tmp_path, ["one"], "one", command) == ran


def test_a_deleted_output_reruns(tmp_path):
    run_all(tmp_path)
    (tmp_path / "two/file").unlink()
    (tmp_path / "two").rmdir()
    assert run_all(tmp_path) == ["two", "three"]


def test_a_failure_names_log_and_remedy_and_is_repeated(tmp_path):
    stages.run_stage(tmp_path, CHAIN, "one", command(tmp_path, "one"))
    with pytest.raises(UserError, match=r"stage two failed with status 3(.|\n)*boom(.|\n)*logs/two.log"):
        stages.run_stage(tmp_path, CHAIN, "two", [["sh", "-c", f"mkdir {tmp_path}/two; echo boom; exit 3"]])
    with pytest.raises(UserError, match="two before it is not finished"):
        stages.run_stage(tmp_path, CHAIN, "three", command(tmp_path, "three"))
    assert run_all(tmp_path)[1:] == ["two", "three"], "the half-made folder was ours and is cleared"
    assert (tmp_path / "two/file").read_text() == "x\n"


def test_foreign_files_are_never_deleted(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one/precious").write_text("mine")
    with pytest.raises(UserError, match="not made by stage one"):
        stages.run_stage(tmp_path, CHAIN, "one", command(tmp_path, "one"))
    assert (tmp_path / "one/precious").read_text() == "mine"


def test_a_link_in_place_of_an_output_is_left_alone(tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    run_all(out)
    (out / "one").rename(elsewhere)
    (out / "one").symlink_to(elsewhere)
    with pytest.raises(UserError, match="not made by stage one"):
        stages.run_stage(out, CHAIN, "one", command(out, "one", "y"))
    assert (elsewhere / "file").exists()


def test_keep_goes_on_with_an_interrupted_stage_only(tmp_path):
    script = f"mkdir -p {tmp_path}/one; echo x >> {tmp_path}/one/file; test -e {tmp_path}/ready"
    with pytest.raises(UserError):
        stages.run_stage(tmp_path, ["one"], "one", [["sh", "-c", script]], keep=True)
    (tmp_path / "ready").touch()
    assert stages.run_stage(tmp_path, ["one"], "one", [["sh", "-c", script]], keep=True)
    assert (tmp_path / "one/file").read_text() == "x\nx\n"


def test_keep_never_goes_on_with_the_output_of_another_command(tmp_path):
    script = f"mkdir -p {tmp_path}/one; echo x >> {tmp_path}/one/file; "
    with pytest.raises(UserError):
        stages.run_stage(tmp_path, ["one"], "one", [["sh", "-c", script + "false"]], keep=True)
    assert stages.run_stage(tmp_path, ["one"], "one", [["sh", "-c", script + "true"]], keep=True)
    assert (tmp_path / "one/file").read_text() == "x\n"


def test_a_stage_that_makes_nothing_is_not_finished(tmp_path):
    with pytest.raises(UserError, match="made no"):
        stages.run_stage(tmp_path, ["one"], "one", [["true"]])
    assert stages.run_stage(tmp_path, ["one"], "one", command(tmp_path, "one"))


def test_seconds_by_stage_reach_the_results(tmp_path):
    run_all(tmp_path)
    results = tmp_path / "results.json"
    results.write_text('{"seed": 1, "seconds": {}}')
    stages.main(["--out", str(tmp_path), "--seconds-into", str(results)])
    seconds = json.loads(results.read_text())["seconds"]
    assert list(seconds) == CHAIN and all(value >= 0 for value in seconds.values())


def test_the_command_line_with_two_commands(tmp_path):
    root = Path(stages.__file__).resolve().parent.parent
    words = ["--out", tmp_path, "--chain", "one", "--stage", "one", "--outputs", "one done", "--"]
    words += ["mkdir", f"{tmp_path}/one", "--then", "touch", f"{tmp_path}/done"]
    call = [sys.executable, root / "scripts/stages.py", *words]
    first = subprocess.run(call, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert "[1/1] one ..." in first.stdout
    assert "not repeated" in subprocess.run(call, capture_output=True, text=True).stdout
    bad = subprocess.run([*call[:8], "--", "false"], capture_output=True, text=True)
    assert bad.returncode == 2 and bad.stderr.startswith("error: ") and "Traceback" not in bad.stderr


def test_a_stage_that_goes_on_notes_the_code_of_both_parts(tmp_path):
    script = [["sh", "-c", f"mkdir -p {tmp_path}/one; test -e {tmp_path}/ready"]]
    for code in "aab":
        with pytest.raises(UserError):
            stages.run_stage(tmp_path, ["one"], "one", script, keep=True, made_by={"code": code})
    (tmp_path / "ready").touch()
    assert stages.run_stage(tmp_path, ["one"], "one", script, keep=True, made_by={"code": "b"})
    assert stages.makers(stages.read_marker(tmp_path, "one")) == [{"code": "a"}, {"code": "b"}]
    (tmp_path / "one").rmdir()
    assert stages.run_stage(tmp_path, ["one"], "one", script, keep=True, made_by={"code": "c"})
    assert stages.makers(stages.read_marker(tmp_path, "one")) == [{"code": "c"}], "what was made anew is of one"
    stages.run_stage(tmp_path, ["two"], "two", [["mkdir", f"{tmp_path}/two"]])
    assert stages.makers(stages.read_marker(tmp_path, "two")) == [None], "unknown is said"
