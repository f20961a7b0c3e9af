import math
import re
from pathlib import Path

from data import pages
from data.charts import BOTTOM, HEIGHT, RIGHT, TOP, WIDTH, closed, draw_lines, look, number, opening, tick


def chart(lines, **more):
    frame = {"x_label": "x", "x_range": (0, 10), "x_ticks": (0, 5, 10), "y_ticks": (0.0, 0.5, 1.0)}
    return draw_lines(lines, title="t", **frame | more)


def test_the_frame_is_filled_from_corner_to_corner():
    svg = chart([("a", [(0, 0.0), (10, 1.0)])], left=40)
    points = re.search(r'<polyline class="line s0" points="([^"]+)"/>', svg)[1]
    assert points == f"40.0,{HEIGHT - BOTTOM:.1f} {WIDTH - RIGHT:.1f},{TOP:.1f}"
    assert re.findall(r'<line class="grid" x1="(\d+)" y1="([\d.]+)"', svg) == [
        ("40", "186.0"),
        ("40", "98.0"),
        ("40", "10.0"),
    ]
    assert re.findall(r'text-anchor="(\w+)">([^<]+)<', svg) == [
        *(("end", y) for y in ("0", "0.5", "1")),
        *(("middle", "0"), ("middle", "5"), ("end", "10"), ("middle", "x")),
    ]


def test_a_line_of_one_point_is_a_dot():
    svg = chart([("a", [(5, 0.5)]), ("b", [(0, 0.0), (10, 1.0)])])
    assert svg.count("<circle") == 1 and '<circle class="dot s0" cx="197.0" cy="98.0" r="3"/>' in svg
    assert svg.count("<polyline") == 1 and '<polyline class="line s1"' in svg


def test_what_is_no_number_leaves_a_gap():
    svg = chart([("a", [(0, 0.0), (2, 1.0), (4, math.nan), (5, 0.5), (6, math.inf), (8, -1e308), (9, 1.0), (10, 0.0)])])
    assert svg.count("<polyline") == 2 and svg.count("<circle") == 1 and "nan" not in svg and "inf" not in svg


def test_the_legend_has_a_key_and_a_note_for_each_series():
    names = [f"n{i}" for i in range(8)]
    svg = closed([opening(9, 9, "t")], names, [f"last {i}" for i in range(8)])
    assert re.findall(r"</svg>(n\d) <small>\((last \d)\)</small></span>", svg) == [
        (f"n{i}", f"last {i}") for i in range(8)
    ]
    looks = re.findall(r'class="line ([^"]+)"', svg)
    assert looks == [*(f"s{i}" for i in range(6)), "s0 d1", "s1 d1"], "six colours, then again with dashes"
    style = (Path(pages.__file__).parent / "page.css").read_text()
    assert len({look(i) for i in range(24)}) == 24 and all(f".line.d{i} {{" in style for i in (1, 2, 3))
    assert "<small>" not in closed([opening(9, 9, "t")], names)


def test_words_are_escaped():
    for svg in (opening(1, 1, '<"'), tick(0, 0, '<"'), closed([], ['<"'])):
        assert "&lt;&quot;" in svg and '<"' not in svg


def test_numbers_are_short():
    assert [number(x) for x in (0, -1e-300, 0.15000000000000002, 12345.6, 1e-9, -1e99)] == [
        "0",
        "-1e-300",
        "0.15",
        "12346",
        "1e-09",
        "-1e+99",
    ]
    assert number(-0.0) == "0"
