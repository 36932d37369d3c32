"""The common parts of the panels: controls, a figure or a message, work in a thread."""

import ast
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ipywidgets
import pytest

from charrnn import lab
from charrnn.errors import DivergedError
from charrnn.lab.figures.base import new_figure
from charrnn.lab.panels.base import ControlPanel, FigureBox, Panel, problem, run, script
from charrnn.lab.panels.worker import Worker


class Bars(Panel):
    def __init__(self):
        super().__init__({"height": ipywidgets.IntSlider(2, min=0, max=9, description="height")})

    def make_figure(self, height):
        if height == 0:
            raise ValueError("height: expected at least 1 <bar>, got 0")
        if height == 9:
            raise KeyError("nine")
        figure, axes = new_figure(2, 1)
        axes.bar([0], [height])
        return lab.CaptionedFigure(figure, "One bar & its height", f"{height}.")


def test_a_panel_draws_what_its_controls_say():
    panel = Bars()
    first = panel.image.value
    assert '<img alt="One bar &amp; its height" src="data:image/png;base64,' in first
    assert "</figure><p>2.</p>" in first
    assert panel.words.value == ""
    panel.controls["height"].value = 3
    assert panel.image.value == panel.make_figure(height=3).to_html(folded=False) != first
    assert "t-height" in panel.controls["height"]._dom_classes
    assert panel.values() == {"height": 3}


def test_what_a_panel_does_not_accept_is_a_sentence_in_the_place_of_the_figure():
    panel = Bars()
    panel.controls["height"].value = 0
    assert panel.words.value == ('<p role="alert"><b>Not drawn:</b> height: expected at least 1 &lt;bar&gt;, got 0</p>')
    assert panel.image.layout.display == "none"
    panel.controls["height"].value = 1
    assert "alert" not in panel.words.value
    assert panel.image.layout.display is None


def test_a_mistake_in_the_program_is_shown_and_not_swallowed():
    panel = Bars()
    with pytest.raises(KeyError, match="nine"):
        panel.controls["height"].value = 9
    assert "an error in the program, KeyError: &#x27;nine&#x27;" in panel.words.value
    assert "in make_figure" in panel.words.value  # where it came from


def test_two_threads_never_draw_at_once():
    both, drawn = threading.Barrier(2), []

    def draw():
        try:
            both.wait(0.2)
            drawn.append("together")
        except threading.BrokenBarrierError:
            drawn.append("alone")
        return Bars.make_figure(None, 1)

    with ThreadPoolExecutor(2) as pool:
        for box in (FigureBox(), FigureBox()):
            pool.submit(box.show, draw)
    assert drawn == ["alone", "alone"]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("top_k: expected <1>"), "top_k: expected &lt;1&gt;</p>"),
        (DivergedError("it diverged"), "it diverged</p>"),
        (OSError(13, "Permission denied", "/there"), "/there: Permission denied</p>"),
        (OSError(28, "No space left"), "</b> No space left</p>"),
        (RuntimeError("oh"), "an error in the program, RuntimeError: oh</p><details>"),
    ],
)
def test_a_problem_is_a_sentence(error, sentence):
    words = problem("Not done:", error)
    assert words.startswith('<p role="alert"><b>Not done:</b> ')
    assert sentence in words


def test_the_names_of_sliders_come_with_every_panel():
    *_, naming, _ = ControlPanel({"speed": ipywidgets.IntSlider()}).view.children
    assert "aria-label" in naming.outputs[0]["data"]["application/javascript"]


def test_a_panel_whose_kernel_was_restarted_says_so():
    """Check the CSS rule; a test in JupyterLab checks that the browser applies it."""
    view = ControlPanel({"speed": ipywidgets.IntSlider()}).view
    assert "t-panel" in view._dom_classes
    assert view.children[-1].value.startswith("<style>\n.t-panel.jupyter-widgets-disconnected::before {")


def test_a_script_runs_each_time_it_is_asked_to():
    output = script("one()")
    assert output.outputs[0]["data"] == {"application/javascript": "one()", "text/plain": ""}
    seen = []
    output.observe(lambda change: seen.append(change["new"]), names="outputs")
    run(output, "one()")
    assert len(seen) == 2  # emptied, then filled: the same outputs again would not reach the page


def test_panels_use_nothing_that_ipywidgets_7_7_lacks():
    """Colab has that version. It lacks these classes and traits, which are new in 8.0."""
    new = {"TagsInput", "ColorsInput", "FloatsInput", "IntsInput", "TimePicker", "DatetimePicker", "Stack"}
    new |= {"NaiveDatetimePicker", "tabbable", "description_allow_html", "titles", "tooltip"}
    for path in Path(lab.__file__).parent.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and ast.unparse(call.func).startswith("ipywidgets."):
                used = {ast.unparse(call.func).removeprefix("ipywidgets."), *(word.arg for word in call.keywords)}
                allowed = {"tooltip"} if "Button" in used else set()  # the others got theirs in 8.0
                assert not used & (new - allowed), f"{path}:{call.lineno}"


# ------------------------------------------------------------------------------------------------------- worker


def test_work_goes_on_until_it_is_asked_to_stop():
    worker, done = Worker(), []
    assert worker.wait(0)
    worker.start(lambda stopping: stopping.wait(60), lambda: done.append(worker.running))
    assert worker.running
    worker.start(lambda _: done.append("never"))  # one at a time
    assert not worker.wait(0.01)
    worker.stop()
    assert worker.wait(20)
    assert done == [False]
    assert worker.error is None


def test_what_work_raises_is_kept_until_the_next():
    worker, done = Worker(), []

    def broken(_: threading.Event) -> None:
        raise RuntimeError("oh")

    worker.start(broken, lambda: done.append(str(worker.error)))
    assert worker.wait(20)
    assert done == ["oh"]
    worker.start(lambda stopping: done.append(stopping.is_set()))
    assert worker.wait(20)
    assert done == ["oh", False]
    assert worker.error is None


def test_work_does_not_hold_up_what_started_it():
    worker, started = Worker(), time.monotonic()
    worker.start(lambda stopping: stopping.wait(60))
    assert time.monotonic() - started < 30
    worker.stop()
    assert worker.wait(20)
