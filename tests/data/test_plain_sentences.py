import pytest

from data.findings import read_findings, summarise
from data.findings_lexicon import LABELS, SIDELESS
from data.plain_sentences import plain_sentence


@pytest.mark.parametrize("label", LABELS)
def test_plain_sentences_are_read_back(label):
    for state in ("present", "absent", "uncertain"):
        for side in (None, "left", "right", "bilateral"):
            if (label in SIDELESS and side) or (state == "absent" and (side or label == "No Finding")):
                continue
            assert summarise(read_findings(plain_sentence(label, state, side))) == {label: (state, side)}
