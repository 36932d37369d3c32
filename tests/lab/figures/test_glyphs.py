"""A user's own text in figures: drawn literally, in the style of the course, with a glyph or an escape for each."""

import ast
import html
import string
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import font_manager, style
from matplotlib.figure import Figure
from matplotlib.text import Text

from charrnn import lab
from charrnn.data.characters import spoken, visible
from charrnn.data.tokenizer import CharTokenizer
from charrnn.generation.generator import TextGenerator
from charrnn.lab.figures import glyphs
from charrnn.lab.figures.base import CaptionedFigure
from charrnn.lab.figures.diagrams import plot_tbptt
from charrnn.models.recurrent import CharLSTM

DOLLARS = "It cost $5, not $6.\n"
FOREIGN = "中हि🎉שלוםاe\u0301\x1b\t\u200d"


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    tokenizer = CharTokenizer.from_text(string.ascii_letters + DOLLARS + FOREIGN)
    return TextGenerator(CharLSTM(tokenizer.vocab_size, 8), tokenizer)


def drawers(generator, text):
    """Make functions that draw `text` in titles, labels, ticks and legends."""
    records = [{"event": "evaluated", "step": step, "loss": 1.0, "seconds": 1.0} for step in (1, 2)]
    gate = lab.read_gates(generator, text)["f"]
    measures = {"gradient": {text: {1: 1.0, 4: 1e-4}}, text: {"b": {1: 1.0, 4: 2.0}}}
    return {
        "distribution": lambda: lab.plot_distribution(generator, text, 80, top_k=30),
        "norms": lambda: lab.plot_norms({text: [1.0, 0.1, 0.01]}, text, 0.9),
        "kept": lambda: lab.plot_kept(generator, [text], {text: lambda p: p > 0.01}),
        "gates": lambda: lab.plot_gates(text, gate, "f", range(4)),
        "unit": lambda: lab.plot_unit(text, gate[:, 0], text),
        "surprisal": lambda: lab.plot_surprisal(list(text), np.arange(len(text)), text),
        "unrolled": lambda: lab.plot_unrolled(text[:3], text[1:4]),
        "next": lambda: lab.plot_next_character(generator, text, 12),
        "choice": lambda: lab.plot_choice(generator, text),
        "draw": lambda: lab.plot_draw(list(text), np.full(len(text), 1 / len(text)), 0.5),
        "streams": lambda: lab.plot_streams(text, 2, 4),
        "tbptt": lambda: plot_tbptt(text[:12], 4),
        "ladder": lambda: lab.plot_ladder({text: 3.0, "b": 2.0}, {text: 1.0}),
        "measures": lambda: lab.plot_measures(measures),
        "run": lambda: lab.plot_run(records, text),
        "zipf": lambda: lab.plot_zipf(text),
    }


FORMULAS = {"norms": "10^", "measures": "10^", "zipf": "10^", "unrolled": "_{"}  # of our own


def test_a_dollar_sign_starts_no_formula(generator):
    for name, draw in drawers(generator, DOLLARS).items():
        figure = draw().figure
        if name in FORMULAS:
            figure.draw_without_rendering()
        texts = [text for text in figure.findobj(Text) if "$" in text.get_text() and text.get_parse_math()]
        formulas = [text.get_text() for text in texts if text.get_text().count("$") > 1]
        assert all(FORMULAS.get(name, "none") in formula for formula in formulas), name
        assert bool(formulas) == (name in FORMULAS), name


def test_a_figure_looks_the_same_in_every_style_and_leaves_it_alone(generator):
    loud = {"xtick.labelsize": 30, "savefig.transparent": True, "font.family": "serif", "text.usetex": True}
    for name in ("distribution", "norms", "run"):
        draw = drawers(generator, DOLLARS)[name]
        expected = draw().png()
        with style.context(["dark_background", loud]):
            before = dict(matplotlib.rcParams)
            assert draw().png() == expected, name
            assert dict(matplotlib.rcParams) == before


def test_every_function_that_draws_does_so_in_the_style_of_the_course():
    for path in Path(lab.__file__).parent.rglob("*.py"):
        for function in ast.parse(path.read_text()).body:
            if isinstance(function, ast.FunctionDef) and not function.name.startswith("_"):
                source = ast.unparse(function)
                if ("CaptionedFigure(" in source or "new_figure(" in source) and function.name != "new_figure":
                    assert "@course_style()" in source, f"{path.name}: {function.name}"


@pytest.fixture
def installed(monkeypatch):
    """A function that installs a font with these characters during a test."""
    monkeypatch.setattr(font_manager.fontManager, "ttflist", list(font_manager.fontManager.ttflist))

    def install(path, characters):
        pen = TTGlyphPen(None)
        pen.moveTo((0, 0)), pen.lineTo((500, 0)), pen.lineTo((500, 500)), pen.closePath()
        names = {ord(character): f"g{ord(character)}" for character in characters}
        builder = FontBuilder(1000, isTTF=True)
        builder.setupGlyphOrder([".notdef", *names.values()])
        builder.setupCharacterMap(names)
        builder.setupGlyf(dict.fromkeys([".notdef", *names.values()], pen.glyph()))
        builder.setupHorizontalMetrics(dict.fromkeys([".notdef", *names.values()], (600, 0)))
        builder.setupHorizontalHeader(ascent=800, descent=-200)
        builder.setupNameTable({"familyName": "Test Sans", "styleName": "Regular"})
        builder.setupOS2()
        builder.setupPost()
        builder.save(path)
        font_manager.fontManager.addfont(path)

    glyphs._find_families.cache_clear()
    yield install
    glyphs._find_families.cache_clear()


def test_what_no_font_has_is_an_escape_and_the_figure_says_so(generator, installed, monkeypatch):
    shipped = [font for font in font_manager.fontManager.ttflist if font.name.startswith(("DejaVu", "Last Resort"))]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", shipped)
    draw = drawers(generator, FOREIGN)
    for name in ("distribution", "kept", "gates", "unit", "surprisal", "run"):
        figure = draw[name]()
        figure.figure.draw_without_rendering()  # matplotlib warns of a missing glyph, and a warning is an error here
        assert "No installed font has these characters, so they are drawn as escapes: ह, ि, 中, 🎉." in figure.alt, name
    axes = lab.plot_gates("a中", np.zeros((2, 4)), "f", [0]).figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "\\u\n4e\n2d"]
    assert lab.plot_run([{"event": "evaluated", "step": 1, "loss": 1.0}], "中!").figure.axes[0].get_title() == (
        "\\u4e2d!"
    )


def test_a_font_that_has_the_characters_is_used(tmp_path, installed):
    installed(tmp_path / "test.ttf", "中")
    figure = lab.plot_gates("中म", np.zeros((2, 4)), "f", [0])
    han, _ = figure.figure.axes[0].get_xticklabels()
    assert han.get_text() == "中"
    assert han.get_fontfamily() == ["DejaVu Sans Mono", "DejaVu Sans", "Test Sans"]
    assert "中" not in figure.alt.partition("escapes:")[2]
    assert figure.png()


def test_hebrew_is_no_box_in_a_monospace_heat_map_and_stands_a_letter_to_a_cell():
    figure = lab.plot_gates("שלום", np.zeros((4, 4)), "f", [0])
    labels = figure.figure.axes[0].get_xticklabels()
    assert [label.get_text() for label in labels] == list("שלום")
    assert all("DejaVu Sans" in label.get_fontfamily() for label in labels)
    assert figure.png()


def test_the_number_after_a_prompt_stays_where_it_is(generator):
    title = lab.plot_kept(generator, ["שלום"], {"all": lambda p: p >= 0}).figure.axes[0].get_title()
    assert title.startswith("after 'שלום'\N{LEFT-TO-RIGHT MARK}: ")


# ---------------------------------------------------------------------------------------------------------- characters


@given(st.characters(), st.characters())
def test_every_character_has_a_look_of_its_own(one, other):
    assert visible(one).isprintable()
    assert visible(one).strip("\u2800\u3164")
    assert (visible(one) == visible(other)) == (one == other)


def test_visible_characters():
    assert visible(" the\n") == "␣the⏎"
    assert visible("\x00\té\u200d\ufe0f") == "\\x00\\té\\u200d\\ufe0f"
    assert visible("\u0301") == "◌\u0301"
    assert visible("e\u0301 \u0301") == "e\u0301␣◌\u0301"
    assert [spoken(character) for character in " \na\x1b"] == ["space", "newline", "a", "\\x1b"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("It cost $5, not $6", "It cost <span>$</span>5, not <span>$</span>6"),
        ('<b> &amp; "\\(x\\)"', "&lt;b&gt; &amp;amp; &quot;<span>\\</span>(x<span>\\</span>)&quot;"),
        ("a*b*_c_ `d` W_hh <1%", "a*b*_c_ `d` W_hh &lt;1%"),
    ],
)
def test_a_page_shows_a_caption_and_a_description_as_they_are(text, shown):
    page = CaptionedFigure(Figure(), text, text).to_html()
    assert f"<figcaption>{shown}<details>" in page
    assert f"</summary>{shown}</details>" in page
    assert f'<img alt="{html.escape(text)}" src="data:image/png;base64,' in page
