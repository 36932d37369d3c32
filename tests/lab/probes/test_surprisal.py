import html
import itertools
import re

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

import charrnn
from charrnn.data.tokenizer import BpeTokenizer, CharTokenizer
from charrnn.generation.generator import TextGenerator
from charrnn.lab.figures.surprisal import COLUMNS, ground, label, plot_surprisal, summary, surprisal_to_html
from charrnn.lab.panels.surprisal import SurprisalPanel
from charrnn.lab.probes.surprisal import surprisal, surprisal_and_entropy, surprisal_and_entropy_at, tokens_of
from charrnn.models.recurrent import CharGRU, CharLSTM

TEXT = "abc <&>\nfeed a bad cab\n"


@pytest.fixture(scope="module", params=[CharLSTM, CharGRU])
def generator(request):
    torch.manual_seed(0)
    model = request.param(12, 8, num_layers=2, dropout=0.5)
    with torch.no_grad():
        model.head.weight.mul_(20)
    return TextGenerator(model, CharTokenizer("\n abcdefg<&>"))


def test_tokens_of_several_characters():
    tokenizer = BpeTokenizer.from_text("the cat and the hat and the bat\n" * 20, 270)
    generator = charrnn.create_model(tokenizer, hidden_size=8, num_layers=1)
    text = "the hat and the cat\n"
    tokens, bits = tokens_of(generator, text), surprisal(generator, text)
    assert "".join(tokens) == text
    assert max(map(len, tokens)) > 1
    assert bits.shape == (len(tokens),)
    assert f"{bits.sum() / len(text):.2f} bits per character" in summary(tokens, bits)  # and not per token
    plot_surprisal(tokens, bits).png()
    surprisal_to_html(tokens, bits)


# -------------------------------------------------------------------------------------------------------------- page


def test_the_page_has_every_character_and_its_bits(generator):
    tokens, bits = tokens_of(generator, TEXT), surprisal(generator, TEXT)
    page = surprisal_to_html(tokens, bits)
    shown = re.findall(r'white-space:pre">([^<]*)</span>', page)
    assert "".join(map(html.unescape, shown)) == TEXT.replace("\n", "⏎").replace(" ", "␣")
    assert re.findall(r'font-size:.8em">([^<]*)</span>', page) == [label(value) for value in bits]
    assert page.count("flex-basis:100%") == TEXT.count("\n")
    assert "<&>" not in page
    assert page.count("<span") == page.count("</span>")
    assert page.startswith(f"<p>{len(TEXT)} characters with {bits.sum():.1f} bits in all")


def luminance(color):
    channels = np.array(to_rgb(color))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("bits", [0, 1, 4, 8, 30])
def test_black_can_be_read_on_every_ground(bits):
    assert (luminance(ground(bits)) + 0.05) / 0.05 >= 4.5  # contrast as WCAG 2 counts it


def test_the_ground_is_darker_where_the_surprisal_is_greater():
    grounds = [luminance(ground(bits)) for bits in (0, 1, 2, 4, 6, 8)]
    assert grounds == sorted(grounds, reverse=True)
    assert ground(0) == "#ffffff"


@pytest.mark.parametrize(("bits", "text"), [(0, "0.0"), (1.26, "1.3"), (9.94, "9.9"), (9.96, "10"), (123.4, "123")])
def test_labels_have_three_characters_at_most(bits, text):
    assert label(bits) == text


def test_one_character_is_not_called_characters():
    assert summary(["a"], [2.0]).startswith("1 character with 2.0 bits in all, 2.00 bits per character")


# ------------------------------------------------------------------------------------------------------------ figure


@pytest.mark.parametrize("text", [TEXT, "a", "\n\n", "ab " * 30, "a" * (COLUMNS + 1), "a " + "b" * COLUMNS])
def test_the_figure_has_a_box_for_every_token(generator, text):
    tokens, bits = tokens_of(generator, text), surprisal(generator, text)
    figure = plot_surprisal(tokens, bits)
    axes = figure.figure.axes[0]
    written = [artist.get_text() for artist in axes.texts]
    assert "".join(written[::2]) == text.replace("\n", "⏎").replace(" ", "␣")
    assert written[1::2] == [label(value) for value in bits]
    boxes = [patch.get_bbox() for patch in axes.patches]
    assert len(boxes) == len(tokens)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert max(box.x1 for box in boxes) <= COLUMNS
    assert f"{len(text)} character" in figure.alt
    assert figure.png().startswith(b"\x89PNG")


# --------------------------------------------------------------------------------------------------------------- box


@pytest.mark.parametrize("text", ["a", TEXT, "\n", "<b>".replace("b", "bad"), "ab" * 300])
def test_the_box_shows_what_the_functions_give(generator, text):
    panel = SurprisalPanel(generator, "abc")
    panel.controls["text"].value = text
    assert panel.words.value == surprisal_to_html(tokens_of(generator, text), surprisal(generator, text))


@pytest.mark.parametrize(("text", "sentence"), [("", "at least one character"), ("abZ", "got &#x27;Z&#x27;")])
def test_what_cannot_be_read_is_a_sentence_in_the_box(generator, text, sentence):
    panel = SurprisalPanel(generator, "abc")
    panel.controls["text"].value = text
    assert 'role="alert"' in panel.words.value
    assert sentence in panel.words.value
    panel.controls["text"].value = "a"
    assert "alert" not in panel.words.value


def test_the_box_has_a_class_and_a_name(generator):
    box = SurprisalPanel(generator, "abc").controls["text"]
    assert "t-text" in box._dom_classes
    assert box.description == "text"
    assert not box.continuous_update


def test_at_temperature_1_the_bits_are_those_of_the_text(generator):
    bits, entropy = surprisal_and_entropy(generator, "abba")
    (came, _), (expected, flat) = surprisal_and_entropy_at(generator, "abba", [1.0, 1e9])
    assert came == pytest.approx(bits.mean(), abs=1e-5)
    assert expected == pytest.approx(entropy.mean(), abs=1e-5)
    assert flat == pytest.approx(np.log2(generator.tokenizer.vocab_size))
