"""You are the sampler: choose the next character yourself, and watch the network go on from there."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ipywidgets
import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap

from charrnn.characters import visible
from charrnn.lab.distribution import entropy
from charrnn.lab.figures import BLUE, ORANGE, Picture, course_style, new_figure, next_character_probabilities, percent
from charrnn.lab.panel import SLIDING, WIDE, ControlPanel, PictureBox
from charrnn.lab.states import read_states
from charrnn.lab.surprise import surprise_to_html
from charrnn.sampling import TextGenerator, sample
from charrnn.transforms import softmax

MOST = 10  # characters to choose from, at most
COLORS = LinearSegmentedColormap.from_list("state", [ORANGE, "white", BLUE])


@dataclass(frozen=True)
class Choice:
    """A character that was chosen.

    Attributes:
        character: what it is.
        bits: its surprise.
        expected: the surprise that was to be expected there: the entropy of the distribution.
    """

    character: str
    bits: float
    expected: float


def choose(generator: TextGenerator, text: str, character: str) -> Choice:
    """`character` as the one that follows `text`.

    Raises:
        UnknownCharacterError: it or the text is outside the vocabulary.
    """
    (token,) = generator.tokenizer.encode(character)
    probabilities = softmax(np.asarray(generator.next_logits(text), dtype=np.float64))
    return Choice(character, 0.0 - float(np.log2(probabilities[token])), entropy(probabilities))


def tally(choices: Sequence[Choice]) -> str:
    """A sentence: how surprising the choices were, and how surprising draws would have been expected to be."""
    if not choices:
        return "Nothing is chosen yet."
    bits, expected = sum(each.bits for each in choices), sum(each.expected for each in choices)
    verdict = "more" if bits > expected else "less"
    return (
        f"{len(choices)} chosen, with {bits:.1f} bits. The model expected {expected:.1f}, the sum of its entropies: "
        f"your choices surprise it {verdict} than draws would."
    )


@course_style()
def plot_choice(generator: TextGenerator, text: str, count: int = 8, units: int = 24, steps: int = 24) -> Picture:
    """The likeliest characters after `text`, and the state that the network has come to on the way.

    Args:
        generator: its model reads.
        text: so far; empty stands for a newline.
        count: characters to choose from.
        units: of the top layer, from the first on.
        steps: the last ones of the text to show.

    Raises:
        UnknownCharacterError: the text has a character outside the vocabulary.
    """
    likeliest = next_character_probabilities(generator, text, count)
    read = text or "\n"
    tokens = torch.from_numpy(np.asarray(generator.tokenizer.encode(read), dtype=np.int64))
    states = read_states(generator.model, tokens[None])[0, -steps:, :units].numpy()  # (steps, units)
    figure, (left, right) = new_figure(10.5, 3.4, 1, 2, width_ratios=[6, 5])
    names = [visible(character) for character, _ in likeliest]
    bars = left.bar(range(len(names)), [p for _, p in likeliest], color=BLUE)
    left.set_xticks(range(len(names)), names)
    left.bar_label(bars, [percent(p) for _, p in likeliest], padding=2, fontsize=8)
    left.set(ylabel="probability", ylim=(0, likeliest[0][1] * 1.15), title="What may come next")
    image = right.imshow(states.T, cmap=COLORS, vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    right.set_xticks(range(len(states)), [visible(character) for character in read[-steps:]])
    right.set(ylabel="unit", title=f"{states.shape[1]} units of the top layer, after each character")
    figure.colorbar(image, ax=right, label="h")
    moved = np.abs(states[-1] - states[-2]).mean() if len(states) > 1 else 0.0
    alt = (
        f"After …{read[-steps:]!r} the likeliest is {names[0]} with {percent(likeliest[0][1])}; the {len(names)} shown "
        f"hold {percent(sum(p for _, p in likeliest))}. The last character moved {states.shape[1]} units of the state "
        f"by {moved:.2f} in the mean."
    )
    return Picture(figure, alt)


class ChooserPanel(ControlPanel):
    """The likeliest characters as buttons: a click appends one; the bars and the state go on.

    Args:
        generator: its model reads; of one token per character.
        prompt: what stands in the box at first.
        seed: of the draws, where the model chooses.

    Attributes:
        choices: what was chosen since the prompt.
        buttons: one for each character to choose from.
        model_button: draws one as the model would.
        undo_button: takes the last one back.
        words: the text so far and its surprise.
        box: the picture.
    """

    def __init__(self, generator: TextGenerator, prompt: str = "My lord, I ", seed: int = 1):
        self._generator, self._random = generator, np.random.default_rng(seed)
        self.choices: list[Choice] = []
        self.buttons = [self._button(f"choice-{rank}", partial(self.choose, rank)) for rank in range(MOST)]
        self.model_button = self._button("model", self.draw_one, "let the model choose", width="auto")
        self.undo_button = self._button("undo", self.undo, "undo", width="auto")
        self.words = ipywidgets.HTML().add_class("t-words")
        self.box = PictureBox()
        rows = [ipywidgets.HBox(self.buttons), ipywidgets.HBox([self.model_button, self.undo_button])]
        for row in rows:
            row.layout.flex_flow = "row wrap"
        controls = {
            "prompt": ipywidgets.Textarea(prompt, description="prompt", rows=2, continuous_update=False, **WIDE),
            "count": ipywidgets.IntSlider(6, min=1, max=MOST, description="how many", **SLIDING),
        }
        super().__init__(controls, self.words, *rows, self.box.view)
        self.draw()

    def _button(self, name: str, press: Any, description: str = "", width: str = "6.5em") -> ipywidgets.Button:
        button = ipywidgets.Button(description=description, layout={"width": width}).add_class(f"t-{name}")
        button.on_click(press)
        return button

    @property
    def text(self) -> str:
        """The prompt and what was chosen."""
        return self.controls["prompt"].value + "".join(each.character for each in self.choices)

    def choose(self, rank: int, _: Any = None) -> None:
        """Append the likeliest character, or the one at this rank."""
        self._append(self._offered[rank][0])

    def draw_one(self, _: Any = None) -> None:
        """Append a character that is drawn from the model's distribution."""
        token = sample(self._generator.next_logits(self.text), self._random.random())
        self._append(self._generator.tokenizer.decode([int(token)]))

    def undo(self, _: Any = None) -> None:
        """Take the last choice back."""
        self.choices.pop()
        self.draw()

    def _append(self, character: str) -> None:
        self.choices.append(choose(self._generator, self.text, character))
        self.draw()

    def draw(self, change: Any = None) -> None:
        """Show the text so far, what may come next, and the state; a new prompt begins anew."""
        if change is not None and change["owner"] is self.controls["prompt"]:
            self.choices.clear()
        count = self.controls["count"].value
        try:
            self._offered = next_character_probabilities(self._generator, self.text, count)
        except ValueError:  # an unknown character, of which the box below says the sentence
            self._offered = []
        self._show_buttons()
        self.words.value = self._written()
        self.box.show(lambda: plot_choice(self._generator, self.text, count), lambda picture: _paragraph(picture.alt))

    def _show_buttons(self) -> None:
        for button, (character, probability) in zip(self.buttons, self._offered, strict=False):
            button.description = f"{visible(character)}  {percent(probability)}"
            button.layout.display = None
        for button in self.buttons[len(self._offered) :]:
            button.layout.display = "none"
        self.model_button.disabled = not self._offered
        self.undo_button.disabled = not self.choices

    def _written(self) -> str:
        """The text so far, the chosen part with its surprise, as HTML."""
        text = f'<pre style="white-space:pre-wrap;line-height:1.35">{html.escape(self.text)}</pre>'
        if not self.choices:
            return text + _paragraph(tally([]))
        marked = surprise_to_html([each.character for each in self.choices], [each.bits for each in self.choices])
        return text + _paragraph(tally(self.choices)) + marked


def _paragraph(words: str) -> str:
    return f"<p>{html.escape(words)}</p>"
