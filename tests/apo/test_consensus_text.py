"""The text of a consensus: what it says, in which order, in whose words."""

import pytest

from apo.consensus import STRATEGIES, dawid_skene, vote
from data.findings import read_findings, summarise
from data.findings_lexicon import FIVE
from tests.apo.voices import cohort, said, study


@pytest.mark.parametrize("compose", ["plain", "quote"])
@pytest.mark.parametrize("name", ["vote", "dawid_skene"])
def test_text_says_the_decisions_and_nothing_else(name, compose):
    studies, _ = cohort(2, n=80)
    for result in STRATEGIES[name](studies, compose=compose):
        decided = {k: (v["state"], v["side"]) for k, v in result["audit"]["findings"].items() if v["stated"]}
        assert said(result) == decided
        for start, end, label, _ in result["audit"]["consensus_spans"]:
            alone = summarise(read_findings(result["text"][start:end]))
            assert alone[label] == decided[label]


def test_labels_stand_in_fixed_order():
    text = (
        "Cardiomegaly. Left pneumothorax. No edema. Right consolidation. No effusion. No pneumonia. Left atelectasis."
    )
    (result,) = dawid_skene([study([text, text])])
    assert result["text"] == (
        "Right consolidation. No pleural effusion. No pneumonia. Left pneumothorax. No pulmonary edema. "
        "Left atelectasis. Cardiomegaly."
    )
    assert FIVE == ("Consolidation", "Pleural Effusion", "Pneumonia", "Pneumothorax", "Edema")


def test_plain_form_does_not_depend_on_who_said_it():
    words = ["Left effusion.", "- **Left-sided** pleural effusion is noted", "On the left there is a pleural effusion."]
    texts = {vote([study([w])])[0]["text"] for w in words}
    assert texts == {"Left pleural effusion."}


def test_quotes_are_the_teachers_sentences():
    texts = ["There is a small left effusion.", "* **No effusion** on this film", "Small effusion on the left side."]
    (result,) = vote([study(texts)], compose="quote")
    assert result["text"] in (texts[0], texts[2])
    assert result["audit"]["findings"]["Pleural Effusion"]["source"] in ("alpha", "gamma")


def test_a_sentence_against_the_decisions_is_never_quoted():
    texts = [
        "Left effusion with right pneumothorax.",
        "Effusion is present on the left.",
        "No pneumothorax. Left effusion.",
    ]
    (result,) = vote([study(texts)], compose="quote")
    assert "right pneumothorax" not in result["text"]
    assert said(result) == {"Pleural Effusion": ("present", "left"), "Pneumothorax": ("absent", None)}


def test_template_stands_in_and_is_marked():
    text = "**Pleural effusion:**\n- Blunted on the left."  # the bullet alone does not name the finding
    (result,) = vote([study([text])], compose="quote")
    assert result["text"] == "Left pleural effusion."
    assert result["audit"]["findings"]["Pleural Effusion"]["source"] == "template"


def test_quote_keeps_markup_and_special_tokens_out():
    texts = ["✔ **Effusion** on the left <image> seen.", "- *Left* effusion,\n  which is  small"]
    (result,) = vote([study(texts)], compose="quote")
    assert result["text"] == "Left effusion, which is small."


def test_unknown_compose_is_refused():
    with pytest.raises(ValueError, match="plain or quote"):
        vote([study(["Left effusion."])], compose="pretty")


def test_only_the_five_are_denied_in_the_text():
    (result,) = vote([study(["No edema. No fracture."] * 2)])
    assert result["text"] == "No pulmonary edema."
    assert result["audit"]["findings"]["Fracture"]["state"] == "absent"


@pytest.mark.parametrize("strategy", [vote, dawid_skene])
def test_quotes_come_from_the_most_reliable_teacher_and_shortest_first(strategy):
    # "alpha" is alone against three on all other films; on the last one all agree, each in words of its own.
    films = [study(["No effusion. Edema."] + ["Left effusion. No edema."] * 3, name=f"s{n}") for n in range(12)]
    last = ["Effusion on the left.", "There is a left effusion. Left effusion.", "A left effusion.", "Left fluid."]
    result = strategy([*films, study(last, name="last")], compose="quote")[-1]
    assert result["text"] == "Left effusion." and result["audit"]["findings"]["Pleural Effusion"]["source"] == "beta-2"


def test_a_sentence_with_a_side_against_the_decisions_is_never_quoted():
    texts = [
        "Left effusion with right pneumothorax.",
        "No effusion. Left pneumothorax.",
        "Left pneumothorax. Effusion on the left.",
    ]
    (result,) = vote([study(texts)], compose="quote")
    assert said(result) == {"Pleural Effusion": ("present", "left"), "Pneumothorax": ("present", "left")}
    assert "right" not in result["text"]
