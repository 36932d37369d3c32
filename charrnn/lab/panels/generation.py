"""Widgets of the course: thin views over the library's functions."""

import html
import re
from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets

from charrnn.config import unescaped
from charrnn.generation.generator import TextGenerator
from charrnn.lab.panels.base import NARROW, SLIDING, WIDE, ControlPanel, problem
from charrnn.lab.panels.worker import Writer

SHOWN = 2000  # characters of a long text that the view shows


def text_to_html(text: str) -> str:
    """Text as it is, in a box that wraps; of a long text its end."""
    text = text if len(text) <= SHOWN else "…" + text[-SHOWN:]
    style = "font-family:monospace;white-space:pre-wrap;unicode-bidi:plaintext;line-height:1.35;min-height:6em"
    return f'<pre style="{style}">{html.escape(text)}</pre>'


def sliders(vocab_size: int, layout: Mapping[str, Any] = SLIDING) -> dict[str, Any]:
    """Temperature, top-k and top-p, by the names of the settings."""
    return {
        "temperature": ipywidgets.FloatSlider(0.8, min=0, max=2, step=0.05, description="temperature", **layout),
        "top_k": ipywidgets.IntSlider(0, min=0, max=vocab_size, description="top-k (0: all)", **layout),
        "top_p": ipywidgets.FloatSlider(1.0, min=0.05, max=1, step=0.05, description="top-p (1: all)", **layout),
    }


# what a control says when its setting is off
OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "repetition_penalty": 1.0, "stop": "", "forbid": ""}


def settings_of(values: Mapping[str, Any]) -> dict[str, Any]:
    r"""What the controls say as `TextGenerator.stream` takes it: a setting that is off is None, `\n` is a newline.

    The prompt's field has several lines and needs no escapes.

    Raises:
        ValueError: the seed is not a whole number.
    """
    settings = {name: None if name in OFF and value == OFF[name] else value for name, value in values.items()}
    for name in ("stop", "forbid"):
        if settings.get(name):  # a field of one line has no other way to say it
            settings[name] = unescaped(settings[name])
    if "seed" in settings:
        settings["seed"] = _whole_number("seed", settings["seed"])
    return settings


def _whole_number(name: str, typed: str) -> int:
    """The number that was typed; a field for numbers would drop characters and take 1e3 for 13."""
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,1000}\s*", typed):
        raise ValueError(f"{name}: expected a whole number such as 7, got {typed!r}")
    return int(typed)


class WritingPanel(ControlPanel):
    """Controls of how to write, Generate and Stop, and the text as it comes.

    Args:
        generator: writes the text.
        controls: widgets by the names of the settings, with a prompt and a seed.

    Attributes:
        generator: as given.
        writer: holds the text.
        generate_button: begins a new text.
        stop_button: ends it.
        message: what went wrong, as HTML.
        output: the end of the text, as HTML.
        status: how much and how fast it was written, as HTML.
    """

    def __init__(self, generator: TextGenerator | None, controls: Mapping[str, Any]):
        self.generator = generator
        self.writer = Writer(self._show)
        self.generate_button = self._button("Generate", self.generate, "write a new text", button_style="primary")
        self.stop_button = self._button("Stop", self.stop, "end the text here", disabled=True)
        self.message = ipywidgets.HTML().add_class("t-message")
        # from the end upwards, which keeps the newest line in sight while it grows
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
        """What was written last, its prompt first."""
        return self.writer.text

    def settings(self) -> dict[str, Any]:
        """What the controls say, as `TextGenerator.stream` takes it."""
        return settings_of(self.values())

    def generate(self, _: Any = None) -> None:
        """Write a text into the view as it comes."""
        self._begin(self.writer.start)

    def stop(self, _: Any = None) -> None:
        """End the text where it is."""
        self.writer.stop()

    def wait(self, timeout: float | None = None) -> bool:
        """Return when nothing is written any more, True, or after `timeout` seconds, False."""
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
        """Bring the view up to date; called in the thread of the writer."""
        self.output.value = text_to_html(self.writer.text)
        self.status.value = self.status_to_html()
        if not self.writer.running:
            self._conclude()

    def _conclude(self) -> None:
        if self.writer.error:
            self.message.value = problem("Not generated:", self.writer.error)
        self._show_buttons(running=False)

    def status_to_html(self) -> str:
        """A line on how far and how fast the text grows; spoken by a screen reader when it is done."""
        writer = self.writer
        role = "" if writer.running else ' role="status"'
        return f"<p{role}>{'writing: ' * writer.running}{html.escape(', '.join(self.figures()))}</p>"

    def figures(self) -> list[str]:
        """What the status line tells."""
        characters = self.writer.characters
        figures = [f"{characters:,} character{'s' * (characters != 1)}"]
        return [*figures, f"{self.writer.speed:,.0f} per second"] if self.writer.speed else figures


class GenerationPanel(WritingPanel):
    """Prompt, temperature, top-k, top-p, length and seed, and the text that comes of them.

    Args:
        generator: writes the text.
    """

    def __init__(self, generator: TextGenerator):
        prompt = ipywidgets.Textarea("ROMEO:\n", description="prompt", rows=2, **WIDE)
        length = ipywidgets.IntSlider(300, min=0, max=2000, step=50, description="length", **SLIDING)
        seed = ipywidgets.Text("1", description="seed", **WIDE)
        controls = {"prompt": prompt, **sliders(generator.tokenizer.vocab_size), "length": length, "seed": seed}
        super().__init__(generator, controls)
