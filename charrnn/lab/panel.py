"""What the widgets of the course have in common: named controls over a picture and a sentence about it."""

import html
from collections.abc import Mapping
from typing import Any

import ipywidgets

from charrnn.lab.figures import Picture

WIDE = {"style": {"description_width": "8em"}, "layout": {"width": "460px"}}
SLIDING = WIDE | {"continuous_update": False}  # a picture for each place where the slider rests, not for those between


class Panel:
    """Controls whose values a subclass draws; when one of them changes, the picture follows.

    What a subclass does not accept it says with a ValueError, whose sentence then stands in the place of the picture.

    Args:
        controls: widgets by name; each name is that of an argument of `picture`.

    Attributes:
        view: the widget.
        controls: as given; the CSS class of each is its name after `t-`.
        image: the picture.
        words: its alt text, or the sentence about what is wrong.
    """

    def __init__(self, controls: Mapping[str, Any]):
        self.controls = dict(controls)
        self.image = ipywidgets.Image(format="png", layout={"max_width": "100%"})
        self.words = ipywidgets.HTML().add_class("t-words")
        self.view = ipywidgets.VBox([*self.controls.values(), self.image, self.words])
        for name, control in self.controls.items():
            control.add_class(f"t-{name}")
            control.observe(self.draw, names="value")
        self.draw()

    def picture(self, **values: Any) -> Picture:
        """What the controls' values look like.

        Raises:
            ValueError: there is no picture of them; its sentence says why.
        """
        raise NotImplementedError

    def draw(self, _: Any = None) -> None:
        """Show the picture of the present values, or the sentence."""
        try:
            picture = self.picture(**{name: control.value for name, control in self.controls.items()})
        except ValueError as error:
            self.image.layout.display = "none"
            self.words.value = alert("Not drawn:", str(error))
        else:
            self.image.value, self.image.layout.display = picture.png(), None
            self.words.value = f"<p>{html.escape(picture.alt)}</p>"


def alert(what: str, message: str) -> str:
    """A sentence about what went wrong, as HTML that a screen reader speaks."""
    return f'<p role="alert"><b>{html.escape(what)}</b> {html.escape(message)}</p>'
