"""Report-generation benchmarks: loaders on miniature trees, both protocols scored, options and bad input."""

import gzip
import json
import zipfile

import pytest

from data import mimic_tables
from data.errors import UserError
from eval import clinical, reports, text_metrics
from eval.reports import CONSTANT
from tests.data import mimic_tree
from tests.eval.cases import study

DRAW = {"seed": 0, "resamples": 20}
COCO = text_metrics.COCO
# Frontal and lateral film of one test study, two frontal films of another; a training study.
FILMS = [
    (1, 11999992, 59999994, "LATERAL", "21300101", "120000.0", "test"),
    (2, 11999992, 59999994, "PA", "21300101", "120000.0", "test"),
    (3, 11999992, 59999995, "AP", "21310101", "120000.0", "test"),
    (4, 11999992, 59999995, "PA", "21310101", "120100.0", "test"),
    (5, 12999993, 59999996, "LATERAL", "21310101", "120000.0", "test"),
    (6, 12999993, 59999997, "PA", "21320101", "120000.0", "test"),
    (7, 12999993, 59999998, "PA", "21330101", "120000.0", "test"),
    (8, 10999991, 59999991, "PA", "21500101", "120000.0", "train"),
]
REPORTS = {
    (11999992, 59999994): " FINDINGS:  Lungs are\n CLEAR.\n \n IMPRESSION:  Normal.\n",
    (11999992, 59999995): " FINDINGS:  Left effusion, ___ cm.\n",
    (12999993, 59999996): " FINDINGS:  A lateral film only.\n",
    (12999993, 59999997): " IMPRESSION:  Impression only.\n",
    (10999991, 59999991): " FINDINGS:  Of the training split.\n",
}


@pytest.fixture
def mimic(tmp_path):
    root = mimic_tree.make(tmp_path / "mimic", films=FILMS)
    with zipfile.ZipFile(root / "mimic-cxr-reports.zip", "w") as archive:
        for (subject, number), text in REPORTS.items():
            archive.writestr(f"files/p{str(subject)[:2]}/p{subject}/s{number}.txt", "FINAL REPORT\n" + text)
    return root


@pytest.mark.parametrize(
    "counts", [{"IMAGES": 7}, {"IMAGES": 8, "IN_SPLIT": {"train": (1, 2)}}, {"IMAGES": 8, "IN_SPLIT": {}}, {}]
)
def test_what_is_wrong_with_the_tables_is_mended_by_options_of_the_benchmark(mimic, monkeypatch, counts):
    for name, value in counts.items():
        monkeypatch.setattr(mimic_tables, name, value)
    if not counts:
        (mimic / "mimic-cxr-2.0.0-split.csv.gz").unlink()
    elif counts == {"IMAGES": 8, "IN_SPLIT": {}}:
        table = mimic / "mimic-cxr-2.0.0-metadata.csv.gz"
        rows = gzip.decompress(table.read_bytes())
        table.write_bytes(gzip.compress(rows + rows.splitlines(keepends=True)[-1]))
    remedy = "or say --set partial=yes if" if counts else "with --set tables=DIR$"
    with pytest.raises(UserError, match=remedy):
        load(mimic, "mimic-report-findings")


def image(number, report, split="test", **more):
    row = {
        "id": f"d{number}",
        "report": report,
        "image_path": [f"p10/p1000000{number % 2}/s5000000{number}/d{number}.jpg"],
        "split": split,
    }
    return row | more


@pytest.fixture
def r2gen(tmp_path):
    """annotation.json with ten training reports; in the test part one report is empty, one longer than 99 tokens."""
    train = [image(n, "The lungs are clear. No effusion.", "train") for n in range(10)]
    test = [
        image(1, "The lungs are clear. Rarely a zebra.", subject_id=10000001, study_id=50000001),
        image(2, "clear " * 120),
        image(3, "  "),
    ]
    path = tmp_path / "annotation.json"
    path.write_text(json.dumps({"train": train, "val": [], "test": test}))
    return tmp_path


def load(root, name, **options):
    return reports.load(name, root, options={"meteor": "no", **options})


def answers(*texts):
    return [{"text": text, "finish_reason": "stop"} for text in texts]


def row(scored, name="student"):
    metrics = next(one["metrics"] for one in scored["rows"] if one["name"] == name)
    return {key: cell["value"] for key, cell in metrics.items()}


def test_findings_protocol_takes_every_frontal_film_with_a_findings_section(mimic):
    one = load(mimic, "mimic-report-findings")
    assert [item.id for item in one.items] == [mimic_tree.dicom(n) for n in (2, 4, 3)]
    assert [item.truth["reference"] for item in one.items] == ["Lungs are CLEAR.", *["Left effusion, ___ cm."] * 2]
    assert {item.patient for item in one.items} == {"p11999992"} and one.items[0].study == "s59999994"
    assert one.items[0].images == (str(mimic / mimic_tree.path(2, FILMS)),)
    # Of five test studies: one without findings, one without a report, one with a lateral film alone.
    assert "of 5 test studies 1 have no findings section, 1 no report, and 1 no frontal film" in one.notes[0]
    assert "2,461" in one.notes[1]
    assert one.fingerprint["films"] == 3 and one.fingerprint["without_frontal_film"] == 1
    assert one.protocol["cleaning"] == "findings"
    first = load(mimic, "mimic-report-findings", film="first", prompt="Describe it.")
    assert [item.id for item in first.items] == [mimic_tree.dicom(n) for n in (2, 4)]
    assert first.items[0].prompt == "Describe it."
    assert len(reports.load("mimic-report-findings", mimic, limit=1, options={}).items) == 1


def test_findings_protocol_scores_text_as_written(mimic):
    one = load(mimic, "mimic-report-findings")
    scored = reports.score(
        one, answers("lungs are clear.", "FINDINGS: Left  effusion, ___ cm.\n\nIMPRESSION: x", "left"), **DRAW
    )
    got = row(scored)
    # Words of the answers: 3 + 4 + 1, of which match with case kept: 1 ("are") + 4 + 0; references 3 + 4 + 4.
    assert got[f"{COCO}/BLEU-1"] == pytest.approx(5 / 8 * 2.718281828459045 ** (1 - 11 / 8))
    assert got["length/words of the answer"] == pytest.approx(8 / 3)
    assert "1 of 3 answers name a findings section; only that is scored" in scored["notes"]
    whole = load(mimic, "mimic-report-findings", answer="whole")
    more = row(reports.score(whole, answers("a", "FINDINGS: b IMPRESSION: c", "d"), **DRAW))
    assert more["length/words of the answer"] == 2
    constant = row(scored, "constant normal report")
    assert constant["length/words of the answer"] == len(CONSTANT.split())
    assert [one.get("baseline", False) for one in scored["rows"]] == [False, True]
    assert [item["id"] for item in scored["per_item"]] == [item.id for item in one.items]
    assert len({item["truth"] for item in scored["per_item"]}) == len({item.truth["reference"] for item in one.items})
    assert scored["per_item"][1]["text_metric"][f"{COCO}/ROUGE-L"] == pytest.approx(1)


def test_r2gen_protocol_is_by_image_with_cut_and_unknown_words(r2gen):
    one = load(r2gen, "mimic-report-r2gen")
    assert [item.id for item in one.items] == ["d1", "d2"]
    assert one.items[0].truth["reference"] == "the lungs are clear . <unk> <unk> <unk> ."
    assert one.items[1].truth["reference"] == " ".join(["clear"] * 99)
    assert [item.patient for item in one.items] == ["p10000001", "p10000000"]  # told; from the path
    assert [item.study for item in one.items] == ["s50000001", ""]
    assert one.items[0].images == (str(r2gen / "images/p10/p10000001/s50000001/d1.jpg"),)
    assert one.fingerprint["rows"] == {"test": 3, "val": 0, "train": 10}
    assert one.fingerprint["references_cut"] == 1 and one.fingerprint["unknown_tokens"] == 3
    assert one.fingerprint["vocabulary"] == 7
    assert "1 images without report text were left out" in one.notes
    assert any("3,858" in note for note in one.notes)


def test_r2gen_protocol_cleans_answers(r2gen):
    one = load(r2gen, "mimic-report-r2gen")
    scored = reports.score(one, answers("The LUNGS, are clear. Zebra!", "clear " * 99), **DRAW)
    got = row(scored)
    # "the lungs are clear . zebra ." against a reference of 9 tokens, and 99 of 100 tokens ("clear ... .").
    assert got[f"{COCO}/BLEU-1"] == pytest.approx((6 + 99) / (7 + 100) * 2.718281828459045 ** (1 - 108 / 107))
    assert row(scored)["length/share of empty answers"] == 0
    assert row(reports.score(one, answers("", " "), **DRAW))["length/share of empty answers"] == 1


@pytest.mark.parametrize(
    "train", [[], [image(n, f"word{n}", "train") for n in range(9)], [image(1, " ", "train")] * 10]
)
def test_references_of_nothing_but_unknown_words_are_refused(r2gen, train):
    path = r2gen / "annotation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"train": train}))
    with pytest.raises(UserError, match="annotation.json: no word stands 10 times.*would be <unk>; download it again"):
        load(r2gen, "mimic-report-r2gen")


def test_images_of_r2gen_are_looked_for_in_files_where_that_is(r2gen):
    (r2gen / "files").mkdir()
    item = load(r2gen, "mimic-report-r2gen").items[0]
    assert item.images == (str(r2gen / "files/p10/p10000001/s50000001/d1.jpg"),)
    item = load(r2gen, "mimic-report-r2gen", images="/films").items[0]
    assert item.images == ("/films/p10/p10000001/s50000001/d1.jpg",)


def test_an_image_without_a_patient_counts_as_its_own(r2gen):
    path = r2gen / "annotation.json"
    table = json.loads(path.read_text())
    table["test"] = [image(1, "Clear.") | {"image_path": ["CXR1/0.png", "CXR1/1.png"]}]
    path.write_text(json.dumps(table))
    one = load(r2gen, "mimic-report-r2gen")
    assert one.items[0].patient == "d1" and len(one.items[0].images) == 2
    assert any("1 images name no patient" in note for note in one.notes)


@pytest.fixture
def cohort(make_file):
    normal = "FINDINGS: No pleural effusion. IMPRESSION: No acute abnormality."
    ill = "FINDINGS: Small left pleural effusion. IMPRESSION: Effusion."
    studies = [study(n, {}, split="train") | {"report": normal} for n in range(3)]
    studies += [study(0, {"Pleural Effusion": "left"}) | {"report": ill}, study(1, {}) | {"report": normal}]
    studies.append(study(2, {}))
    return make_file(studies).parent


def test_phantom_by_either_protocol(cohort):
    one = load(cohort, "phantom-reports")
    assert [item.truth["reference"] for item in one.items] == ["Small left pleural effusion.", "No pleural effusion."]
    assert "<image>" in one.items[0].prompt
    assert "1 studies without a report were left out" in one.notes
    scored = reports.score(one, answers("Small left pleural effusion.", "No pleural effusion."), **DRAW)
    assert row(scored)[f"{COCO}/BLEU-1"] == pytest.approx(1)
    two = load(cohort, "phantom-reports", cleaning="r2gen")
    assert [item.truth["reference"] for item in two.items] == [
        "<unk> <unk> pleural effusion .",
        "no pleural effusion .",
    ]
    assert two.protocol["cleaning"] == "r2gen" and two.fingerprint["training_reports"] == 3
    assert row(reports.score(two, answers("no pleural effusion", "No pleural effusion."), **DRAW))[
        f"{COCO}/BLEU-1"
    ] == pytest.approx(7 / 8 * 2.718281828459045 ** (1 - 9 / 8))


def test_a_cohort_without_training_reports_has_no_vocabulary(make_file):
    root = make_file([study(0, {}) | {"report": "FINDINGS: Clear."}]).parent
    assert len(load(root, "phantom-reports").items) == 1
    with pytest.raises(UserError, match="studies.jsonl: no word stands 3 times.*--set cleaning=findings"):
        load(root, "phantom-reports", cleaning="r2gen")


def test_meteor_is_named_where_it_is_left_out(cohort, monkeypatch):
    given = answers("Clear.", "Clear.")
    scored = reports.score(load(cohort, "phantom-reports"), given, **DRAW)
    assert "METEOR left out (meteor=no)" in scored["notes"]
    monkeypatch.setattr(text_metrics, "have_java", lambda: False)
    scored = reports.score(load(cohort, "phantom-reports", meteor="auto"), given, **DRAW)
    assert "METEOR not computed: it needs Java, none is on PATH" in scored["notes"]
    assert f"{COCO}/METEOR" not in row(scored)
    with pytest.raises(UserError, match="no java is on PATH"):
        load(cohort, "phantom-reports", meteor="yes")


def test_clinical_metrics_only_when_asked_for(cohort, monkeypatch, tmp_path):
    seen = []

    def fake(metrics, references, said, patients, *, seed, resamples):
        seen.append((metrics, references, said, patients))
        cell = {"value": 0.5, "n": 2, "low": 0.4, "high": 0.6, "skipped_resamples": 0}
        return {"GREEN/mean": cell}, ["by a fake"]

    monkeypatch.setattr(clinical, "score", fake)
    given = answers("FINDINGS: A  small effusion.", "Clear.")
    reports.score(load(cohort, "phantom-reports"), given, **DRAW)
    assert not seen
    monkeypatch.setenv("RADEVAL_VENV", str(tmp_path / "none"))
    with pytest.raises(UserError, match="bash scripts/radeval.sh"):
        load(cohort, "phantom-reports", clinical="green")
    monkeypatch.setattr(clinical, "environment_python", lambda: None)
    scored = reports.score(load(cohort, "phantom-reports", clinical="green", cleaning="r2gen"), given, **DRAW)
    # The texts as written, not R2Gen's.
    references = ["Small left pleural effusion.", "No pleural effusion."]
    assert seen == [(["green"], references, ["A small effusion.", "Clear."], ["test-patient-0"] * 2)]
    assert row(scored)["GREEN/mean"] == 0.5 and "by a fake" in scored["notes"]
    assert "GREEN/mean" not in row(scored, "constant normal report")


def test_one_text_says_why_its_cider_is_0(cohort):
    one = reports.load("phantom-reports", cohort, limit=1, options={"meteor": "no"})
    scored = reports.score(one, answers("Small left pleural effusion."), **DRAW)
    assert row(scored)[f"{COCO}/CIDEr"] == 0
    assert "CIDEr of a single text is 0 by its definition" in scored["notes"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("[]", "is no object of the lists train, val and test"),
        ('{"train": [], "val": []}', "is no object of the lists"),
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        (
            '{"train": [], "val": [], "test": [{"id": "a", "report": "x"}]}',
            r"test\[0\]: needs the strings id and report",
        ),
        ('{"train": [{"id": 3, "report": "x", "image_path": ["a"]}], "val": [], "test": []}', r"train\[0\]: needs"),
        ('{"train": [], "val": [], "test": [{"id": "a", "report": "x", "image_path": "a.jpg"}]}', "a list image_path"),
    ],
)
def test_damaged_annotation_is_refused(tmp_path, table, message):
    (tmp_path / "annotation.json").write_text(table)
    with pytest.raises(UserError, match=message):
        load(tmp_path, "mimic-report-r2gen")


def test_missing_tables_and_options_name_the_remedy(tmp_path, mimic, cohort):
    with pytest.raises(UserError, match="no annotation.json; get R2Gen's.*--set annotation=FILE"):
        load(tmp_path / "none", "mimic-report-r2gen")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        load(tmp_path, "mimic-report-r2gen", annotation=str(tmp_path / "other.json"))
    (mimic / "mimic-cxr-reports.zip").unlink()
    with pytest.raises(UserError, match="holds no mimic-cxr-reports.zip.*--set reports=FILE"):
        load(mimic, "mimic-report-findings")
    with pytest.raises(UserError, match="no such option; did you mean 'cleaning'"):
        load(cohort, "phantom-reports", cleanin="r2gen")
    with pytest.raises(UserError, match="did you mean 'findings'"):
        load(cohort, "phantom-reports", cleaning="finding")
