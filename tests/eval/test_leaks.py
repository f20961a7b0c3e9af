import json
import shutil

import pytest
from PIL import Image

from data import manifest
from data.errors import UserError
from data.records import write_studies
from eval import film_hash, leaks, training_set
from eval.items import Benchmark, Item
from tests.eval import sets_tree
from tests.eval.cases import study


def trained(folder, patients, *, source="mimic-cxr", split="train", films=()):
    """A file of training studies s0, s1, ... of the given patients, with one film each."""
    rows = []
    for number, patient in enumerate(patients):
        name = films[number] if number < len(films) else f"train-{number}.png"
        sets_tree.film(folder / "films" / name, 100 + number)
        row = study(number, {}, split=split)
        rows.append(row | {"id": f"s{number}", "patient": patient, "source": source, "images": [f"films/{name}"]})
    write_studies(folder / "train.jsonl", rows)
    return folder / "train.jsonl"


def benchmark(folder, rows, name="ms-cxr-t-presence"):
    items = []
    for number, (patient, study_id, film) in enumerate(rows):
        path = folder / "bench" / film
        if not path.exists():
            sets_tree.film(path, 500 + number)
        items.append(Item(f"i{number}", patient, study_id, (str(path),), "q", {}))
    return Benchmark(name, "generate", tuple(items), {"rows": len(items)}, {}, ("before",))


def test_overlap_by_patient_study_and_film_name(tmp_path):
    known = leaks.read_trained(trained(tmp_path, ["p1", "p2"], films=["dicom-a.png", "dicom-b.png"]))
    rows = [("p1", "s7", "x.png"), ("p9", "s1", "y.png"), ("p8", "s8", "dicom-b.jpg"), ("p7", "s9", "z.png")]
    found = leaks.find(benchmark(tmp_path, rows), known, films="names")
    assert found["item_ids"]["patient"] == ["i0"] and found["item_ids"]["study"] == ["i1"]
    assert found["item_ids"]["film name"] == ["i2"] and found["overlapping_items"] == 3
    assert found["by_level"]["patient"] == {"items": 1, "shared": 1}
    assert leaks.notes_of(found) == [
        "overlap with 2 training studies (train.jsonl), compared by ids and film names: 3 of 4 items; by level, items "
        "(shared patients, studies or films): patient 1 (1), study 1 (1), film name 1 (1)"
    ]


@pytest.mark.parametrize("patient", ["p10999991", "10999991", "P10999991", "10999991.0"])
def test_one_patient_of_mimic_is_one_however_it_is_written(tmp_path, patient):
    known = leaks.read_trained(trained(tmp_path, [patient]))
    found = leaks.find(benchmark(tmp_path, [("p10999991", "s59999991", "x.png")]), known, films="names")
    assert found["item_ids"]["patient"] == ["i0"]
    assert leaks.plain_id("chexpert", "p10999991") == "p10999991"
    assert leaks.plain_id("mimic-cxr", "s59999991") == leaks.plain_id("mimic-cxr", "59999991") == "59999991"


def test_ids_of_another_hospital_are_not_compared(tmp_path):
    known = leaks.read_trained(trained(tmp_path, ["p1"], source="chestx-ray14"))
    one = benchmark(tmp_path, [("p1", "s0", "train-0.png")])
    found = leaks.find(one, known, films="names")
    assert found["overlapping_items"] == 0 and not found["ids_compared"]
    assert leaks.notes_of(found)[0].endswith("is unknown: no shared ids, and films were not compared")
    assert any("byte for byte only" in note for note in leaks.checked(one, known).notes)
    same = leaks.find(benchmark(tmp_path, [("p1", "s0", "train-0.png")], "chestx-ray14"), known, films="names")
    assert same["overlapping_items"] == 1


@pytest.mark.parametrize("many", ["trained", "items"])
def test_a_film_name_that_stands_in_several_folders_tells_nothing(tmp_path, many):
    several, one = ["a/0.png", "b/0.png", "own.png"], ["c/0.png", "own.png"]
    known, asked = (several, one) if many == "trained" else (one, several)
    path = trained(tmp_path, [f"p{number}" for number in range(len(known))], films=known)
    bench = benchmark(tmp_path, [(f"q{number}", "", film) for number, film in enumerate(asked)])
    found = leaks.find(bench, leaks.read_trained(path), films="names")
    assert found["item_ids"]["film name"] == [f"i{len(asked) - 1}"], "own.png alone"


@pytest.mark.parametrize("name", ["chexpert-5", "chexpert-14", "padchest", "padchest20"])
def test_the_variants_of_a_benchmark_share_the_ids_of_its_data_set(tmp_path, name):
    known = leaks.read_trained(trained(tmp_path, ["p1"], source=name.split("-")[0].removesuffix("20")))
    found = leaks.find(benchmark(tmp_path, [("p1", "", "x.png")], name), known, films="names")
    assert found["ids_compared"] and found["item_ids"]["patient"] == ["i0"]


def test_only_the_splits_that_training_looks_at_count(tmp_path):
    path = trained(tmp_path, ["p1"], split="test")
    with pytest.raises(UserError, match="train.jsonl: no study of split train or validate; name the file of the stud"):
        leaks.read_trained(path)
    one = benchmark(tmp_path, [("p1", "", "x.png")])
    found = leaks.find(one, leaks.read_trained(path, splits=("test",)), films="names")
    assert found["overlapping_items"] == 1


def test_a_validation_file_is_looked_at_in_training_too(tmp_path):
    (tmp_path / "val").mkdir()
    files = [
        trained(tmp_path, ["p1"]),
        trained(tmp_path / "val", ["p2", "p3"], split="validate", films=["a.png", "b.png"]),
    ]
    (tmp_path / "run").mkdir()
    entries = {"datasets": [manifest.entry(file) for file in files]}
    (tmp_path / "run" / manifest.LAUNCH).write_text(json.dumps(entries))
    found, notes = training_set.studies_of(tmp_path / "run" / "checkpoint-1")
    one = benchmark(tmp_path, [("p1", "", "x.png"), ("p2", "", "y.png"), ("p4", "", "z.png")])
    noted = training_set.checked(one, found, notes, excluded=False)
    assert [note.partition(",")[0] for note in noted.notes[1:]] == [
        "overlap with 1 training studies (train.jsonl)",
        "overlap with 2 training studies (train.jsonl",
    ]
    assert "(train.jsonl, 2 of them for validation), compared by ids" in noted.notes[2]
    kept = training_set.checked(one, found, notes, excluded=True)
    assert [item.id for item in kept.items] == ["i2"]


def launch(folder, patients, **settings):
    """A run FOLDER on training studies of `patients`; its launch.json."""
    (folder / "data").mkdir(parents=True)
    note = {"datasets": [manifest.entry(trained(folder / "data", patients))], "settings": settings}
    (folder / manifest.LAUNCH).write_text(json.dumps(note))


@pytest.mark.parametrize("start", ["merged", "checkpoint-3", "checkpoint-3/merged"])
def test_what_the_runs_before_were_trained_on_counts_too(tmp_path, start):
    runs = [tmp_path / name for name in ("learn", "critique", "second")]
    launch(runs[0], ["p1"], model="Qwen/Qwen2.5-VL-7B-Instruct")
    launch(runs[1], ["p2"], model=str(runs[0] / start))
    launch(runs[2], ["p3"], model="/base", adapters=str(runs[1] / "checkpoint-4"))
    for run, overlapping in zip(runs, (["i0"], ["i0", "i1"], ["i0", "i1", "i2"]), strict=True):
        found, notes = training_set.studies_of(run / "checkpoint-9")
        one = benchmark(tmp_path, [(f"p{number}", "", f"{number}.png") for number in (1, 2, 3, 4)])
        kept = training_set.checked(one, found, notes, excluded=True)
        assert [item.id for item in kept.items] == [f"i{n}" for n in range(4) if f"i{n}" not in overlapping]
    assert notes == [
        "overlap with the training set of the model that it started from (base) was not checked: it is not known; name "
        "its studies with --train"
    ]


def test_a_resumed_run_is_followed_past_its_own_checkpoint_once(tmp_path):
    learn, critique = tmp_path / "learn", tmp_path / "critique"
    launch(learn, ["p1"], model=str(critique / "checkpoint-1"))  # no run can be, but nothing goes round for ever
    own = str(critique / "checkpoint-1")
    launch(critique, ["p2"], model=own, resume_from_checkpoint=own, ref_model=str(learn / "merged"))
    found, notes = training_set.studies_of(critique / "checkpoint-2")
    assert [file.parent.parent.name for file, _ in found] == ["critique", "learn"] and not notes


def test_films_are_found_again_by_bytes_and_by_pixels(tmp_path):
    known = leaks.read_trained(trained(tmp_path, ["p1", "p2"], source="elsewhere"))
    folder = tmp_path / "bench"
    folder.mkdir()
    shutil.copy(tmp_path / "films" / "train-0.png", folder / "copy.png")
    with Image.open(tmp_path / "films" / "train-1.png") as image:
        image.resize((48, 42)).save(folder / "smaller.jpg", quality=80)
    rows = [("a", "", "copy.png"), ("b", "", "smaller.jpg"), ("c", "", "other.png")]
    one = benchmark(tmp_path, rows, "chestx-det10")
    found = leaks.find(one, known)
    assert found["films_compared"] == ["bytes", "pixels"]
    assert found["item_ids"]["film bytes"] == ["i0"] and found["item_ids"]["film pixels"] == ["i0", "i1"]
    assert found["pairs"][0] == {"film": "copy", "trained": "train-0", "bits": 0}
    assert found["pairs"][1]["trained"] == "train-1" and 0 < found["pairs"][1]["bits"] <= film_hash.DISTANCE
    assert leaks.find(one, known, films="bytes")["overlapping_items"] == 1


def test_missing_films_are_counted_not_hidden(tmp_path):
    path = trained(tmp_path, ["p1", "p2"], source="elsewhere")
    (tmp_path / "films" / "train-1.png").unlink()
    found = leaks.find(benchmark(tmp_path, [("a", "", "x.png")]), leaks.read_trained(path))
    assert found["not_compared"] == 1
    assert "1 films are missing and were not compared by their contents" in leaks.notes_of(found)


UNKNOWN = "overlap with 1 training studies (train.jsonl) is unknown: no shared ids, and films were not compared"


@pytest.mark.parametrize("gone", ["films", "bench"])
def test_films_that_are_all_missing_on_one_side_were_not_compared(tmp_path, gone):
    known = leaks.read_trained(trained(tmp_path, ["p1"], source="elsewhere"))
    one = benchmark(tmp_path, [("a", "", "x.png")], "open-i")
    shutil.rmtree(tmp_path / gone)
    found = leaks.find(one, known, films="pixels")
    assert found["films_compared"] == []
    assert leaks.notes_of(found) == [UNKNOWN, "1 films are missing and were not compared by their contents"]


def test_items_without_patients_and_films_share_no_ids(tmp_path):
    known = leaks.read_trained(trained(tmp_path, ["p1"]))
    pairs = Benchmark("ms-cxr-t-similarity", "yesno", (Item("pair-2", "pair-2", "", (), "q", {}),), {}, {}, ())
    found = leaks.find(pairs, known)
    assert not found["ids_compared"] and leaks.notes_of(found) == [UNKNOWN]


def test_several_training_files_add_up(tmp_path):
    (tmp_path / "other").mkdir()
    files = [trained(tmp_path, ["p1", "p2"], films=["a.png", "b.png"]), trained(tmp_path / "other", ["p3"])]
    one = benchmark(tmp_path, [(f"p{number}", "", f"{number}.png") for number in range(1, 6)])
    kept = training_set.checked(one, [(file, None) for file in files], [], excluded=True)
    assert [item.id for item in kept.items] == ["i3", "i4"]
    assert kept.fingerprint["overlapping_items_excluded"] == 3
    overlaps = kept.fingerprint["overlap_with_training"]
    assert [(overlap["file"], overlap["overlapping_items"]) for overlap in overlaps] == [
        ("train.jsonl", 2),
        ("train.jsonl", 1),
    ]
    alone = training_set.checked(one, [(files[0], None)], [], excluded=False)
    assert alone.fingerprint["overlap_with_training"]["overlapping_items"] == 2


def test_overlapping_items_are_excluded_and_the_foot_says_so(tmp_path):
    known = leaks.read_trained(trained(tmp_path, ["p1"]))
    one = benchmark(tmp_path, [("p1", "", "x.png"), ("p2", "", "y.png")])
    noted = leaks.checked(one, known, films="names")
    assert noted.items == one.items and noted.fingerprint["overlap_with_training"]["overlapping_items"] == 1
    kept = leaks.checked(one, known, excluded=True, films="names")
    assert [item.id for item in kept.items] == ["i1"] and kept.notes[0] == "before"
    assert kept.notes[-1] == "1 of 2 items left out because they overlap with the training studies"
    assert kept.fingerprint["overlapping_items_excluded"] == 1
    with pytest.raises(UserError, match="nothing is left to score"):
        leaks.checked(benchmark(tmp_path, [("p1", "", "x.png")]), known, excluded=True, films="names")


def test_the_command_line_takes_names_and_files(tmp_path, capsys):
    path = trained(tmp_path, ["p1", "901"], source="chestx-ray14")
    (tmp_path / "nih").mkdir()
    sets_tree.nih(tmp_path / "nih")
    other = tmp_path / "other"
    other.mkdir()
    test = trained(other, ["p1"], source="chestx-ray14", split="test")
    out = tmp_path / "leaks.json"
    leaks.main([str(path), "chestx-ray14", str(test), "--data-root", str(tmp_path / "nih"), "--out", str(out)])
    printed = capsys.readouterr().out
    assert "same patient: 28 items, 1 shared" in printed and "train.jsonl: 1 items, 1 patients" in printed
    first, second = json.loads(out.read_text())
    assert first["by_level"]["patient"] == {"items": 28, "shared": 1}
    assert second["item_ids"]["patient"] == ["s0"] and second["item_ids"]["film bytes"] == ["s0"]
    leaks.main([str(test), str(path), "--split", "all", "--films", "names"])
    assert "overlap with 1 training studies (train.jsonl)" in capsys.readouterr().out
    with pytest.raises(UserError, match="no study of split train; name"):
        leaks.main([str(test), str(path), "--split", "train"])
    with pytest.raises(UserError, match="--distance 256: from 0 to 255"):
        leaks.main([str(path), str(test), "--distance", "256"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["chestxray14"],
            "chestxray14: neither a file of study records nor a benchmark; .*, or did you mean 'chestx-ray14'",
        ),
        (["none.jsonl"], "none.jsonl: neither a file of study records nor a benchmark; check the path, or use one of "),
        (["train.jsonl", "--cache", "./train.jsonl"], "--cache train.jsonl: is the input file; choose another"),
        (["train.jsonl", "--out", "train.jsonl"], "--out train.jsonl: is the input file; choose another"),
        (["train.jsonl", "--out", "films"], "--out films: is a folder; name a file"),
        (
            ["train.jsonl", "--out", "train.jsonl/x/o.json"],
            "--out train.jsonl/x: .*train.jsonl is not a folder; choose",
        ),
        (["train.jsonl", "--cache", "train.jsonl/h"], "--cache train.jsonl: .*train.jsonl is not a folder; choose"),
    ],
)
def test_what_cannot_be_compared_or_written_is_said_before_films_are_read(tmp_path, monkeypatch, words, message):
    path = trained(tmp_path, ["p1"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(film_hash, "same_bytes", None)
    monkeypatch.setattr(film_hash, "pixel_hashes", None)
    before = path.read_bytes()
    with pytest.raises(UserError, match=f"^{message}"):
        leaks.main([str(path), *words, "--split", "all", "--data-root", "."])
    assert path.read_bytes() == before


def test_pixel_hashes_know_pictures_apart(tmp_path):
    paths = [str(sets_tree.film(tmp_path / f"{i}.png", i, size=(200, 160))) for i in range(30)]
    hashes = film_hash.pixel_hashes(paths)
    assert film_hash.near(hashes, hashes) == {i: (i, 0) for i in range(30)}
    assert film_hash.near(hashes[:15], hashes[15:]) == {}
    shades = tmp_path / "shades.png"
    with Image.open(paths[0]) as image:
        image.point([int(255 * (v / 255) ** 0.8) for v in range(256)]).save(shades)
    ((_, (nearest, bits)),) = film_hash.near([film_hash.pixel_hash(str(shades))], hashes).items()
    assert nearest == 0 and bits <= film_hash.DISTANCE


def test_sixteen_bits_look_like_their_eight_bit_copy(tmp_path):
    eight = sets_tree.film(tmp_path / "8.png", 1, size=(200, 160))
    with Image.open(eight) as image:
        sixteen = image.convert("I").point(lambda v: v * 16)
        sixteen.convert("I;16").save(tmp_path / "16.png")
    one, other = (film_hash.pixel_hash(str(tmp_path / name)) for name in ("8.png", "16.png"))
    assert film_hash.near([one], [other], 2)


def test_the_cache_spares_reading_and_notices_a_changed_film(tmp_path, monkeypatch):
    paths = [str(sets_tree.film(tmp_path / f"{i}.png", i)) for i in range(3)]
    cache = tmp_path / "hashes.jsonl"
    first = film_hash.pixel_hashes(paths, cache=cache)
    read = []
    whole = film_hash.pixel_hash
    monkeypatch.setattr(film_hash, "pixel_hash", lambda path: read.append(path) or whole(path))
    assert film_hash.pixel_hashes(paths, cache=cache) == first and read == []
    sets_tree.film(tmp_path / "1.png", 9, size=(80, 80))
    assert film_hash.pixel_hashes(paths, cache=cache)[1] != first[1] and read == [paths[1]]
    cache.write_text('{"film": "x", "hash": "00"}\n')
    with pytest.raises(UserError, match=":1: not a film hash; name another --cache$"):
        film_hash.pixel_hashes(paths, cache=cache)


def test_a_damaged_film_is_named(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="bad.png: cannot be read as an image"):
        film_hash.pixel_hash(str(tmp_path / "bad.png"))


@pytest.mark.parametrize("name", ["cxr-max-held-out", "mimic-report-findings", "ms-cxr-t-progression"])
def test_benchmarks_of_mimic_films_share_its_ids(tmp_path, name):
    known = leaks.read_trained(trained(tmp_path, ["p1"]))
    found = leaks.find(benchmark(tmp_path, [("p1", "", "x.png")], name), known, films="names")
    assert found["ids_compared"] and found["item_ids"]["patient"] == ["i0"]


def test_what_overlaps_by_study_or_film_alone_goes_too(tmp_path):
    known = leaks.read_trained(trained(tmp_path, ["p1", "p2"], films=["dicom-a.png", "dicom-b.png"]))
    rows = [("p9", "s1", "y.png"), ("p8", "s8", "dicom-b.jpg"), ("p7", "s9", "z.png")]
    kept = leaks.checked(benchmark(tmp_path, rows), known, excluded=True, films="names")
    assert [item.id for item in kept.items] == ["i2"]


def test_patients_belong_to_their_own_source(tmp_path):
    (tmp_path / "b").mkdir()
    one = trained(tmp_path, ["p1"])
    other = trained(tmp_path / "b", ["p2"], source="chestx-ray14")
    both = tmp_path / "both.jsonl"
    both.write_text(one.read_text() + other.read_text().replace('"s0"', '"t0"'))
    known = leaks.read_trained(both)
    found = leaks.find(benchmark(tmp_path, [("p1", "", "x.png"), ("p2", "", "y.png")]), known, films="names")
    assert found["item_ids"]["patient"] == ["i0"]


def test_training_films_are_looked_for_under_their_image_root(tmp_path):
    path = trained(tmp_path, ["p1"], source="elsewhere")
    (tmp_path / "films").rename(tmp_path / "moved")
    (tmp_path / "store").mkdir()
    (tmp_path / "moved").rename(tmp_path / "store" / "films")
    known = leaks.read_trained(path, image_root=tmp_path / "store")
    assert known.films == (str(tmp_path / "store/films/train-0.png"),)


def test_near_films_are_found_across_blocks_and_at_the_very_distance(monkeypatch):
    monkeypatch.setattr(film_hash, "BLOCK", 7)
    hashes = [bytes([n] * 32) for n in range(30)]
    assert film_hash.near(hashes, hashes, 0) == {n: (n, 0) for n in range(30)}
    assert film_hash.near([bytes(32)], [bytes(31) + b"\x07"], 3) == {0: (0, 3)}
    assert film_hash.near([bytes(32)], [bytes(31) + b"\x07"], 2) == {}
