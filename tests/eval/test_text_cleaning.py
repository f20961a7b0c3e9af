"""Every oddity of the two preparations, as the public code behaves."""

import pytest

from eval.text_cleaning import (
    R2GEN_THRESHOLD,
    findings_section,
    findings_text,
    r2gen_answer,
    r2gen_clean,
    r2gen_reference,
    r2gen_vocabulary,
)


@pytest.mark.parametrize(
    ("report", "cleaned"),
    [
        # Sentences are joined by " . ", which are tokens, and end with one.
        ("The lungs are clear. No effusion.", "the lungs are clear . no effusion ."),
        ("Lungs clear", "lungs clear ."),
        ("Lungs clear. \n", "lungs clear ."),
        # The accidental range: hyphens stay, ; < = > ? @ and brackets go.
        ("Follow-up of well-aerated lungs", "follow-up of well-aerated lungs ."),
        ("size - stable", "size - stable ."),
        ("a;b<c=d>e?f@g[h]i{j}k:l", "abcdefghijkl ."),
        ("x$y#z~w|v`u", "x$y#z~w|v`u ."),
        ("50% (left), no!*^&+", "50 left no ."),
        ("\"quoted\" and/or 'this\\that'", "quoted andor thisthat ."),
        # A quote goes before the blanks do, other punctuation after them: the blank behind it stays.
        ('" clear "', "clear ."),
        ("( clear )", " clear  ."),
        # List numbers 1 to 5 only, wherever they stand.
        ("1. Clear. 2. Normal heart. 6. Tube.", "clear . normal heart . 6 . tube ."),
        ("Nodules: 1. right 2. left", "nodules right . left ."),
        ("Views 2. Clear lungs", "views . clear lungs ."),
        ("11. rib", "1rib ."),
        # Full stops inside numbers go.
        ("A 1.5 cm nodule.", "a 15 cm nodule ."),
        # Line breaks become blanks; runs of blanks, underscores and full stops shrink.
        ("Clear\nlungs.", "clear lungs ."),
        ("Clear    lungs...  Normal.", "clear lungs . normal ."),
        ("Seen by ___ at ____.", "seen by  at  ."),
        # An empty sentence stays and leaves two full stops; an empty report is one token.
        ("Clear. . Normal.", "clear .  . normal ."),
        ("", " ."),
        ("  \n ", " ."),
    ],
)
def test_r2gen_cleaning(report, cleaned):
    assert r2gen_clean(report) == cleaned


def test_runs_longer_than_the_passes_are_left_as_the_original_leaves_them():
    # Six passes halve a run of blanks to one up to 64 of them.
    assert r2gen_clean("a" + " " * 64 + "b") == "a b ."
    assert r2gen_clean("a" + " " * 65 + "b") == "a  b ."


def test_reference_is_decoded_from_truncated_ids():
    vocabulary = {"word", "."}
    report = " ".join(["word"] * 120)
    assert r2gen_reference(report, vocabulary).split() == ["word"] * 99  # 100 with the start token
    assert r2gen_reference("word zebra. word", vocabulary) == "word <unk> . word ."
    # Decoding puts one blank between two tokens, so ROUGE-L never meets an empty word.
    assert "  " in r2gen_clean("word. . word")
    assert r2gen_reference("word. . word", vocabulary) == "word . . word ."
    assert r2gen_answer("word. . word") == "word . . word ."


def test_answers_keep_rare_words_and_their_length():
    answer = r2gen_answer("Zebra " * 120)
    assert answer.split() == ["zebra"] * 120 + ["."]


def test_vocabulary_counts_cleaned_tokens_of_training_reports():
    reports = ["Clear, lungs."] * 9 + ["CLEAR"] + ["effusion"] * 10
    assert r2gen_vocabulary(reports) == {"clear", "effusion", "."}  # "lungs" stands 9 times
    assert r2gen_vocabulary(reports, 9) == {"clear", "effusion", "lungs", "."}
    assert R2GEN_THRESHOLD == 10


def test_findings_protocol_changes_white_space_only():
    text = " PA view of  ___.\n Lungs: CLEAR; 1.5 cm\tnodule . \n"
    assert findings_text(text) == "PA view of ___. Lungs: CLEAR; 1.5 cm nodule ."


@pytest.mark.parametrize(
    ("text", "section"),
    [
        ("FINDINGS: Clear. IMPRESSION: Normal.", "Clear."),
        ("EXAM: chest\n FINDINGS:\n Clear.\n\n IMPRESSION: Normal.", "Clear."),
        ("**Findings:** Clear lungs.\n\n**Impression:** Normal.", "Clear lungs."),
        ("## Findings:\n- clear\n\n## Conclusion:\nnormal", "- clear"),
        ("Findings: Clear.", "Clear."),
        # Without a section, or with an empty one, nothing is cut.
        ("Clear. IMPRESSION: Normal.", "Clear. IMPRESSION: Normal."),
        ("FINDINGS: IMPRESSION: Normal.", "FINDINGS: IMPRESSION: Normal."),
        ("The findings: clear lungs.", "The findings: clear lungs."),
        ("FINDINGS: Small effusion; my impression: stable.", "Small effusion; my impression: stable."),
        ("", ""),
    ],
)
def test_findings_section(text, section):
    assert findings_section(text) == section
