"""The words the findings reader knows: labels, findings, negation, hedging, sides.

Everything is matched against *normalised* text (lower case, Markdown marks blanked, dashes and quotes in ASCII), see
`data.findings_text`. An entry of LEXICON is (labels, polarity, name, needles, pattern):

- polarity +1: the phrase asserts the labels ("pleural effusion"); -1: it asserts their absence ("lungs are clear");
  0: it leaves them open ("heart size at the upper limits of normal").
- name: the phrase is the finding's own name, so it may stand as a heading; a sign ("meniscus sign") may not.
- needles: plain substrings, by |, one of which every match contains: a sentence without them never meets the pattern,
  which is what makes the reader fast (a test reads everything with and without them).
- labels (): a phrase that must NOT be read as the label it resembles ("pericardial effusion").

Order matters: at one position the first alternative that matches wins. Term lists follow the scope of the CheXpert
labeler (Irvin et al. 2019, arXiv 1901.07031), e.g. collapse counts as atelectasis, heart failure and vascular
congestion as edema, infection as pneumonia.
"""

from __future__ import annotations

LABELS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "Pleural Effusion",
    "Pneumonia",
    "Pneumothorax",
    "Pleural Other",
    "Support Devices",
    "No Finding",
)
FIVE = ("Consolidation", "Pleural Effusion", "Pneumonia", "Pneumothorax", "Edema")  # the five of MS-CXR-T
ORDER = (*FIVE, *(label for label in LABELS if label not in FIVE))  # as text and audit of a consensus list them
SIDELESS = frozenset({"Cardiomegaly", "Enlarged Cardiomediastinum", "No Finding"})  # one per chest
WEAK = frozenset({"Lung Opacity"})  # a sign of others: under a heading it does not displace the heading's label
OPAQUE = frozenset({"Consolidation", "Pneumonia"})  # without an opacity there is none

_CP = r"costo-?phrenic(?: (?:angles?|sulcus|sulci|recess(?:es)?|sinus(?:es)?|sulcal angles?))?"
_NORMAL = (
    r"(?:normal|unremarkable|stable and normal|within (?:the )?normal (?:limits|range)|"
    r"not (?:enlarged|dilated|widened|engorged|congested)|"
    r"un?enlarged|intact)"
)
_BE = (
    r"(?::| -| is| are| was| were| appears?| remains?| looks?|,)?(?: also| both| otherwise|"
    r" relatively| grossly| essentially| again)*"
)
_HEART = r"(?:heart(?: size| shadow| silhouette)?|cardiac (?:size|silhouette|shadow|contours?))"
_MEDIASTINUM = r"(?:mediastin(?:um|al (?:contours?|silhouettes?|structures?|width|borders?))|hilar contours?)"
_CARDIOMEDIASTINAL = (
    r"(?:cardio-?mediastinal (?:silhouettes?|contours?|size)|cardiac and mediastinal (?:silhouettes?|"
    r"contours?))"
)
_BONES = (
    r"(?:osseous|bony|skeletal)(?: and soft tissue)? (?:structures?|thorax|abnormalit(?:y|ies)|"
    r"elements?|lesions?)"
)

LEXICON: tuple[tuple[tuple[str, ...], int, bool, str, str], ...] = (
    # Look-alikes that are none of the labels.
    ((), 1, False, "pericardial", r"pericardial (?:effusion|fluid)"),
    (
        (),
        1,
        False,
        "edema|emphysema",
        r"(?:soft[- ]tissue|subcutaneous|peripheral|ankle|laryngeal|cerebral) (?:edema|oedema|"
        r"emphysema)",
    ),
    ((), 1, False, "pneumomed|pneumoper", r"pneumo(?:mediastinum|peritoneum)"),
    ((), 1, False, "collaps|mass effect", r"collapsed position|(?:cardiovascular|circulatory) collapse|mass effect"),
    # Pleura.
    (("Pleural Effusion", "Pneumothorax"), 1, True, "hydro", r"hydro-?pneumothora(?:x|ces)"),
    (("Pneumothorax",), 1, True, "pneumothora|ptx", r"pneumothora(?:x|xes|ces)|\bptx"),
    (
        ("Pneumothorax",),
        1,
        False,
        "pleural line|deep sulcus|pleural air|air in the",
        r"(?:visceral )?pleural line|deep sulcus(?: sign)?|pleural air|air in the pleural space",
    ),
    (
        ("Pneumothorax",),
        1,
        False,
        "marking",
        r"(?:absence|absent|loss|lack) of (?:peripheral |normal )?(?:lung|vascular|"
        r"pulmonary) markings? (?:peripheral|at the|beyond|lateral)",
    ),
    (
        ("Pleural Effusion",),
        1,
        True,
        "effusion",
        r"(?:sub|para)-?pneumonic (?:pleural )?effusions?|pleural effusions?|effusions?",
    ),
    (
        ("Pleural Effusion",),
        1,
        True,
        "hemothora|haemo|empyema|hydrothorax|chylo",
        r"hemothora(?:x|ces)|haemothorax|empyema|hydrothorax|chylothorax",
    ),
    (
        ("Pleural Effusion",),
        1,
        False,
        "fluid",
        r"(?:(?:layering|free|pleural|loculated|accumulated) )+(?:pleural )?fluid(?: collections?)?|"
        r"fluid (?:in|within) the (?:left |right )?pleural (?:space|cavity)|"
        rf"fluid (?:in|within) (?:the |both |either )?(?:left |right )?{_CP}|"
        r"fluid accumulation|layering of fluid|fluid in the (?:minor |major |horizontal )?fissures?",
    ),
    (("Pleural Effusion",), 1, False, "menisc", r"menisc(?:us|al)(?:-like)?(?: sign| shape| contour)?"),
    (
        ("Pleural Effusion",),
        1,
        False,
        "phrenic",
        r"(?:blunt\w*|obliterat\w*|obscur\w*|filling(?:-in| in)?|loss|effacement)(?: or (?:blunting|"
        r"filling-in))?(?: of)?(?: (?:both|the|left|right|bilateral|lateral|posterior|sharp))*"
        rf" {_CP}|{_CP} blunting",
    ),
    (
        ("Pleural Effusion",),
        -1,
        False,
        "phrenic",
        rf"{_CP}{_BE}(?: bilaterally)?(?: (?:well|clearly|still|seen|as|to|be|deep|and|free))* ?(?:sharp\w*|"
        rf"clear(?:ly)?|preserved|maintained|unremarkable|normal|well[- ]defined|open|not (?:blunted|"
        rf"obscured|obliterated))",
    ),
    (
        ("Pleural Effusion",),
        -1,
        False,
        "phrenic",
        rf"(?:sharp|clear|preserved|normal|well[- ]defined)(?: and clear)?(?: (?:left|right|bilateral|"
        rf"both))* {_CP}",
    ),
    (
        ("Pleural Effusion",),
        1,
        False,
        "phrenic",
        rf"{_CP}{_BE}(?: (?:the|on|left|right|side|mildly|slightly|completely|partially|partly|has|"
        rf"have|been|becomes?|and|minimally))*"
        r" (?:blunt\w*|obscured|obliterated|blurred|indistinct|lost|effaced|not (?:sharp|clear|seen|"
        r"visible|visualized|well seen)|opacified)",
    ),
    (
        ("Pleural Effusion", "Pneumothorax"),
        1,
        False,
        "pleural abnorm|pleural dis",
        r"(?<=no )pleural (?:abnormalit(?:y|ies)|disease)",
    ),
    (
        ("Pleural Other",),
        1,
        True,
        "pleural|fibrothorax|apical cap",
        r"pleural (?:thickening|plaques?|calcifications?|scarring|fibrosis|mass(?:es)?)|fibrothorax|"
        r"(?:apical|pleural) caps?",
    ),
    (
        ("Pleural Effusion", "Pneumothorax"),
        -1,
        False,
        "pleura",
        rf"pleural (?:spaces?|surfaces?|cavit(?:y|ies)){_BE} (?:clear|{_NORMAL})|pleura{_BE} (?:clear|{_NORMAL})",
    ),
    # Heart and mediastinum.
    (
        ("Cardiomegaly", "Enlarged Cardiomediastinum"),
        -1,
        False,
        "mediastin|cardiac and",
        rf"{_CARDIOMEDIASTINAL}{_BE} (?:size )?{_NORMAL}|normal {_CARDIOMEDIASTINAL}",
    ),
    (
        ("Cardiomegaly", "Enlarged Cardiomediastinum"),
        -1,
        False,
        "mediastin|hilar",
        rf"(?:heart|cardiac)(?: size| silhouette| contours?| shadow)?(?: and|/|"
        rf", ){{1}} ?(?:the )?{_MEDIASTINUM}(?: and (?:pulmonary )?hil\w+)?{_BE} {_NORMAL}",
    ),
    (
        ("Cardiomegaly",),
        -1,
        False,
        "heart|cardiac|cardiothoracic",
        rf"{_HEART}{_BE} (?:in size and (?:shape|contour) )?(?:of )?{_NORMAL}|normal(?:-sized| in size|"
        rf"-size)? (?:sized )?{_HEART}|{_HEART}(?: is)? normal|"
        r"cardiothoracic ratio (?:is |of )?(?:within normal|normal|less than|below|under|<)",
    ),
    (
        ("Cardiomegaly",),
        1,
        True,
        "cardiomegaly|cardiac enl|enlargement",
        r"cardiomegaly|cardiac enlargement|enlargement of the (?:heart|cardiac silhouette)",
    ),
    (
        ("Cardiomegaly",),
        1,
        False,
        "heart|cardiac|cardiothoracic",
        rf"(?:enlarged|prominent|increased|big|large) {_HEART}|{_HEART}{_BE}(?: (?:mildly|moderately|"
        rf"markedly|severely|slightly|massively|again|not|the|borderline|stable|and|minimally|stably|"
        rf"quite|very))*"
        r" (?:enlarge[d]?|increased|prominent|dilated|big|wide(?:ned)?|broad(?:ened)?)|(?:increased|enlarged|"
        r"elevated) cardiothoracic ratio|cardiothoracic ratio (?:is )?(?:increased|enlarged|"
        r"greater than|above|exceeds|over|>)",
    ),
    (
        ("Cardiomegaly",),
        0,
        False,
        "heart|cardiac",
        rf"{_HEART}{_BE}(?: at)?(?: the)? (?:borderline|upper limits? of normal|"
        rf"top[- ]normal)(?: enlarged| in size)?|borderline (?:enlarged )?{_HEART}(?: enlargement)?",
    ),
    (
        ("Enlarged Cardiomediastinum",),
        -1,
        False,
        "mediastin|hilar",
        rf"{_MEDIASTINUM}(?: (?:and|,) (?:pulmonary )?hil\w+(?: contours?|"
        rf" structures)?)?{_BE} (?:of )?{_NORMAL}|normal {_MEDIASTINUM}",
    ),
    (
        ("Enlarged Cardiomediastinum",),
        1,
        True,
        "mediastin",
        rf"enlarged cardio-?mediastinum|mediastinal (?:widening|enlargement)|(?:widened|wide|enlarged|"
        rf"prominent) (?:(?:upper|superior) )?(?:{_MEDIASTINUM}|{_CARDIOMEDIASTINAL})|"
        rf"(?:widening|enlargement) of the (?:{_MEDIASTINUM}|{_CARDIOMEDIASTINAL})|"
        rf"(?:{_MEDIASTINUM}|{_CARDIOMEDIASTINAL}){_BE}(?: "
        rf"(?:mildly|moderately|slightly|markedly|not))* (?:widened|enlarged|wide)",
    ),
    # Lungs.
    (
        ("Lung Opacity", "Consolidation"),
        -1,
        False,
        "clear",
        rf"(?:lungs?|lung (?:fields?|zones?|parenchyma|bases?)|lung apices|"
        rf"air ?spaces?){_BE}(?: (?:(?:well|fully|hyper)[- ]?)?(?:expanded|inflated|aerated) (?:and|"
        rf"but))?(?: otherwise)? clear(?! of| from)(?:ly)?",
    ),
    (
        ("Lung Opacity", "Consolidation"),
        -1,
        False,
        "clear",
        r"clear (?:and (?:well[- ]\w+ )?)?(?:left |right |bilateral )?lungs?(?: fields?| bases?)?",
    ),
    (
        ("Edema",),
        -1,
        False,
        "vascula",
        rf"pulmonary vasculature{_BE} {_NORMAL}|(?:pulmonary )?vascular(?:ity|"
        rf" markings?){_BE} {_NORMAL}|normal pulmonary vascula\w+",
    ),
    (
        ("Consolidation",),
        1,
        True,
        "consolidat|bronchogram",
        r"consolidat(?:ions?|ive|ed)(?: (?:opacit(?:y|ies)|changes?|process(?:es)?))?|"
        r"air[- ]bronchograms?",
    ),
    (
        ("Edema",),
        1,
        True,
        "edema|congestion|venous|vascular|failure|chf|overload",
        r"(?:(?:pulmonary|interstitial|alveolar|lung|vascular) )*(?:edema|oedema)|"
        r"(?:pulmonary )?(?:vascular|venous) (?:congestion|engorgement|redistribution|prominence|"
        r"cephali[sz]ation)|"
        r"pulmonary congestion|(?:congestive )?(?:heart|cardiac) failure|\bchf|fluid overload|volume overload",
    ),
    (
        ("Edema",),
        1,
        False,
        "kerley|cephali|bat|septal|cuffing|perihilar|engorged|congested|prominent",
        r"kerley(?:[ -]?b)?(?: lines?)?|cephali[sz]ation|bat[- ]?wing\w*|septal (?:lines?|thickening)|"
        r"peribronchial cuffing|perihilar haziness|(?:engorged|prominent) (?:pulmonary )?(?:vessels|"
        rf"vasculature)|pulmonary vasculature{_BE}(?: (?:mildly|moderately|slightly|markedly))* (?:engorged|congested)",
    ),
    (
        ("Pneumonia",),
        1,
        True,
        "pneumoni|infecti",
        r"(?:broncho|lobar |multifocal |aspiration )?pneumoni(?:a|as|c(?! effusion))|pneumonitis|"
        r"(?:pulmonary |lung |acute )?infecti(?:ons?|ous (?:process|etiology|infiltrate|disease|"
        r"focus))",
    ),
    (
        ("Atelectasis",),
        1,
        True,
        "atelecta|collapse",
        r"(?:sub-?segmental|plate-?like|discoid|linear|compressive|passive|basilar|"
        r"bibasilar)?[ /]?atelecta(?:sis|ses|tic)(?: (?:changes?|bands?|opacit(?:y|ies)|streaks?))?|"
        r"(?:lung |lobar |lobe )?collapsed?(?: of the| lung| lobe| tissue)?",
    ),
    (
        ("Atelectasis",),
        1,
        False,
        "volume",
        r"volume loss|loss of (?:lung )?volume|(?:decreased|reduced|diminished) (?:left |"
        r"right )?(?:lung |hemithorax )?volume|low lung volume(?=\b(?!s))",
    ),
    (
        ("Lung Lesion",),
        1,
        True,
        "nodul|mass|tumo|neoplasm|malignan|lesion|cavit|metasta",
        r"(?:(?:pulmonary|lung) )?(?:nodul(?:es?|arit(?:y|ies)|ar (?:opacit(?:y|ies)|densit(?:y|"
        r"ies)))|mass(?:es)?|tumou?rs?|neoplasms?|malignan\w+|lesions?|cavit(?:y|ies|ary lesions?|"
        r"ation)|metastas[ei]s)",
    ),
    (
        ("Lung Opacity",),
        1,
        True,
        "opaci|infiltrat|space disease|spacedisease|haziness|ground",
        r"(?:(?:lung|pulmonary|airspace|air-space|air space|parenchymal|focal|patchy|hazy|basilar|"
        r"ground[- ]glass|interstitial|reticular|streaky) )*(?:opacit(?:y|ies)|opacifications?)|"
        r"infiltrat(?:es?|ions?)|air-?space disease|haziness|ground[- ]glass",
    ),
    (
        ("Lung Opacity",),
        1,
        False,
        "densit|opacified|white|shadowing",
        r"(?:increased|abnormal|added|hazy|homogeneous|patchy) (?:lung )?densit(?:y|ies)|opacified|"
        r"(?:air-?space|alveolar|interstitial|reticular|patchy|hazy|focal|diffuse|ill-defined|lung) shadowing|"
        r"white-?out",
    ),
    # Bones, devices.
    (
        ("Fracture",),
        -1,
        False,
        "osseous|bony|skeletal|bone|rib|clavicle",
        rf"(?:{_BONES}|bones?|ribs?|clavicles?){_BE} (?:all )?{_NORMAL}|"
        r"(?:intact|unremarkable|normal) (?:bones?|ribs?)",
    ),
    (("Fracture",), 1, False, "acute", rf"acute {_BONES}"),
    (
        ("Fracture",),
        1,
        True,
        "fracture",
        r"(?:rib |clavicular |vertebral |compression |healed |displaced |"
        r"nondisplaced )*fractures?(?: deformit(?:y|ies))?|fractured",
    ),
    (
        ("Support Devices",),
        1,
        True,
        "device|equipment|apparatus|hardware|line|sheath|tube|pacemaker|pacer|icd|defib|catheter|picc|swan|"
        "port|trache|ett|wires|valve|clips|pigtail|stent|leads|electrode",
        r"(?:support(?:ing|ive)?|medical|monitoring|indwelling|implanted|cardiac) (?:devices?|"
        r"equipment|apparatus|hardware)|lines (?:and|or) tubes|tubes (?:and|or) lines|"
        r"pacemakers?(?:[ /]+icd)?(?: leads?| wires?)?|pacer|\bicd\b|defibrillator|catheters?|"
        r"(?:(?:subclavian|jugular|ij|femoral|dialysis|central) (?:venous )?|picc |arterial |"
        r"swan[- ]ganz |monitoring |iv )lines?|(?:ij|jugular) sheath|\bpicc|swan[- ]ganz|port-?a-?cath|"
        r"mediport|chemoport|"
        r"(?:endotracheal |tracheostomy |\bet |nasogastric |\bng |orogastric |enteric |feeding |"
        r"chest |pleural |dobhoff |thoracostomy )?tubes?(?!r)|tracheostomy|\bett\b|"
        r"sternotomy wires|sternal wires|(?:prosthetic|mechanical) valves?|valve replacement|"
        r"surgical clips|pigtail|stents?|(?:electrocardiogram|ecg|ekg|pacing|icd|"
        r"monitoring) (?:leads?|electrodes?)|devices?",
    ),
    # The whole film.
    (
        ("No Finding",),
        -1,
        False,
        "cardiopul|cardio-|cardioth|cardioresp|intrathor|intra-|thoracic|pulmonary|chest|radiographic|patholog",
        r"(?:(?:acute|active|significant|focal|other|additional|further|gross|overt|major|"
        r"radiographic|definite|evident) )*"
        r"(?:cardio-?pulmonary|cardio-?thoracic|intra-?thoracic|pulmonary|thoracic|chest|"
        r"cardio-?respiratory|radiographic|pathological|pathologic)(?: or [a-z]+)?"
        r" (?:abnormalit(?:y|ies)|process(?:es)?|diseases?|patholog(?:y|ies)|findings?|changes?|disorder)",
    ),
    (
        ("No Finding",),
        -1,
        False,
        "no |any ",
        r"(?:(?<=no )|(?<=any ))(?:(?:acute|active|significant|other|additional|further) )*(?:abnormalit(?:y|ies)|"
        r"findings?|abnormal findings?|diseases?|patholog(?:y|ies))(?! (?:of|in|suggest|consistent|to|that|"
        r"support|for|at|on|concerning|suspicious|worrisome))",
    ),
    (
        ("No Finding",),
        1,
        True,
        "normal|unremarkable|negative",
        r"(?:the )?chest is (?:entirely )?(?:normal|unremarkable|clear)|(?:normal|unremarkable|"
        r"negative) (?:(?:frontal|portable|pa|ap|adult|single|view) )*(?:chest(?: x-?ray| radiograph|"
        r" film| dr image| exam\w*| study)?|cxr|study|examination|film|radiograph)(?!\w)|"
        r"(?:(?:chest )?(?:x-?ray|radiograph|film|image)|cxr|study|examination) (?:is |"
        r"appears? |looks? )?(?:within normal limits|normal|unremarkable|negative(?! for))",
    ),
)

# --- what changes a mention -----------------------------------------------------------------------------------------

_SEEN = (
    r"(?:seen|identified|present|evident|visuali[sz]ed|detected|appreciated|demonstrated|noted|"
    r"apparent|visible|observed|found|"
    r"shown|suspected|suggested|appear(?:s|ed)?|displayed|recogni[sz]ed|discern(?:ed|ible)|there|confirmed)"
)
_ADV = (
    r"(?: (?:clearly|definitely|definitively|currently|convincingly|well|readily|now|longer|"
    r"otherwise|obviously|be|been|any))*"
)

# Before "resolution": what would leave some of the finding there.
_WHOLLY = r"(?<!partial )(?<!incomplete )(?<!near complete )(?<!near-complete )(?<!nearly complete )"
# After "is likely": a part ("in part due to", but no place), or what the thing before it is read as.
_PART = r" (?:in|at|on)\b(?! (?:the |both )?(?:left|right|bases?|apex|apices|lungs?|lower|upper|mid|middle)\b)"
_READ_AS = r" (?:[a-z-]+ ){0,2}(?:atelecta|pneumoni|infecti|edema|oedema|consolidat|effusion|scar|aspiration|fluid)"

# (kind, needles, pattern), in order of precedence: pseudo-negations and hedges made of "not" must win over plain "not".
TRIGGERS: tuple[tuple[str, str, str], ...] = (
    (
        "skip",
        "change|increase|decrease|progress|worsen|improve|difference",
        r"\b(?:no|without)(?: (?:significant|interval|appreciable|substantial|acute|major|further|"
        r"relevant|definite))*"
        r" (?:change|increase|decrease|progression|worsening|improvement|difference)s?\b(?: in| of|"
        r" from)?",
    ),
    (
        "skip",
        "not only|changed|increased",
        r"\bnot only\b|\bnot? (?:large|significantly|markedly) (?:changed|increased)|\bunchanged\b",
    ),
    (
        "drop",
        "rule|exclude|evaluat|assess|check|look|confirm|determine|monitor|screen|follow|surveillance|"
        "recommend|history|status|risk|if |whether|r/o|symptoms|treat|removal|mimic|simulat|mistaken|confus",
        r"\b(?:to|please) (?:rule out|exclude|evaluate|assess|check|look|confirm|determine)\b(?: for|"
        r" whether)?|"
        r"\b(?:evaluat\w+|assess\w*|monitor\w*|screen\w*|follow-?up|surveillance|check) for\b|"
        r"\brecommend\w*\b|\b(?:past |prior |known |clinical )?history of\b|\brisk (?:of|for)\b|"
        r"\bif (?:there|clinical\w*|pneumonia|concern)\b|\bwhether\b|\br/o\b|\bsymptoms of\b|"
        r"\btreat(?:ed|ment) for\b|\bremoval of\b|\bmimic\w*\b|\bsimulat(?:es?|ing)\b|"
        r"\b(?:mistaken for|confused with)\b",
    ),
    (  # of what stands before: what a finding would do, or how it escapes notice, says nothing of this film
        "drop_post",
        "would|miss|overlook",
        r"\bwould(?: not)?(?: \w+ly)? (?!(?:also )?(?:be )?(?:consistent|compatible|in keeping|typical|suggest|favou?r|"
        r"support|indicate|represent|reflect|fit|raise|argue|concerning|suspicious|worrisome|explain|account|call|say|"
        r"read|appreciated|better)\b)[a-z]+\b|"
        r"\b(?:is|are|can be|could be|may be|might be)(?: \w+)? (?:missed|overlooked)\b",
    ),
    (
        "hedge_post",
        "exclude|rule|favo",
        r"(?:\b(?:is|are|was|were) )?\b(?:can ?not|could not|can't|couldn't|not|difficult to|hard to|"
        r"never)(?: be)?"
        r"(?: (?:entirely|completely|fully|definitely|confidently|reliably|safely|"
        r"totally))*(?: be)? (?:excluded|ruled out|(?:exclude|rule out)(?=\s*(?:$|[,.;)])))\b|"
        r"\bis favou?red\b",
    ),
    (
        "hedge_post",
        "confirm|determin|establish|assess|evaluat|judg|assum|presum|leading|main|top|primary|produce|cause|account|"
        "explain|responsible|contribut|underl",
        r"\b(?:can ?not|could not|can't|couldn't)(?: be)?(?: \w+ly)? (?:confirmed|determined|established|assessed|"
        r"evaluated|judged)\b|\b(?:has|have|needs?|must|is|are)(?: to)?(?: be)? (?:assumed|presumed)\b|"
        r"\b(?:the|a) (?:leading|main|top|primary) (?:consideration|possibility|differential|suspicion|diagnosis)\b|"
        r"\b(?:could|may|might)(?: also| well| equally)? (?:produce|cause|account for|explain|contribute|underlie|"
        r"be responsible)\b",
    ),
    (
        "hedge_pre",
        "whether| if ",
        r"\b(?:(?:is |it's )?not (?:clear|certain)|unclear|uncertain|open|undecided|(?:hard|difficult) to (?:say|tell))"
        r" (?:whether|if)\b(?: there (?:is|are|was)| an?)*",
    ),
    ("hedge_both", "less likely", r"(?:\b(?:is|are|seems?) )?\bless likely(?: than)?\b"),
    ("hedge_both", "more likely", r"\bmore likely(?: than)?\b"),
    ("hedge_pre", "favo", r"\bfavou?r(?:s|ing)?\b(?:(?! over )[^,;]){1,40} over\b"),  # of what stands behind it
    (
        "hedge_pre",
        "exclud|rule out",
        r"\b(?:can ?not|could not|can't|couldn't|difficult to|hard to|unable to|impossible to|not able to|not)"
        r"(?: (?:entirely|completely|fully|definitely|confidently))* (?:exclude|rule out|excluding)\b",
    ),
    (
        "hedge_pre",
        "confirm|determine|tell|distinguish|differentiate|separate|decide",
        r"\b(?:can ?not|could not|can't|couldn't|(?:is |are )?(?:un|not )able to|(?:difficult|hard|impossible) to|"
        r"(?:does|do|did) not (?:allow|let|permit)(?: \w+)?(?: to)?)(?: \w+ly)? (?:confirm|determine|tell|distinguish|"
        r"differentiate|separate|decide)\b",
    ),
    ("hedge_both", "if any|if at all|if present", r"\bif (?:any|at all|present)\b"),
    ("hedge_post", "the most", r"\b(?:is|are|being) the most (?:probable|likely)\b"),
    (
        "hedge_pre",
        "likely|probably|possibly|perhaps",
        r"\b(?:likely|probably|possibly|perhaps) (?:is|are|was|were|has|have)\b",
    ),
    (
        "hedge_post",
        "may|might|could|need|possib|consider|suspect|question|equivocal|probable|likely|indetermin|"
        "uncertain|evalua|assess|exclude|ruled|?",
        r"\b(?:may|might|could) (?:also )?(?:be (?:present|considered)|exist)\b|"
        r"\b(?:needs? )?to be (?:considered|excluded|ruled out)\b|"
        r"(?<!there )\b(?:is|are|remains?|be)(?: a| also| an)? (?:possibility|possible|considered?|"
        r"consideration|suspected|questionable|equivocal|probable|likely|indeterminate|"
        rf"uncertain)\b(?! (?:due|because|secondary|related|represent|reflect|to|a|an|the)\b|{_PART}|{_READ_AS})|"
        r"\bnot(?: well)? (?:assessed|evaluated|assessable|evaluable)\b|\b(?:indeterminate|"
        r"equivocal)\b|[:=] ?(?:possible|possibly|uncertain|suspected|questionable|likely|probable|"
        r"equivocal|maybe)(?=[,.;)]| ?$)|\?(?= ?$)|"
        r"\((?:possible|probable|likely|suspected|questionable|\?)\)",
    ),
    (
        "neg_pre",
        "no |without",
        r"\b(?:no|without)(?: (?:definite|convincing|clear|obvious|gross|overt|radiographic|"
        r"significant|visible|discernible|direct|acute|current|plain|any|the|film|imaging|apparent))*"
        r" (?:evidence|signs?|indications?|suggestion|features?|"
        r"findings?(?= (?:of|for|to|sugg|cons|comp|ind|conc|susp|worr))|"
        r"suspicion|radiographic evidence|hint|trace|proof)"
        r"(?: (?:of|for|to suggest|suggesting|suggestive of|consistent with|compatible with|"
        r"indicating|or))*\b(?: (?:an?|any)\b)?",
    ),
    (
        "neg_post",
        "no|n't|resolved|cleared|disappear|removed|drained|evacuated|ruled out|excluded|absent|negative|unlikely|"
        "improbable|missing|lacking|\u2717|nil|false|clear",
        r"(?:\b(?:is|are|was|were) )?\bno longer(?! an?y?\b)(?: [a-z]+)?|\b(?:has|have|had|was|were)(?: since|"
        r" now| all)*(?: been)? removed\b|\b(?:has|have)(?: since| now| completely| largely|"
        r" essentially| both| all| fully)*(?: been)? (?:resolved|cleared|disappeared|drained|evacuated|ruled out|"
        r"excluded)\b|"
        r"\b(?:is|are|was|were)(?: now| completely| essentially| both| all| fully)* resolved\b|"
        r"\bresolved\b(?=[,.;)]| ?$)|"
        r"\b(?:is|are|was|were)(?: not| clearly| entirely| also| both| all)* (?:absent|ruled out|"
        r"excluded|negative(?! for)|unlikely|improbable|missing|lacking)\b|"
        r"\b(?:appears?|seems?|considered|remains?) (?:absent|unlikely|improbable|excluded)\b|"
        r"\bcan(?: \w+ly)? be (?:\w+ly )?(?:excluded|ruled out|dismissed)\b|"
        r"\bi (?:see|find) no (?:support|evidence|signs?|indication|basis)\b(?= ?(?:[,.;)]|$))|"
        r"\b(?:did|do|does|could|can) ?not (?:find|see|detect|identify)(?: any| one| it)?\b(?= ?(?:[,.;)]|$))|"
        r"\babsent\b(?=[,.;)]| ?$)|\b(?:unlikely|improbable)\b(?=[,.;)]| ?$)|(?<=[a-z]) no\b(?=\s*(?:[,.;)]|$))|"
        r"\? ?(?:i (?:see|find|note) |there (?:is|are) |(?:it|they) (?:is|are|does|do) )(?:none|no|not)\b|"
        rf"(?:\b(?:is|are|was|were|has|have|can|could|does|do|did) ?)?(?:\bnot|n't|"
        rf"\bcannot){_ADV} {_SEEN}\b|"
        r"(?:[:=?(\u2192]| ->?) ?(?:\u2717|none\b|nil\b|absent\b|negative\b|not \w+|no\b(?= ?[,.;)]| ?$|"
        r"\s+\()|no (?=evidence|sign|abnormal|finding)|false\b|unlikely\b|excluded\b|resolved\b|"
        r"normal\b|clear\b|no(?= ?- ))|\b(?<!be )(?:ruled out|excluded)\b(?=[,.;)]| ?$)|\bnone\b|"
        r"\b(?:is|are|was|were) not(?=[,.;]| ?$)",
    ),
    (
        "neg_pre",
        "despite|contrary|regardless|wrong|incorrect|premature|would not",
        r"\b(?:despite|contrary to|regardless of)(?: [a-z]+){0,3} (?:suspicion|diagnos[ie]s|concern|question|"
        r"impression)(?: of| for)?\b|"
        r"\b(?:wrong to|incorrect to|premature to|would not) "
        r"(?:call|read|label|speak|interpret|describe)\b(?: (?:it|this|that|these|of|as))*",
    ),
    (
        "neg_pre",
        "no|without|negative|free|clear|absen|lack|devoid|resol|denies|never|neither|nil|exclud|rul|"
        "rather|instead|against|unlikely|fail|\u2717|n't",
        r"\b(?:no|nothing(?: to (?:suggest|indicate)| suggest\w*| indicat\w*)?|"
        r"without|neither(?: (?:lung|side|base|apex|hemithorax|hemidiaphragm|costophrenic angle|\w+ zone)s?"
        r"(?: \w+ly)? (?:shows?|has|contains?|demonstrates?|reveals?|displays?))?|nor|negative for|free (?:of|from)|"
        r"clear (?:of|from)|absence of|"
        rf"absent|lack of|lacks|lacking|devoid of|{_WHOLLY}(?:resolution|clearing) of|resolved|denies|never|nil|"
        r"(?:excludes?|excluding|rul(?:es|ed|ing) out)|rather than|instead of|exclud(?:e|es|ing)|"
        r"argues? against|against|unlikely(?: to (?:be|represent|reflect))?|fails? to (?:show|"
        r"demonstrate|reveal)|"
        r"(?:does|do|did|is|are|was|were|can|could) ?(?:not|n't)(?: \w+)?|not|cannot (?:see|identify|"
        r"appreciate|detect))\b|\u2717",
    ),
    ("hedge_both", "versus|vs", r"\bversus\b|\bvs\b\.?"),
    (
        "hedge_pre",
        "may|might|could|possib|probab|likely|perhaps|suspect|suspicio|question|equivocal|concern|"
        "worrisome|differential|consider|borderline|upper|top|uncertain|potential|presum|raise|"
        "suggestion of|seem",
        r"\b(?:may|might|could|possibl[ey]|possibility of|probabl[ey]|likely|perhaps|maybe|suspected|"
        r"suspicio(?:us|n)(?: for| of)?|suspect|questionable|question of|equivocal|concern(?:ing|"
        r"s)?(?: for)?|worrisome for|"
        r"differential(?: diagnos[ie]s)?|consider(?:ation of)?|borderline|upper limits?|top[- ]normal|"
        r"uncertain|potential(?:ly)?|presumed|presumably|raises?(?: the)?|subtle suggestion of|"
        r"seems? to)\b",
    ),
)

# A clause ends here: what stands before has no bearing on what stands after.
CLAUSE = (
    r";|\bbut\b(?! (?:otherwise |are |is )?clear)|\bhowever\b|\balthough\b|\bthough\b|\bwhile\b|"
    r"\bwhereas\b|\byet\b|\bexcept(?:ing)?(?: for)?\b|\bother than\b|"
    r"\bapart from\b|\baside from\b|\bwith the exception of\b|\bsave for\b|\. "
)
# What is named behind these words is what the writer declines to look for, and no claim. "I cannot identify" is one.
DECLINES = (
    r"\b(?:i|we)(?:'m| am|'re| are)?(?: (?:\w+ly|afraid|sorry|just|still|also))? (?:can ?not|can't|could not|couldn't|"
    r"won't|will not|(?:un|not )able to|not (?:qualified|allowed|permitted|trained) to|(?:must )?(?:decline|refuse) to)"
    r"(?: \w+ly)? (?:analy[sz]e|assess|assist|comment|diagnose|evaluate|examine|give|"
    r"help(?! (?:but|noticing|seeing)\b)|interpret|offer|process|provide|read|review)\b"
)
DECLINES_UNTIL = r"[,:] ?(?:the|this|these|there|it|i|we|where|here|both)\b|\b(?:and|where) (?:the|there|it|i|we)\b"
VERB = (
    r"\b(?:is|are|was|were|has|have|had|remains?|shows?|demonstrates?|reveals?|seen|noted|present|"
    r"identified|there|appears?|"
    r"persists?|(?<!to )suggests?|indicates?|which|causing|makes?|obscur\w+|yes)\b"
)
OPENER = (
    r"\b(?:a|an|the|small|tiny|trace|mild|minimal|minor|moderate|large|massive|severe|marked|"
    r"extensive|subtle|left|right|"
    r"bilateral|both|bibasilar|new|stable|unchanged|persistent|increas\w+|worsening|improv\w+|"
    r"decreas\w+|possible|possibly|"
    r"probabl[ey]|likely|mildly|moderately|left-sided|right-sided|with|patchy|resolving|residual|"
    r"known|enlarged)\b"
)
BREAK_WITH = r"(?<!consistent )(?<!compatible )(?<!associated )(?<!in keeping )\bwith\b(?! (?:any|no))"

# Between a sign and what it is read as: both are in the same place. Nothing else may be coordinated in between.
LINK = (
    r"(?:(?!\b(?:and|with|no|without|but)\b|[;:])(?:consistent with|compatible with|in keeping with|[^;:]))*?"
    r"(?:consistent with|compatible with|in keeping with|suggest\w*(?: of)?|represent\w*|"
    r"reflect\w*|indicat\w*(?: of)?|due to|"
    r"(?:concern(?:ing)?|suspicious|worrisome|concerns) for|secondary to|, (?:most )?(?:likely|"
    r"probably|possibly|favou?r\w*)|(?:is|are) (?:more |most )?(?:likely|probably|possibly)(?!,)|"
    r"explained by|point\w* (?:to|towards?)|typical (?:of|for)|attribut\w+ to|versus|vs\.?)"
    r"(?:[ ,]+(?!(?:and|with|without|no|but)\b)[a-z-]+){0,3}\s*"
)

# General knowledge, not an observation of this film.
TEXTBOOK = (
    r"^\W*(?!(?:the|an?|this|that|these|those|there|its?|left|right|small|large|new)\b)[a-z]+(?: [a-z]+)? "
    r"(?:appears?|presents?|manifests?|shows? up) as\b|"
    r"\b(?:refers? to|is defined as|is a (?:condition|term|disease|type|collection|medical)|"
    r"is the (?:collection|accumulation|build-?up|presence|"
    r"partial|complete|collapse)|are (?:conditions|terms)|occurs? when|is (?:typically|usually|"
    r"often|commonly|generally|identified|characteri[sz]ed|"
    r"diagnosed|recogni[sz]ed|caused|indicated)(?: [a-z]+)? by|(?:typically|usually|often|"
    r"commonly|generally|classically) (?:appears?|presents?|"
    r"seen|manifests?|shows?|causes?|indicates?|manifest|look)|(?:is|are) (?:typically|usually|"
    r"often|commonly|generally) |(?:typically|usually|often|generally|classically) "
    r"(?!(?:represents|reflects|indicates|suggests)\b)[a-z]+[a-rt-z]s\b|"
    r"on an? (?:chest )?(?:x-?ray|radiograph|film), (?:this|these|it|they)|\bone (?:(?:can|should|must) )?looks?|"
    r"(?:this|it|which|these|they) (?:can|may|might)(?: also)? (?:cause|appear|partially|lead|"
    r"result|be caused|manifest|show|present)|"
    r"(?:would|should) (?:appear|look|show|be seen|include|typically|expect)|(?:can|may) (?:cause|"
    r"lead|result|push|occur)|"
    r"for example|in general|signs (?:of|include)[^.]{0,40}\b(?:may|can|would|might|could) include)\b"
)
# A question without its answer is no claim; the sentence behind it may hold the answer.
QUESTION = r"\W*(?:is|are|does|do|did|could|can|would|should|what about|how about)\b[^?]*\?\W*"
# Cues of a text that declines, (needles, pattern). They are wide: only a text that claims nothing is asked for them.
_FILM_WORD = r"(?:images?|pictures?|x-?rays?|films?|radiographs?|photos?|attachments?|scans?)"
_READER = r"(?:doctors?|physicians?|radiologists?|professionals?|clinicians?|providers?|specialists?)"
REFUSAL: tuple[tuple[str, str], ...] = (
    (
        "as an ai|an ai|language model|sorry|apolog|afraid",
        r"\bas an ai\b|\bi(?:'m| am)(?: just| only)? an ai\b|\blanguage model\b|\bsorry\b|\bapolog\w+|\bafraid\b",
    ),
    (
        "i |i'|we |we'",  # "I can't ...", but not "I do not see a shift", which reads the film
        r"\b(?:i|we)(?:'m|'d|'ll)?\b(?:(?! (?:see|find|note|observe)\b)[^.!?;]){0,30}?"
        r"(?:\bnot\b|n't\b|\bcan ?not\b|\bunable\b|\black\b|\bno way of\b)"
        r"(?!(?: \w+ly)? (?:see|find|note|identify|detect|observe|appreciate|make out)\b"
        rf"(?![^.!?;]{{0,25}}\b(?:{_FILM_WORD}|one)\b))|"
        r"\bnot something (?:i|we) (?:can|may|should|do)\b",
    ),
    (
        "able to|capable|qualified|declin|refus|not permitted|not allowed|response|error",
        r"\b(?:un|not )able to \w+|\bwithout being able to\b|\bnot (?:capable|qualified)\b|"
        r"\b(?:declin(?:e|es|ed|ing)|refus(?:e|es|ed|ing))\b|\bnot (?:permitted|allowed)\b|\bno response\b|\berror:",
    ),
    ("the ability to", r"\bwithout the ability to\b"),
    (
        "beyond|outside|against|my purpose",
        r"\b(?:beyond|outside)(?: of)? (?:what i can|(?:my|the) (?:scope|abilit|capabilit|competence))|"
        r"\bagainst my\b|\bmy purpose\b",
    ),
    (
        "guideline|polic|appropriate|irresponsible|unethical|unsafe|prohibited|filter",
        r"\b(?:guidelines?|polic(?:y|ies)|inappropriate|irresponsible|unethical|unsafe|prohibited|content filter)\b",
    ),
    (
        "cannot be|can not be|can't be|won't be|will not be|n't part of",
        r"\b(?:diagnos[ie]s|interpretation|analysis|advice|request|assessment|opinion)\b[^.!?;]{0,30}"
        r"(?:\b(?:can ?not|can't|won't|will not) be (?:given|provided|made|fulfilled|offered|done)|n't part of)\b",
    ),
    ("no image|no pict|no x|no film|no radiograph|no photo|no attach|no scan", rf"\bno {_FILM_WORD}\b"),
    ("share|upload|attach|resend", rf"\b(?:share|upload|attach|resend)\b[^.!?;]{{0,25}}\b{_FILM_WORD}\b"),
    (
        "did not|didn't|failed to|could not be|cannot be|was not|has not been",
        rf"\b{_FILM_WORD} (?:did not|didn't|failed to|could not be|cannot be|was not|has not been) "
        r"(?:load|upload|open|attach|provid|access)",
    ),
    (
        "doctor|physician|radiologist|professional|clinician|provider|specialist",
        rf"\b(?:consult|seek|contact|ask)\b[^.!?;]{{0,40}}\b{_READER}\b|\bby (?:an? |your )?(?:\w+ )?{_READER}\b",
    ),
    (  # GLM, Qwen and Moonshot may decline in Chinese
        "抱歉|无法|不能|请咨询",
        r"抱歉|无法(?:对|提供|诊断|判断|查看|识别|解读|分析|协助)|不能(?:提供|诊断|解读|协助|对)|请咨询.{0,4}医生",
    ),
)

# --- sides ----------------------------------------------------------------------------------------------------------

_THAN = (
    r"(?: ?[><&/,]+ ?| (?:greater|more|larger|worse|less|smaller)(?: [a-z]+)? than (?:on )?(?:the "
    r")?| and (?:the )?| or (?:the )?| as well as (?:the )?)"
)
SIDES: tuple[tuple[str, str], ...] = (
    ("bilateral", rf"\bleft(?:-sided)?{_THAN}right\b|\bright(?:-sided)?{_THAN}left\b"),
    (
        "bilateral",
        r"\bbilateral(?:ly)?\b|\bboth\b|\bbi-?(?:basilar|basal|apical)\b|\beither side\b|\bl ?> ?r\b|"
        r"\br ?> ?l\b|\bb/l\b",
    ),
    ("left", r"\bleft(?:-sided|ward)?\b|\bl[lu]l\b|\blingula\w*\b"),
    ("right", r"\bright(?:-sided|ward)?\b|\br[lmu]l\b"),
)
# Right behind a finding: where it is.
PLACE = (
    r" (?:in|at|within|over|on|throughout|along|near|behind|of)(?: the)? (?:left|right|both|bilateral)\b"
    r"(?:[ -](?:sided?|upper|lower|mid|middle|lateral|medial|lungs?|lobes?|zones?|bases?|apex|hemithorax|hilum))*"
)
# Side words that do not locate the finding: the side compared with, a chamber, the normal side.
NOT_A_SIDE = (
    r"\b(?:compared|relative|in comparison|similar|contralateral) (?:to|with) (?:the |"
    r"that of the |that on the )?(?:left|right)(?: side| lung| one)?|"
    r"(?<!greater )(?<!larger )(?<!more )(?<!less )(?<!worse )\b(?:than|unlike) (?:on |"
    r"in )?(?:the )?(?:left|right)(?: side| lung| one)?|"
    r"\b(?:is|are|was|were|has|have) both (?:been )?(?=absent|present|not|negative|normal|clear|seen|"
    r"stable|unchanged|small|large|resolved|cleared|improv|worsen|increas|decreas)|"
    r"\bin the right (?:clinical )?(?:setting|context)|"
    r"\b(?:none|nothing|not) (?:on|at|in) the (?:left|right)(?: side)?|"
    r", (?:and )?(?:the )?(?:left|right)(?: (?:one|side|angle))? (?:is )?(?:sharp|clear|normal|free|unremarkable)\b|"
    r"\b(?:left|right)(?: (?:upper|lower))? (?:atri\w+|ventric\w+|main-?stem\w*|heart|cardiac|"
    r"subclavian artery)|\bcavo-?atrial|"
    r"\b(?:left|right)(?: (?:lung|side|hemithorax|lobe|costophrenic angle))* (?:is|appears|"
    r"remains) (?:clear|normal|unremarkable|well[- ]aerated)"
)
# ... and for everything but atelectasis (which pulls), the side that the mediastinum is moved to.
SHIFT = (
    r"\b(?:shift\w*|displac\w*|deviat\w*|push\w*|pulled|moved)(?: [a-z]+){0,5}? (?:to|toward|"
    r"towards|into) (?:the )?(?:contralateral )?(?:left|right)(?: side)?|"
    r"\b(?:leftward|rightward|left|right)(?:ward)? (?:mediastinal |tracheal )?(?:shift|deviation|displacement)"
)

# --- structure ------------------------------------------------------------------------------------------------------

IGNORED_SECTIONS = (
    r"(?:clinical )?(?:indication|history|clinical information|comparison|technique|"
    r"reason for (?:exam\w*|study)|exam(?:ination)?|recommendations?|disclaimer|note|"
    r"limitations?)s?"
)
SECTION_BREAK = (
    r"\b(?:FINDINGS|IMPRESSION|INDICATION|HISTORY|COMPARISON|TECHNIQUE|CONCLUSION|EXAMINATION|"
    r"RECOMMENDATIONS?|SUMMARY)(?= ?:)|"
    r"(?<=[.!?] )(?:Findings|Impression|Conclusion|Indication|History|Comparison|Technique|"
    r"Recommendations?|Summary)(?= ?:)"
)
# Words that may stand beside a finding's name in a heading without making it a sentence.
HEADING_FILLER = (
    r"\b(?:evidence|findings?|signs?|features?|basis|support(?:ing)?|diagnos[ie]s|assessment|"
    r"evaluation|indications?|of|for|the|and|or|with|in|on|side|sided|left|right|"
    r"bilateral|likely|possible|probable|lower|upper|middle|lobe|lung|base|basilar|basal|zone|"
    r"small|moderate|large|mild|severe|present|absent|"
    r"status|presence|key|step|pulmonary|acute|subtle|suspected|no|trace)\b|left-sided|"
    r"right-sided|[\d().,/&:\s\-]"
)
_PERCEIVED = "seen|present|identified|visible|detected|found|observed|noted|evident"
# A heading whose list holds what is not there: "Absent:", "Pertinent negatives:", "There is no:", "Findings not seen:".
DENYING = (
    r"(?!.*\bnot (?:excluded|ruled out)\b)(?=.*\b(?:no|not|none|absent|negatives?|without|excluded|ruled out)\b)"
    r"(?:(?:pertinent|relevant|significant|important|key|the|following|findings?|labels?|signs?|evidence|of|for|"
    rf"there|is|are|was|were|i|see|any|on|this|film|image|x-?ray|radiograph|{_PERCEIVED}|"
    r"no|not|none|absent|negatives?|without|excluded|ruled out)(?:[\s,:-]+|$))+"
)
# A line that is only the answer to the name above it.
VERDICT = (
    r"\W*(?:absent|present|none|no|yes|nil|negative|positive|possible|uncertain|"
    rf"not (?:{_PERCEIVED}))\W*"
)
EVIDENCE = (
    r"\b(?:left|right|bilateral\w*|both|opaci\w+|densit\w+|dense\w*|fluid|blunt\w*|obscur\w*|"
    r"blur\w*|collaps\w*|volume|shift\w*|elevat\w*|displac\w*|lucen\w+|"
    r"markings?|haz\w+|present|yes|seen|noted|confirmed|identified|visible|small\w*|moderate\w*|"
    r"large\w*|mild\w*|severe\w*|marked\w*|base|basal|basilar|"
    r"apex|apical|lobe|lobar|increased|decreased|enlarged|patchy|diffuse\w*|positive|likely|"
    r"possible|suspected|crowding|silhouett\w+|whit\w+|perihilar|absent|none|no|not|"
    r"negative|normal|clear|unremarkable|sharp|intact|nil|exclud\w+|ruled out|unlikely|resolved|"
    r"extend\w*)\b|\u2717|\u2713"
)
# Under a heading: what is normal is a denial of the label, unless a word of NOT_NORMAL stands beside it.
NOT_NORMAL = (
    r"\b(?:no|not|without|loss|lost|lack|absen\w+|beyond|outside|blunt\w*|obscur\w*|obliterat\w*|indistinct|hazy|"
    r"blurred|ill-defined|crowded|only|partly|partially|poorly|barely|however|but)\b|n't\b"
)
_NORMAL_LUNG = (
    r"\bvessels?\b[^.;]{0,30}\b(?:visible|seen|discernible|traced|followed)\b|"
    r"\b(?:lungs?|lung fields?)\b[^.;]{0,20}\b(?:clear|well[- ]aerated|transparent|translucent)\b"
)
# ... and what cannot be seen is hidden by it.
HIDDEN = (
    r"\b(?:angles?|sulc\w+|recess(?:es)?|(?:hemi)?diaphragms?|borders?|margins?|contours?|outlines?|vessels?)\b[^.;]{0,20}"
    r"\b(?:not|cannot|no longer)(?: be)?(?: \w+ly)? (?:seen|visible|traced|followed|defined|made out|sharp|clear)\b"
)
NORMAL_SIGNS = {
    "Pneumothorax": r"\bmarkings?\b[^.;]{0,30}"
    r"\b(?:visible|seen|present|reach\w*|extend\w*|continu\w+|run|traced|followed)\b",
    "Edema": r"\b(?:vessels?|vascul\w+|markings)\b[^.;]{0,30}"
    r"\b(?:crisp|sharp\w*|normal|thin|well[- ]defined|slender)\b",
    "Pleural Effusion": r"\b(?:angles?|recess(?:es)?|sulc\w+|(?:hemi)?diaphragms?)\b[^.;]{0,30}"
    r"\b(?:sharp\w*|clear\w*|crisp\w*|deep|open|smooth\w*|well[- ]defined|preserved|followed)\b",
    "Consolidation": _NORMAL_LUNG,
    "Pneumonia": _NORMAL_LUNG,
    "Lung Opacity": _NORMAL_LUNG,
    "Cardiomegaly": r"\b(?:less than|under|below) (?:half|50|0\.5)\b|\bnormal\b",
}
BLOCK_NEGATIVE = (
    r"^\W*(?:none|no|not|absent|negative|nil|without|clear|normal|unremarkable|within normal|"
    r"\u2717)(?!\w)|\u2717|"
    r"\b(?:is|are|was|were|appears?|remains?) (?:absent|clear|normal|unremarkable|sharp|intact|"
    r"negative|well[- ]preserved)\b|\bnot (?:seen|present|identified|evident|visible|detected|"
    r"noted|observed|found|appreciated|blunted|obscured)\b|"
    r"\b(?:is|are|was|were) no(?:ne)?\b(?! longer)|\bextend(?:s|ing)? (?:to|all the way)|\b(?:unlikely|resolved|"
    r"ruled out)\b|(?<!cannot be )(?<!not )\bexcluded\b|\bno (?:evidence|signs?|abnormal\w*|"
    r"visible|definite|obvious|[a-z]+ (?:seen|identified|evident))\b"
)
