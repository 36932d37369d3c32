"""The common parts of the panels: named controls, a figure with words, and error messages."""

import html
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets

from charrnn.errors import DivergedError
from charrnn.lab.figures.base import CaptionedFigure, course_style

NARROW = {"max_width": "calc(100% - 4px)"}  # no wider than the page, minus the margins of a widget

WIDE = {"style": {"description_width": "8em"}, "layout": {"width": "460px", **NARROW}}

SLIDING = WIDE | {"continuous_update": False}  # draw when the slider is released

FORESEEN = (ValueError, DivergedError)  # their messages need no traceback


class ControlPanel:
    """Named controls, and below them widgets in which a subclass shows their values.

    Args:
        controls: widgets by name.
        *below: widgets to show below the controls.

    Attributes:
        view: the widget.
        controls: as given; the CSS class of each is `t-` and its name.
    """

    def __init__(self, controls: Mapping[str, Any], *below: ipywidgets.Widget):
        self.controls = dict(controls)
        self.view = ipywidgets.VBox().add_class("t-panel")
        self.arrange(*self.controls.values(), *below)
        for name, control in self.controls.items():
            control.add_class(f"t-{name}")
            control.observe(self.draw, names="value")

    def arrange(self, *widgets: ipywidgets.Widget) -> None:
        """Put these widgets into the view, one below the other."""
        self.view.children = (*widgets, script(NAMING), ipywidgets.HTML(DISCONNECTED, layout={"display": "none"}))

    def values(self) -> dict[str, Any]:
        """Return the values of the controls by name."""
        return {name: control.value for name, control in self.controls.items()}

    def draw(self, change: Any = None) -> None:
        """Show the current values; called after each `change` of a control."""


class FigureBox:
    """A place for a figure and more words about it, or for an error message.

    Attributes:
        view: the widget.
        image: the figure with its caption and description, as HTML; hidden if there is none.
        words: the words or the message, as HTML.
    """

    def __init__(self) -> None:
        self.image = ipywidgets.HTML(layout={"max_width": "100%"}).add_class("t-figure")
        self.words = ipywidgets.HTML().add_class("t-words")
        self.view = ipywidgets.VBox([self.image, self.words])

    def show(self, draw: Callable[[], CaptionedFigure], words: Callable[[], str] = str) -> None:
        """Show the figure that `draw` returns and the HTML that `words` returns, or the error that one of them raises.

        An error that is not the user's is shown and raised again.
        """
        try:
            with course_style():
                image = draw().to_html(folded=False)
            self.words.value = words()
        except Exception as error:
            self.image.layout.display = "none"
            self.words.value = problem("Not drawn:", error)
            if not isinstance(error, FORESEEN):
                raise
        else:
            self.image.value, self.image.layout.display = image, None


class Panel(ControlPanel):
    """Controls whose values a subclass draws; when one of them changes, the figure follows.

    For values that it does not accept, a subclass raises a ValueError; its message then replaces the figure.

    Args:
        controls: widgets by name; each is named after an argument of `make_figure`.

    Attributes:
        image: the figure, as HTML.
        words: more words about it, or an error message, as HTML.
    """

    def __init__(self, controls: Mapping[str, Any]):
        self._box = FigureBox()
        self.image, self.words = self._box.image, self._box.words
        super().__init__(controls, self._box.view)
        self.draw()

    def make_figure(self, **values: Any) -> CaptionedFigure:
        """Draw the values of the controls.

        Raises:
            ValueError: they cannot be drawn; the message says why.
        """
        raise NotImplementedError

    def make_words(self, **values: Any) -> str:
        """Write more words about the figure, as HTML."""
        return ""

    def draw(self, change: Any = None) -> None:
        """Show the figure for the current values, or an error message."""
        values = self.values()
        self._box.show(lambda: self.make_figure(**values), lambda: self.make_words(**values))


# ------------------------------------------------------------------------------------------------- in the browser

# the handle and the number of a slider have no accessible name, so they get the text of its label
NAMING = """
const name = () => document.querySelectorAll(".widget-slider").forEach((slider) => {
  const words = slider.querySelector(".widget-label")?.textContent;
  slider.querySelectorAll(".noUi-handle, .ui-slider-handle").forEach((part) => part.setAttribute("aria-label", words));
  slider.querySelectorAll(".widget-readout").forEach((part) => {
    part.setAttribute("role", "textbox");
    part.setAttribute("aria-label", words + ", as a number");
  });
});
[0, 300, 1000, 3000].forEach((wait) => setTimeout(name, wait)); // widgets appear one after another
"""


# Jupyter's widgets get this class when their kernel is restarted or crashes, but not when it is shut down.
DISCONNECTED = """<style>
.t-panel.jupyter-widgets-disconnected::before {
  content: "This panel no longer works because its kernel was restarted. Run the cell again.";
  align-self: stretch;
  padding: 4px 8px;
  font: bold 14px sans-serif;
  color: #a00000;
  background: #ffffff;
  border: 1px solid #a00000;
}
.t-panel.jupyter-widgets-disconnected > * { opacity: 0.5; }
.t-panel .jupyter-widgets-disconnected::before { display: none; } /* hide the broken-link icon of each widget */
</style>"""


def script(code: str) -> ipywidgets.Output:
    """Make a widget that runs JavaScript where it is shown, in JupyterLab and in Voilà."""
    output = ipywidgets.Output()
    run(output, code)
    return output


def run(output: ipywidgets.Output, code: str) -> None:
    """Run JavaScript in an Output; the script may write into `element`."""
    bundle = {"application/javascript": code, "text/plain": ""}
    output.outputs = ()  # setting the same outputs again would do nothing
    output.outputs = ({"output_type": "display_data", "data": bundle, "metadata": {}},)


# --------------------------------------------------------------------------------------------------------- errors


def alert(what: str, message: str) -> str:
    """Write an error message as HTML that a screen reader announces."""
    return f'<p role="alert"><b>{html.escape(what)}</b> {html.escape(message)}</p>'


def problem(what: str, error: BaseException) -> str:
    """Write the message of `error` as HTML; if it is not the user's error, add a folded traceback."""
    if isinstance(error, OSError) and error.strerror:
        return alert(what, f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    if isinstance(error, FORESEEN):
        return alert(what, str(error))
    trace = "".join(traceback.format_exception(error))
    return (
        f"{alert(what, f'an error in the program, {type(error).__name__}: {error}')}"
        f"<details><summary>Traceback</summary><pre>{html.escape(trace)}</pre></details>"
    )
