"""The ground that every page stands on: its head, its style, and what its environment refuses."""

import re

import jinja2
import pytest

from data.pages import environment

PAGE = """{% extends "base.html" %}
{% block title %}{{ name }}{% endblock %}
{% block style %}
p { color: red; }
{% endblock %}
{% block body %}
<p>{{ name }}</p>
{% endblock %}
"""


@pytest.fixture
def render(tmp_path, monkeypatch):
    def render(text, **values):
        (tmp_path / "page.html").write_text(text)
        return environment(tmp_path).get_template("page.html").render(**values)

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return render


def test_a_page_has_the_head_the_shared_style_and_then_its_own(render):
    html = render(PAGE, name="a <b>")
    assert html.startswith("<!DOCTYPE html>\n") and html.endswith("<body>\n<p>a &lt;b&gt;</p>\n</body>\n</html>")
    assert "<title>a &lt;b&gt;</title>" in html
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in html
    style = re.search(r"<style>\n(.*)</style>", html, re.S)[1]
    assert style.startswith(":root {") and style.endswith("p { color: red; }\n")
    assert not re.search(r"url\(|@import", style)


def test_every_colour_and_size_of_the_style_is_defined_in_light_and_only_known_ones_in_dark(render):
    style = re.search(r"<style>\n(.*)</style>", render(PAGE, name=""), re.S)[1]
    light, dark = (set(re.findall(r"(--[\w-]+):", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S))
    assert set(re.findall(r"var\((--[\w-]+)\)", style)) <= light
    assert dark < light


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (PAGE.replace("{{ name }}</p>", "{{ nam }}</p>"), "'nam'"),
        (PAGE.replace("block title", "block other"), "title"),
        (PAGE.replace("block body", "block other"), "body"),
    ],
)
def test_a_missing_name_and_a_missing_block_are_refused(render, text, named):
    with pytest.raises(jinja2.TemplateError, match=named):
        render(text, name="")
