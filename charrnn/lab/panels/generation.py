"""Panels that generate text: thin views over the library's functions."""

import html
import re
from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets

from charrnn.config import unescaped
from charrnn.generation.generator import TextGenerator
from charrnn.lab.panels.base import NARROW, SLIDING, WIDE, ControlPanel, problem
from charrnn.lab.panels.worker import Writer

SHOWN = 2000  # characters at the end of a long text that the view shows


def text_to_html(text: str) -> str:
    """Show text literally in a box that wraps; of a long text only the end."""
    text = text if len(text) <= SHOWN else "…" + text[-SHOWN:]
    style = "font-family:monospace;white-space:pre-wrap;unicode-bidi:plaintext;line-height:1.35;min-height:6em"
    return f'<pre style="{style}">{html.escape(text)}</pre>'


SLIDERS = {  # setting: initial value, lowest, highest, step, label
    "temperature": (0.8, 0.0, 2.0, 0.05, "temperature"),
    "top_k": (0, 0, 1, 1, "top-k (0: off)"),  # the highest is the vocabulary size
    "top_p": (1.0, 0.05, 1.0, 0.05, "top-p (1: off)"),
    "min_p": (0.0, 0.0, 1.0, 0.01, "min-p (0: off)"),
    "typical_p": (1.0, 0.05, 1.0, 0.05, "typical-p (1: off)"),
    "repetition_penalty": (1.0, 1.0, 2.0, 0.05, "repetition (1: off)"),
}

# the value of a control whose setting is off
OFF = {name: value for name, (value, *_) in SLIDERS.items() if name != "temperature"} | {"stop": "", "forbid": ""}


def sliders(vocab_size: int, *names: str, layout: Mapping[str, Any] = SLIDING) -> dict[str, Any]:
    """Make a slider for each of these settings."""
    made = {}
    for name in names:
        value, low, high, step, label = SLIDERS[name]
        kind = ipywidgets.IntSlider if name == "top_k" else ipywidgets.FloatSlider
        high = vocab_size if name == "top_k" else high
        made[name] = kind(value=value, min=low, max=high, step=step, description=label, **layout)
    return made


def settings_of(values: Mapping[str, Any]) -> dict[str, Any]:
    r"""Convert the values of controls to settings of `TextGenerator.stream`: off is None, and `\n` is a newline.

    The prompt has a field of several lines and needs no escapes.

    Raises:
        ValueError: the seed is not a whole number.
    """
    settings = {name: None if name in OFF and value == OFF[name] else value for name, value in values.items()}
    for name in ("stop", "forbid"):
        if settings.get(name):  # a newline cannot be typed into a field of one line
            settings[name] = unescaped(settings[name])
    if "seed" in settings:
        settings["seed"] = _whole_number("seed", settings["seed"])
    return settings


def _whole_number(name: str, typed: str) -> int:
    """Parse a typed number; a number field would drop characters and read 1e3 as 13."""
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,1000}\s*", typed):
        raise ValueError(f"{name}: expected a whole number such as 7, got {typed!r}")
    return int(typed)


class WritingPanel(ControlPanel):
    """Controls for the sampling settings, buttons Generate and Stop, and the text as it comes.

    Args:
        generator: the network that writes.
        controls: widgets by the names of the settings, including a prompt and a seed.

    Attributes:
        generator: as given.
        writer: holds the text.
        generate_button: starts a new text.
        stop_button: ends it.
        message: an error message, as HTML.
        output: the end of the text, as HTML.
        status: the number of characters and the speed, as HTML.
    """

    def __init__(self, generator: TextGenerator | None, controls: Mapping[str, Any]):
        self.generator = generator
        self.writer = Writer(self._show)
        self.generate_button = self._button("Generate", self.generate, "write a new text", button_style="primary")
        self.stop_button = self._button("Stop", self.stop, "stop writing", disabled=True)
        self.message = ipywidgets.HTML().add_class("t-message")
        # reversed, so that the newest line stays in sight
        box = {"display": "flex", "flex_flow": "column-reverse", "max_height": "26em", "overflow": "auto"}
        box |= {"border": "1px solid #9e9e9e", "padding": "2px 8px", "width": "864px", **NARROW}
        self.output = ipywidgets.HTML(text_to_html(""), layout=box).add_class("t-text")
        self.status = ipywidgets.HTML().add_class("t-status")
        self.buttons = ipywidgets.HBox([self.generate_button, self.stop_button], layout={"flex_flow": "row wrap"})
        super().__init__(controls, self.buttons, self.message, self.output, self.status)

    def _button(self, name: str, press: Callable[[Any], None], tooltip: str, **options: Any) -> ipywidgets.Button:
        button = ipywidgets.Button(description=name, tooltip=tooltip, **options)
        button.on_click(press)
        return button

    @property
    def text(self) -> str:
        """The latest text, including its prompt."""
        return self.writer.text

    def settings(self) -> dict[str, Any]:
        """Give the values of the controls as settings of `TextGenerator.stream`."""
        return settings_of(self.values())

    def generate(self, _: Any = None) -> None:
        """Write a new text into the view."""
        self._begin(self.writer.start)

    def stop(self, _: Any = None) -> None:
        """Stop writing."""
        self.writer.stop()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end of the text; False if it takes longer than `timeout` seconds."""
        return self.writer.wait(timeout)

    def _begin(self, start: Callable[[TextGenerator, Mapping[str, Any]], None]) -> None:
        try:
            settings = self.settings()
        except ValueError as error:
            self.message.value = problem("Not generated:", error)
            return
        self.message.value = ""
        self._show_buttons(running=True)
        start(self.generator, settings)

    def _show_buttons(self, running: bool) -> None:
        self.generate_button.disabled, self.stop_button.disabled = running, not running

    def _show(self) -> None:
        """Update the view; called in the writer's thread."""
        self.output.value = text_to_html(self.writer.text)
        self.status.value = self.status_to_html()
        if not self.writer.running:
            self._conclude()

    def _conclude(self) -> None:
        if self.writer.error:
            self.message.value = problem("Not generated:", self.writer.error)
        self._show_buttons(running=False)

    def status_to_html(self) -> str:
        """Write the status line, which a screen reader announces when the text is complete."""
        writer = self.writer
        role = "" if writer.running else ' role="status"'
        return f"<p{role}>{'writing: ' * writer.running}{html.escape(', '.join(self.figures()))}</p>"

    def figures(self) -> list[str]:
        """List the parts of the status line."""
        characters = self.writer.characters
        figures = [f"{characters:,} character{'s' * (characters != 1)}"]
        return [*figures, f"{self.writer.speed:,.0f} per second"] if self.writer.speed else figures


class GenerationPanel(WritingPanel):
    """Controls for prompt, temperature, top-k, top-p, length and seed, over the text.

    Args:
        generator: the network that writes.
    """

    def __init__(self, generator: TextGenerator):
        prompt = ipywidgets.Textarea("ROMEO:\n", description="prompt", rows=2, **WIDE)
        length = ipywidgets.IntSlider(300, min=0, max=2000, step=50, description="length", **SLIDING)
        seed = ipywidgets.Text("1", description="seed", **WIDE)
        settings = sliders(generator.tokenizer.vocab_size, "temperature", "top_k", "top_p")
        super().__init__(generator, {"prompt": prompt, **settings, "length": length, "seed": seed})
