"""The findings reader: forms of radiology text, spans, refusals, and the published case."""

import json
from pathlib import Path

import pytest

from data import findings, findings_states
from data.findings import is_refusal, read_findings, summarise
from data.findings_lexicon import LABELS
from data.findings_score import TUNED, UNSEEN, read_labelled
from data.findings_sentence import read_sentence
from data.findings_text import normalise

CASE = Path(__file__).parents[3] / "shared/data/cxr_max_case/trajectories.jsonl"
SENTENCES = [row for path in TUNED for row in read_labelled(path)]
OTHERS = [row for path in UNSEEN for row in read_labelled(path)]

# A refusal of the kind that real collections hold: status "stop", textbook text, words like "may appear as an opacity".
REFUSAL = (
    "As an AI, I'm not able to give diagnoses or to read medical images like a trained professional. I can offer some "
    "general information, though.\n\nAtelectasis is a condition where a part of the lung collapses. On an X-ray, this "
    "might appear as an area of increased opacity.\n\nPleural effusion refers to fluid in the pleural space. It may "
    "appear as a layering density at the lung base or costophrenic angle."
)


def read(text):
    return summarise(read_findings(text))


@pytest.mark.parametrize("line, text, want", SENTENCES, ids=[f"line{n}" for n, _, _ in SENTENCES])
def test_labelled_sentence(line, text, want):
    assert read(text) == want


@pytest.mark.parametrize(
    "text",
    [
        "I'm unable to analyze this X-ray for consolidation, pleural effusion, pneumonia, pneumothorax, or edema.",
        "I'm sorry, but I can't help with diagnosing pneumonia from this image.",
        "As an AI I cannot interpret chest X-rays for pneumonia; please consult a radiologist.",
        "I am not able to provide a diagnosis of pneumonia, edema or effusion from this film.",
    ],
)
def test_what_one_declines_to_look_for_is_no_claim(text):
    assert not read_findings(text) and is_refusal(text)


def test_declining_one_thing_leaves_what_is_said():
    assert read("I can't provide a diagnosis, but there is a left pleural effusion.") == {
        "Pleural Effusion": ("present", "left")
    }
    assert read("The film shows edema and I cannot assess the apices for pneumothorax.") == {"Edema": ("present", None)}
    for text in (
        "While I cannot provide a definitive diagnosis, the image shows edema.",
        "Although I am not able to provide a medical diagnosis, this chest X-ray shows edema.",
        "I can't provide a diagnosis, the film shows edema.",
        "I cannot give a diagnosis from one film: there is edema.",
        "I cannot evaluate the apices and there is edema.",
        "Without a lateral view I cannot fully assess the retrocardiac region, where there is edema.",
        "I can't help noticing edema.",
    ):
        assert read(text) == {"Edema": ("present", None)} and not is_refusal(text), text
    assert read("I cannot identify a pneumothorax. We can't exclude pneumonia.") == {
        "Pneumothorax": ("absent", None),
        "Pneumonia": ("uncertain", None),
    }


@pytest.mark.parametrize("end", ["\r\n", "\r", "\u2028", "\x85"])
def test_how_a_line_ends_changes_nothing(end):
    several = [text for _, text, _ in SENTENCES + OTHERS if "\n" in text]
    assert len(several) > 50
    for text in several:
        assert read(text.replace("\n", end)) == read(text), text


def test_full_width_punctuation_is_that_of_ascii():
    assert read("Edema：no\nPneumothorax： absent（none seen）") == {
        "Edema": ("absent", None),
        "Pneumothorax": ("absent", None),
    }
    text = "Left effusion， small。 No edema！"
    claims = read_findings(text)
    assert [(c.label, c.state, text[c.start : c.end]) for c in claims] == [
        ("Pleural Effusion", "present", "Left effusion， small。"),
        ("Edema", "absent", "No edema！"),
    ]


def test_there_are_enough_sentences_of_every_label():
    assert len(SENTENCES) >= 150
    for label in LABELS:
        assert any(label in want for _, _, want in SENTENCES), label
    states = {state for _, _, want in SENTENCES for state, _ in want.values()}
    sides = {side for _, _, want in SENTENCES for _, side in want.values()}
    assert states == {"present", "absent", "uncertain"} and sides == {None, "left", "right", "bilateral"}


@pytest.mark.parametrize("text", ["The heart is enlarged, more on the left.", "Right-sided cardiomegaly."])
def test_the_heart_has_no_side(text):
    assert read(text) == {"Cardiomegaly": ("present", None)}


@pytest.mark.parametrize("text", [t for _, t, _ in SENTENCES + OTHERS] + [REFUSAL])
def test_needles_lose_nothing(text, monkeypatch):
    def everything(rules):
        return rules[0], [("", (1 << len(rules[0])) - 1)]

    fast = read_findings(text)
    read_sentence.cache_clear()
    monkeypatch.setattr(findings_states, "_LEXICON", everything(findings_states._LEXICON))
    monkeypatch.setattr(findings_states, "_TRIGGERS", everything(findings_states._TRIGGERS))
    slow = read_findings(text)
    read_sentence.cache_clear()
    assert fast == slow


def test_span_is_the_sentence_in_the_original_text():
    text = "**Findings:**\n- No **pneumothorax** is seen. Small left “effusion”… Heart normal."
    spans = {c.label: text[c.start : c.end] for c in read_findings(text)}
    assert spans["Pneumothorax"] == "No **pneumothorax** is seen."
    assert spans["Pleural Effusion"] == "Small left “effusion”…"


def test_spans_lie_within_any_text():
    texts = [text for _, text, _ in SENTENCES + OTHERS]
    for text in [*texts, "\n\n".join(texts), "İ small left effusion. İİ No edema."]:
        for claim in read_findings(text):
            assert 0 <= claim.start < claim.end <= len(text)
            assert text[claim.start : claim.end].strip() == text[claim.start : claim.end]


def test_lower_case_of_other_lengths_keeps_offsets():
    text = "İİİ. Small left effusion."
    (claim,) = read_findings(text)
    assert text[claim.start : claim.end] == "Small left effusion."


def test_heading_is_not_inherited_past_its_block():
    text = "**Pleural Effusion:**\n- Blunted on the left.\n\nThe right lung shows increased density."
    assert read(text) == {"Pleural Effusion": ("present", "left"), "Lung Opacity": ("present", "right")}


def test_same_text_same_claims_whatever_came_before():
    text = "Small left effusion. No edema."
    before = read_findings(text)
    read_findings("No effusion. Right edema.")
    assert read_findings(text) == before


@pytest.mark.parametrize("text", ["", " \n", "**", ":", "- \n- ", "1.", "🫁", "no", "a" * 5000, "left " * 500])
def test_odd_text_makes_no_claim(text):
    assert read_findings(text) == [] and not is_refusal(text)


def test_summary_prefers_present_and_joins_sides():
    assert read("No left effusion. Small right effusion.")["Pleural Effusion"] == ("present", "right")
    assert read("Left effusion. Right effusion.")["Pleural Effusion"] == ("present", "bilateral")
    assert read("Possible effusion. No effusion.")["Pleural Effusion"] == ("uncertain", None)


REFUSALS = [
    line.split("\t")
    for line in (Path(__file__).parent / "refusals.tsv").read_text("utf-8").splitlines()
    if not line.startswith("#")
]


@pytest.mark.parametrize(("kind", "text"), REFUSALS)
def test_what_declines_is_a_refusal_and_no_reading_is(kind, text):
    assert is_refusal(text) == (kind == "refusal")


def test_needles_of_refusals_miss_none():
    texts = [normalise(text) for _, text in [*REFUSALS, *((None, text) for _, text, _ in SENTENCES + OTHERS)]]
    for needles, cue in findings._REFUSAL:
        found = [text for text in texts if cue.search(text)]
        assert all(any(one in text for one in needles) for text in found) and found, needles


def test_refusal_makes_no_claim():
    assert is_refusal(REFUSAL) and read_findings(REFUSAL) == []


@pytest.mark.parametrize(
    "text",
    [
        "As an AI I cannot replace a radiologist. The left costophrenic angle is blunted.",
        "I'm sorry that the image is dim. No pneumothorax.",
        "Small left effusion.",
        "The image cannot be seen well.",
    ],
)
def test_a_disclaimer_or_a_poor_image_is_no_refusal(text):
    assert not is_refusal(text)


def test_published_case():
    if not CASE.exists():
        pytest.skip(f"the published case is not here ({CASE.name} in shared data): its reading was NOT checked")
    rows = [json.loads(line) for line in CASE.read_text(encoding="utf-8").splitlines()]
    texts = {row["teacher"]: row["trajectory"] for row in rows}
    sides = {}
    for teacher, text in texts.items():
        got = read(text)
        sides[teacher] = tuple(got[k][1] if k in got else None for k in ("Atelectasis", "Pleural Effusion"))
        assert all(state == "present" for k, (state, _) in got.items() if k in ("Atelectasis", "Pleural Effusion"))
    assert sides == {
        "Claude Sonnet-4": ("right", "right"),
        "Gemini-2.5-flash-lite": ("right", "right"),
        "Grok-4": ("right", "right"),
        "GLM-4.5V": ("right", "right"),
        "GPT-5-nano": ("left", "left"),
        "Qwen-VL-Max": ("left", "left"),
        "Moonshot-v1": (None, None),
    }
    assert is_refusal(texts["Moonshot-v1"]) and read_findings(texts["Moonshot-v1"]) == []
    assert not any(is_refusal(text) for teacher, text in texts.items() if teacher != "Moonshot-v1")
    # Right only in part: its general sentence on blunted angles is no claim, and some of its claims have no side.
    glm = [c for c in read_findings(texts["GLM-4.5V"])]
    assert {c.side for c in glm} == {"right", None}
    assert not any("is identified by" in texts["GLM-4.5V"][c.start : c.end] for c in glm)


def test_a_recommendation_drops_only_what_follows_it():
    assert read("Left effusion, follow-up for pneumonia.") == {"Pleural Effusion": ("present", "left")}
    assert read("Follow-up for pneumonia.") == {}
