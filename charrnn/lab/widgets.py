"""Widgets of the course: thin views over the library's functions."""

import html
import time
from typing import Any

import ipywidgets

from charrnn.lab.texts import plot_streams, window_table
from charrnn.sampling import TextGenerator

SHOWN = 2000  # characters of a long text that the view keeps
REFRESH = 1 / 30  # seconds between two updates of the view; more often costs speed and shows nothing


def text_to_html(text: str) -> str:
    """Text as it is, in a box that wraps; of a long text its end."""
    text = text if len(text) <= SHOWN else "…" + text[-SHOWN:]
    return f'<pre style="white-space:pre-wrap;line-height:1.35;min-height:6em">{html.escape(text)}</pre>'


def message_to_html(message: str) -> str:
    """A sentence about what went wrong."""
    return f'<p role="alert"><b>Not generated:</b> {html.escape(message)}</p>'


class GenerationPanel:
    """Prompt, temperature, top-k, top-p, length and seed, and a button that generates.

    Args:
        generator: writes the text.

    Attributes:
        view: the widget.
        text: what was generated last.
        controls: the input widgets by name.
    """

    def __init__(self, generator: TextGenerator):
        self._generator = generator
        self.text = ""
        wide = {"style": {"description_width": "8em"}, "layout": {"width": "460px"}}
        sliding = wide | {"continuous_update": False}
        self.controls: dict[str, Any] = {
            "prompt": ipywidgets.Textarea("ROMEO:\n", description="prompt", rows=2, **wide),
            "temperature": ipywidgets.FloatSlider(0.8, min=0, max=2, step=0.05, description="temperature", **sliding),
            "top_k": ipywidgets.IntSlider(
                0, min=0, max=generator.tokenizer.vocab_size, description="top-k (0: all)", **sliding
            ),
            "top_p": ipywidgets.FloatSlider(1.0, min=0.05, max=1, step=0.05, description="top-p", **sliding),
            "length": ipywidgets.IntSlider(300, min=0, max=2000, step=50, description="length", **sliding),
            "seed": ipywidgets.IntText(1, description="seed", **wide),
        }
        for name, control in self.controls.items():
            control.add_class(f"t-{name}")
        self.button = ipywidgets.Button(description="Generate", button_style="primary", tooltip="Write a text")
        self.button.on_click(self.generate)
        self.output = ipywidgets.HTML(text_to_html("")).add_class("t-text")
        self.view = ipywidgets.VBox([*self.controls.values(), self.button, self.output])

    def settings(self) -> dict[str, Any]:
        """What the controls say, as `TextGenerator.generate` takes it."""
        values = {name: control.value for name, control in self.controls.items()}
        return values | {"top_k": values["top_k"] or None}

    def generate(self, _: Any = None) -> None:
        """Write a text into the view as it comes; a wrong setting is a sentence there."""
        self.text, shown = "", 0.0
        try:
            for piece in self._generator.stream(**self.settings()):
                self.text += piece
                if time.monotonic() - shown >= REFRESH:
                    self.output.value = text_to_html(self.text)
                    shown = time.monotonic()
        except ValueError as error:
            self.output.value = message_to_html(str(error))
        else:
            self.output.value = text_to_html(self.text)


class StreamsPanel:
    """Sliders for batch_size and seq_length over the picture of a text's streams; one window is marked.

    Args:
        text: a short one, of at least two characters.

    Attributes:
        view: the widget.
        controls: the sliders by name.
    """

    def __init__(self, text: str):
        self._text = text
        wide = {"style": {"description_width": "8em"}, "layout": {"width": "460px"}, "continuous_update": False}
        self.controls = {
            "batch_size": ipywidgets.IntSlider(4, min=1, max=8, description="batch_size", **wide),
            "seq_length": ipywidgets.IntSlider(10, min=1, max=24, description="seq_length", **wide),
            "window": ipywidgets.IntSlider(1, min=0, max=12, description="window", **wide),
            "epoch": ipywidgets.IntSlider(0, min=0, max=5, description="epoch", **wide),
        }
        for name, control in self.controls.items():
            control.add_class(f"t-{name}")
            control.observe(self._draw, names="value")
        self.image = ipywidgets.Image(format="png", layout={"max_width": "100%"})
        self.words = ipywidgets.HTML().add_class("t-streams")
        self.view = ipywidgets.VBox([*self.controls.values(), self.image, self.words])
        self._draw()

    def _draw(self, _: Any = None) -> None:
        values = {name: control.value for name, control in self.controls.items()}
        self.image.value = plot_streams(self._text, **values).png()
        self.words.value = text_to_html(window_table(self._text, **values))
