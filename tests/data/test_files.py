import gzip
import json
import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from data.errors import GOES_ON, Problems, UserError, run_cli
from data.files import (
    append_jsonl,
    atomic_open,
    dump_line,
    first_places,
    out_file,
    read_jsonl,
    sha256_file,
    write_atomic,
)

ROOT = Path(__file__).parents[2]


def lines(tmp_path, raw):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(raw)
    return path


def refused(path, **options):
    with pytest.raises(UserError) as caught:
        list(read_jsonl(path, **options))
    return str(caught.value)


def test_write_atomic_replaces_text_and_bytes_and_makes_folders(tmp_path):
    path = tmp_path / "new" / "file.txt"
    write_atomic(path, "é\n")
    assert path.read_bytes() == "é\n".encode()
    write_atomic(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert os.listdir(path.parent) == ["file.txt"]


def test_a_failure_half_way_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_open(path) as out:
        out.write(b"new" * 1_000_000)
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_full_disk_is_a_clear_error_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(UserError, match="file.txt: No space left on device; make room, the file is unchanged"):
        write_to_full_disk(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def write_to_full_disk(path):
    with atomic_open(path):
        raise OSError(28, "No space left on device")


def test_atomic_write_keeps_mode_and_follows_links(tmp_path):
    real = tmp_path / "real.txt"
    real.write_text("old")
    real.chmod(0o640)
    link = tmp_path / "link.txt"
    link.symlink_to(real)
    write_atomic(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640


def test_a_new_file_obeys_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        write_atomic(tmp_path / "file.txt", "x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "file.txt").stat().st_mode) == 0o640


def test_atomic_write_refuses_folders_and_devices(tmp_path):
    with pytest.raises(UserError, match="is not a regular file; name a file to write"):
        write_atomic(tmp_path, "x")
    with pytest.raises(UserError, match="/dev/null: is not a regular file"):
        write_atomic("/dev/null", "x")


def test_a_path_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written .* choose another place"):
        write_atomic(tmp_path / "file" / "below.txt", "x")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "is not a regular file; name a file to write"),
        ("new/", "new/: is not a regular file; name a file to write"),
        ("file/a/below.txt", r"below.txt: its folder .*file is not a folder; choose another"),
        ("locked/new/below.txt", r"below.txt: its folder .*locked cannot be written to; choose another"),
    ],
)
def test_a_file_that_could_not_be_written_is_refused_before_the_work(tmp_path, monkeypatch, name, message):
    (tmp_path / "file").write_text("x")
    (tmp_path / "locked").mkdir()
    monkeypatch.setattr(os, "access", lambda path, _: "locked" not in str(path))  # to root, everything is open
    with pytest.raises(UserError, match=message):
        out_file(f"{tmp_path}/{name}")
    assert out_file(f"{tmp_path}/file") == tmp_path / "file"
    assert out_file(f"{tmp_path}/new/deep/below.txt") == tmp_path / "new/deep/below.txt"
    assert not (tmp_path / "new").exists()


def test_read_jsonl_numbers_lines_and_passes_over_blank_ones(tmp_path):
    path = lines(tmp_path, b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"b": "\xc3\xa9"}')
    assert list(read_jsonl(path)) == [(1, {"a": 1}), (4, {"b": "é"})]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{"a": 1}\n{"a": "caf\xe9"}\n', r":2: byte 11 of the line \(0xe9\) is not UTF-8; save the file as UTF-8"),
        # iconv -f WINDOWS-1252 would make garbage of it.
        ('{"a": 1}\n'.encode("utf-16"), r":1: is UTF-16, not UTF-8; .*\(iconv -f UTF-16 -t UTF-8 converts it\)$"),
        (b"\xfe\xff\x00{\x00}\x00\n", ":1: is UTF-16, not UTF-8"),
        (gzip.compress(b'{"a": 1}\n', mtime=0), r": is compressed \(gzip\); unpack it first \(gunzip -k\)[^:]*$"),
        (b'{"a": 1}\n{"a": }\n', r":2: not JSON at column 7 .*; write one JSON value on each line"),
        (b'{"a": 1,\n', r":1: not JSON at column 9 "),
        (b'{"a": 1,\r\n', r":1: not JSON at column 9 "),
        (b'[\n {"a": 1}\n]\n', r":1: not JSON .*one indented JSON document: write one object a line \(jq"),
        (b'{"a": NaN}\n', ":1: NaN is not JSON; write a number or null"),
        (b'{"a": -Infinity}\n', ":1: -Infinity is not JSON; write a number or null"),
        (b'{"a": 1e999}\n', ":1: number 1e999 is too large for a float"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}\n', ":1: key 'c' stands twice in one object; keep one"),
        (b"[" * 100_000 + b"\n", ":1: nested too deeply to read"),
        (b"1" * 5_000 + b"\n", ":1: Exceeds the limit"),
        (b'{"a": "x\x01"}\n', ":1: not JSON .*Invalid control character"),
    ],
)
def test_read_jsonl_names_file_line_and_remedy(tmp_path, raw, message):
    with pytest.raises(UserError, match=r"rows\.jsonl" + message):
        list(read_jsonl(lines(tmp_path, raw)))


def test_read_jsonl_of_a_log_takes_numbers_that_are_not_finite_and_nothing_else(tmp_path):
    raw = b'{"a": NaN}\n{"a": -Infinity}\n{"a": 1e999}\n'
    assert str([row["a"] for _, row in read_jsonl(lines(tmp_path, raw), finite=False)]) == "[nan, -inf, inf]"
    for row, message in ((b'{"a": nan}\n', "not JSON"), (b'{"a": 1, "a": 2}\n', "key 'a' stands twice")):
        assert f":1: {message}" in refused(lines(tmp_path, row), finite=False)


def test_missing_file_and_folder(tmp_path):
    assert "none.jsonl: cannot be read (No such file or directory); check the path" in refused(tmp_path / "none.jsonl")
    assert "is a folder; name a file" in refused(tmp_path)


def test_torn_last_line_is_refused_in_input_and_dropped_aloud_in_a_log(tmp_path, capsys):
    path = lines(tmp_path, b'{"a": 1}\n{"a": "\xc3')
    assert "rows.jsonl:2: " in refused(path)
    assert "it is the last line and has no newline: cut off?" in refused(path)
    assert list(read_jsonl(path, torn="drop")) == [(1, {"a": 1})]
    assert "rows.jsonl:2: last line cut off by an interruption; left out" in capsys.readouterr().err


def test_a_bad_line_with_its_newline_is_no_torn_line(tmp_path):
    assert ":2: not JSON" in refused(lines(tmp_path, b'{"a": 1}\n{"a": \n'), torn="drop")


@pytest.mark.parametrize("cut", range(1, 12))
def test_append_after_an_interruption_at_any_byte(tmp_path, capsys, cut):
    whole = b'{"a": "\xc3\xa9"}\n'  # 12 bytes
    path = lines(tmp_path, b'{"first": 0}\n' + whole[:cut])
    append_jsonl(path, {"b": 2})
    kept = [{"a": "é"}] if cut == 11 else []
    assert [row for _, row in read_jsonl(path)] == [{"first": 0}, *kept, {"b": 2}]
    assert ("last line cut off" in capsys.readouterr().err) == (cut != 11)


def test_append_finds_the_start_of_a_long_torn_line(tmp_path):
    path = lines(tmp_path, b'{"first": 0}\n{"a": "' + b"x" * 200_000)
    append_jsonl(path, {"b": 2})
    assert [row for _, row in read_jsonl(path)] == [{"first": 0}, {"b": 2}]


def test_append_makes_the_file_and_its_folder(tmp_path):
    path = tmp_path / "deep" / "log.jsonl"
    append_jsonl(path, {"a": "é"})
    append_jsonl(path, {"a": 2})
    assert path.read_bytes() == '{"a": "é"}\n{"a": 2}\n'.encode()


def test_rows_that_are_appended_together_are_flushed_once(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    append_jsonl(tmp_path / "log.jsonl", *({"a": i} for i in range(3)))
    assert [row for _, row in read_jsonl(tmp_path / "log.jsonl")] == [{"a": i} for i in range(3)] and len(flushed) == 1


def test_append_to_a_folder_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="cannot be appended to"):
        append_jsonl(tmp_path, {})


def test_dump_line_refuses_nan():
    with pytest.raises(ValueError, match="Out of range float values"):
        dump_line({"a": float("nan")})


def test_sha256_file(tmp_path):
    path = lines(tmp_path, b"abc")
    assert sha256_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_problems_lists_the_first_ones_and_counts_all():
    problems = Problems("f.jsonl", shown=2)
    problems.refuse()
    problems.add("f.jsonl:1: a")
    with pytest.raises(UserError, match=r"^f\.jsonl:1: a$"):
        problems.refuse()
    problems.add("f.jsonl:2: b")
    problems.add("f.jsonl:3: c")
    with pytest.raises(UserError) as caught:
        problems.refuse()
    assert str(caught.value) == "f.jsonl: 3 problems, the first 2:\n  f.jsonl:1: a\n  f.jsonl:2: b"


@pytest.mark.parametrize(("error", "status"), [(UserError("file:3: bad"), 2), (KeyboardInterrupt(), 130)])
def test_run_cli_turns_errors_into_a_line_and_a_status(capsys, error, status):
    def main():
        raise error

    with pytest.raises(SystemExit) as caught:
        run_cli(main)
    assert caught.value.code == status
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert shown == ("error: file:3: bad\n" if status == 2 else "interrupted\n")


@pytest.mark.parametrize(("flag", "how"), [("--seed", "the same command: "), ("--overwrite", "without --overwrite: ")])
def test_run_cli_says_how_to_go_on(monkeypatch, capsys, flag, how):
    def main():
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["predict", flag])
    with pytest.raises(SystemExit):
        run_cli(main, GOES_ON)
    assert how in capsys.readouterr().err


def test_run_cli_passes_the_status_on_and_hides_no_defect():
    with pytest.raises(SystemExit) as caught:
        run_cli(lambda: None)
    assert caught.value.code == 0
    with pytest.raises(ZeroDivisionError):
        run_cli(lambda: 1 // 0)


def test_rows_round_trip(tmp_path):
    row = {"text": 'line\u2028separator "quoted" \\ é \U0001fac1', "n": 1.5, "none": None}
    path = lines(tmp_path, dump_line(row) * 2)
    assert [found for _, found in read_jsonl(path)] == [row, row]
    assert json.loads(path.read_bytes().splitlines()[0]) == row


def test_first_places_tells_where_a_name_was_first():
    with first_places() as first:
        assert [first(name, place) for place, name in enumerate(["a", "b", "é", "a", "A", "é"])] == [0, 1, 2, 0, 4, 2]
    with first_places() as first:
        assert first("a", 7) == 7


def test_many_names_leave_memory_for_disk():
    # In a process of its own: SQLite reads the variable when it is imported.
    program = """
import os, resource
from data.files import first_places
with first_places() as first:
    first("a", 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert all(first(f"name {number}", number) == number for number in range(1, 300_000))
    assert first("name 17", 300_000) == 17
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    fds = [os.path.join("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd")]
    print(grown, [os.readlink(fd) for fd in fds if os.path.lexists(fd)])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    grown, files = done.stdout.split(maxsplit=1)
    # A dict of as many names takes 40 MB.
    assert int(grown) < 10_000 and "etilqs_" in files


def test_no_room_for_the_names_is_a_clear_error(monkeypatch):
    class Full:
        def execute(self, command, values=()):
            raise sqlite3.OperationalError("database or disk is full")

        def close(self):
            pass

    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: Full())
    with (
        pytest.raises(UserError, match="disk is full; make room in the temporary folder or set SQLITE_TMPDIR"),
        first_places(),
    ):
        pass
