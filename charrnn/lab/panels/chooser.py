"""A panel in which the reader is the sampler: choose the next character, and the network goes on from there."""

import html
from functools import partial
from typing import Any

import ipywidgets
import numpy as np

from charrnn.data.characters import visible
from charrnn.generation.generator import TextGenerator
from charrnn.generation.logits import sample
from charrnn.lab.figures.labels import percent
from charrnn.lab.figures.sampling import plot_choice
from charrnn.lab.figures.surprisal import surprisal_to_html
from charrnn.lab.panels.base import SLIDING, WIDE, ControlPanel, FigureBox
from charrnn.lab.probes.distribution import Choice, choose, next_character_probabilities, tally

MOST = 10  # the largest number of characters to choose from


class ChooserPanel(ControlPanel):
    """A button for each of the likeliest characters: a click appends it, and the bars and the state follow.

    Args:
        generator: the network; its tokens are characters.
        prompt: the initial prompt.
        seed: of the characters that the model draws.

    Attributes:
        choices: the characters chosen since the prompt.
        buttons: one for each character to choose from.
        model_button: draws a character from the model's distribution.
        undo_button: removes the last choice.
        words: the text so far and its surprisal, as HTML.
        box: the figure.
    """

    def __init__(self, generator: TextGenerator, prompt: str = "My lord, I ", seed: int = 1):
        self._generator, self._random = generator, np.random.default_rng(seed)
        self.choices: list[Choice] = []
        self.buttons = [self._button(f"choice-{rank}", partial(self.choose, rank)) for rank in range(MOST)]
        self.model_button = self._button("model", self.draw_one, "let the model choose", width="auto")
        self.undo_button = self._button("undo", self.undo, "undo", width="auto")
        self.words = ipywidgets.HTML().add_class("t-words")
        self.box = FigureBox()
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
        """The prompt and the chosen characters."""
        return self.controls["prompt"].value + "".join(each.character for each in self.choices)

    def choose(self, rank: int, _: Any = None) -> None:
        """Append the character at this rank."""
        self._append(self._offered[rank][0])

    def draw_one(self, _: Any = None) -> None:
        """Append a character drawn from the model's distribution."""
        token = sample(self._generator.next_logits(self.text), self._random.random())
        self._append(self._generator.tokenizer.decode([int(token)]))

    def undo(self, _: Any = None) -> None:
        """Remove the last choice."""
        self.choices.pop()
        self.draw()

    def _append(self, character: str) -> None:
        self.choices.append(choose(self._generator, self.text, character))
        self.draw()

    def draw(self, change: Any = None) -> None:
        """Show the text so far, what may come next, and the state; a new prompt starts over."""
        if change is not None and change["owner"] is self.controls["prompt"]:
            self.choices.clear()
        count = self.controls["count"].value
        try:
            self._offered = next_character_probabilities(self._generator, self.text, count)
        except ValueError:  # an unknown character; the box below shows the message
            self._offered = []
        self._show_buttons()
        self.words.value = self._written()
        self.box.show(lambda: plot_choice(self._generator, self.text, count))

    def _show_buttons(self) -> None:
        for button, (character, probability) in zip(self.buttons, self._offered, strict=False):
            button.description = f"{visible(character)}  {percent(probability)}"
            button.layout.display = None
        for button in self.buttons[len(self._offered) :]:
            button.layout.display = "none"
        self.model_button.disabled = not self._offered
        self.undo_button.disabled = not self.choices

    def _written(self) -> str:
        """Write the text so far, the chosen part with its surprisal, as HTML."""
        text = f'<pre style="white-space:pre-wrap;line-height:1.35">{html.escape(self.text)}</pre>'
        if not self.choices:
            return text + _paragraph(tally([]))
        marked = surprisal_to_html([each.character for each in self.choices], [each.bits for each in self.choices])
        return text + _paragraph(tally(self.choices)) + marked


def _paragraph(words: str) -> str:
    return f"<p>{html.escape(words)}</p>"
