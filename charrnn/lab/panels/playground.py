"""The playground: choose a network, write with it, and see its predictions while it writes."""

import html
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import ipywidgets

from charrnn.atomic import write_atomically
from charrnn.checkpoint import holds_run
from charrnn.generation.generator import TextGenerator, load_model
from charrnn.lab.figures.base import CaptionedFigure
from charrnn.lab.figures.sampling import plot_distribution
from charrnn.lab.figures.surprisal import surprisal_to_html
from charrnn.lab.panels.base import NARROW, FigureBox, alert, problem, run
from charrnn.lab.panels.generation import SLIDERS, WritingPanel, settings_of, sliders
from charrnn.lab.panels.worker import Worker
from charrnn.lab.probes.surprisal import surprisal, tokens_of

SHIPPED = ("shakespeare-lstm", "shakespeare-rnn")  # in the order of the menu

CONTEXT = 1000  # characters that the views read again; a network hardly remembers more

MARKED = 300  # characters at the end whose surprisal is shown

PAUSE = 0.4  # the minimum number of seconds between two updates of the views

NO_TEXT = "expected a text, got none; press Generate first"

UNSEEN = ("length", "seed", "stop")  # settings that do not change the next character

WRAPPING = {"flex_flow": "row wrap"}  # side by side if there is room, else one below the other

HALF = {"style": {"description_width": "9.5em"}, "layout": {"width": "430px", **NARROW}}

WHOLE = HALF | {"layout": {"width": "864px", **NARROW}}

SLIDER = HALF | {"continuous_update": False}


def find_runs(*folders: str | Path) -> list[Path]:
    """Find every checkpoint and run in `folders` (or a folder itself): the shipped first, then the newest."""

    def rank(path: Path) -> tuple[int, float]:
        shipped = SHIPPED.index(path.name) if path.name in SHIPPED else len(SHIPPED)
        return shipped, -path.stat().st_mtime

    return sorted((path for folder in dict.fromkeys(map(Path, folders)) for path in _runs(folder)), key=rank)


def _runs(folder: Path) -> Iterator[Path]:
    if holds_run(folder):
        yield folder
    elif folder.is_dir():
        # a name that starts with a dot is left over from a crash
        yield from (path for path in folder.iterdir() if holds_run(path) and not path.name.startswith("."))


def save_text(text: str, folder: str | Path) -> Path:
    """Write `text` atomically to a new file `sample-<time>.txt` in `folder`.

    Raises:
        ValueError: there is no text.
        OSError: it cannot be written.
    """
    if not text:
        raise ValueError(NO_TEXT)
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"sample-{datetime.now():%Y%m%d-%H%M%S-%f}.txt"
    write_atomically(path, text.encode())
    return path


def copy_script(text: str) -> str:
    """Write JavaScript that copies `text` to the clipboard and reports whether the browser allowed it.

    JupyterLab and Voilà run it in an Output, with an `element` to write in, and again when the page is reloaded. So it
    changes the clipboard only right after a click.
    """
    return """
const text = %s;
const say = (words) => {
  const line = document.createElement("p");
  line.setAttribute("role", "status");
  line.textContent = words;
  element.replaceChildren(line);
};
const refused = () => say("The browser did not copy it. Open the text below and copy it by hand.");
if (navigator.clipboard && navigator.userActivation?.isActive !== false) {
  navigator.clipboard.writeText(text).then(() => say("Copied " + [...text].length + " characters."), refused);
} else {
  refused();
}
""" % json.dumps(text).replace("<", "\\u003c")  # noqa: UP031 (JavaScript needs the braces)


def copy_by_hand(text: str) -> str:
    """Show `text` in a folded box to select it from, for browsers that refuse to copy."""
    look = 'rows="6" style="width:min(100%,864px);box-sizing:border-box" aria-label="the text, to be copied"'
    box = f"<textarea readonly {look}>\n{html.escape(text)}</textarea>"  # HTML drops the first newline in it
    return f"<details><summary>Copy it by hand</summary>{box}</details>"


def surprisal_at_the_end(generator: TextGenerator, text: str) -> tuple[list[str], list[float]]:
    """Find the last tokens of `text`, at most 300 characters, and their surprisal in bits."""
    text = text[-CONTEXT:]
    tokens, bits = tokens_of(generator, text), surprisal(generator, text).tolist()
    first, length = len(tokens), 0
    while first and length + len(tokens[first - 1]) <= MARKED:
        first -= 1
        length += len(tokens[first])
    return tokens[first:], bits[first:]


class Playground(WritingPanel):
    """Controls for every sampling setting, over a growing text and the predictions of the network.

    Args:
        *folders: folders with checkpoints.
        save_to: the folder for saved texts.

    Attributes:
        copied: the result of the Copy button.
        by_hand: the text to copy, in a box, as HTML.
        box: the distribution of the next character.
        marked: the end of the text with its surprisal, as HTML.
    """

    def __init__(self, *folders: str | Path, save_to: str | Path = "."):
        self._folders, self._save_to = folders or ("checkpoints",), save_to
        self._loaded: str | None = None
        self._watcher = Worker()
        self._cost = ""
        super().__init__(None, _controls())
        self._unseen = [self.controls[name] for name in UNSEEN]
        self.continue_button = self._button("Continue", self.go_on, "go on from the text so far", disabled=True)
        self.save_button = self._button("Save", self.save, "write the text to a file")
        self.copy_button = self._button("Copy", self.copy, "copy the whole text")
        self.refresh_button = self._button("Refresh", self.refresh, "look for checkpoints again")
        self.new_seed_button = self._button("New seed", self.new_seed, "choose a new seed at random")
        self.copied, self.by_hand = ipywidgets.Output().add_class("t-copied"), ipywidgets.HTML()
        self.box, self.marked = FigureBox(), ipywidgets.HTML().add_class("t-surprisal")
        # plain buttons: unlike tabs and folds, the keyboard reaches them everywhere
        self.views = ipywidgets.ToggleButtons(options=["next character", "surprisal"])
        self.views.add_class("t-views").observe(lambda _: self.look(), names="value")
        self._arrange()
        self.refresh()

    def _arrange(self) -> None:
        self.view.add_class("t-playground")
        self.buttons.children += (self.continue_button, self.save_button, self.copy_button)
        rest = dict(self.controls)
        chooser = ipywidgets.HBox([rest.pop("checkpoint"), self.refresh_button], layout=WRAPPING)
        prompt = rest.pop("prompt")
        rest["seed"] = ipywidgets.HBox([rest["seed"], self.new_seed_button], layout=WRAPPING)
        columns = ipywidgets.HBox(list(rest.values()), layout=WRAPPING)
        text = self.message, self.output, self.status, self.copied, self.by_hand
        self.arrange(chooser, prompt, columns, self.buttons, *text, self.views, self.box.view, self.marked)

    def settings(self) -> dict[str, Any]:
        """Give the values of the controls as settings of `TextGenerator.stream`; a length of 0 is endless."""
        values = self.values()
        del values["checkpoint"]
        return settings_of(values | {"length": values["length"] or None})

    # -------------------------------------------------------------------------------------------------- the network

    def refresh(self, _: Any = None) -> None:
        """Look for checkpoints again, and load the chosen one, or the first if it is gone."""
        chooser, runs = self.controls["checkpoint"], find_runs(*self._folders)
        names = [path.name for path in runs]
        options = [(path.name if names.count(path.name) == 1 else str(path), str(path)) for path in runs]
        places = [place for _, place in options]
        chosen = chooser.value if chooser.value in places else next(iter(places), None)
        chooser.unobserve(self.draw, names="value")  # setting the options would select the first of them
        chooser.options, chooser.value = options, chosen
        chooser.observe(self.draw, names="value")
        if chosen is None:
            self.message.value = alert("Nothing to play with:", self._missing())
        else:
            self._load(chosen)

    def _missing(self) -> str:
        folders = ", ".join(str(folder) for folder in self._folders)
        return f"expected a checkpoint in {folders}, found none; train a network there, then press Refresh"

    def _load(self, path: str) -> None:
        """Load the network at `path`; on an error keep the current one and show the message."""
        try:
            self.generator = load_model(path)
        except Exception as error:
            self.controls["checkpoint"].value = self._loaded
            self.message.value = problem("Not loaded:", error)
            return
        self._loaded, self.message.value = path, ""
        self.controls["top_k"].max = self.generator.tokenizer.vocab_size
        self.look()

    # ----------------------------------------------------------------------------------------------------- the text

    def go_on(self, _: Any = None) -> None:
        """Continue the text with the current settings."""
        self._begin(self.writer.go_on)

    def _begin(self, start: Callable[[TextGenerator, Mapping[str, Any]], None]) -> None:
        if self.generator is None:
            self.message.value = alert("Not generated:", self._missing())
            return
        if self.writer.running:
            return

        def watched(generator: TextGenerator, settings: Mapping[str, Any]) -> None:
            self.copied.outputs, self.by_hand.value, self._cost = (), "", ""
            self._watcher = Worker()  # the old one may still be updating the views
            self._watcher.start(self._watch)
            start(generator, settings)

        super()._begin(watched)

    def _show_buttons(self, running: bool) -> None:
        super()._show_buttons(running)
        self.continue_button.disabled = running or not self.text

    def _conclude(self) -> None:
        watcher = self._watcher
        watcher.stop()
        super()._conclude()
        watcher.wait()
        if not self.writer.running:
            self.look()

    def new_seed(self, _: Any = None) -> None:
        """Choose a new seed at random."""
        self.controls["seed"].value = str(secrets.randbelow(1_000_000))  # does not touch the state of `random`

    def save(self, _: Any = None) -> None:
        """Save the text to a file and show its path."""
        try:
            path = save_text(self.text, self._save_to)
        except (OSError, ValueError) as error:
            self.message.value = problem("Not saved:", error)
        else:
            self.message.value = f'<p role="status">Saved as {html.escape(str(path))}</p>'

    def copy(self, _: Any = None) -> None:
        """Copy the whole text to the browser's clipboard, and offer it in a box."""
        if not self.text:
            self.message.value = alert("Not copied:", NO_TEXT)
            return
        self.by_hand.value = copy_by_hand(self.text)
        run(self.copied, copy_script(self.text))

    # ---------------------------------------------------------------------------------------------------- the views

    def draw(self, change: Any = None) -> None:
        """Follow a change of a control: load another network, or update the views."""
        if change.owner is self.controls["checkpoint"]:
            if change.new != self._loaded:
                self._load(change.new)
        elif change.owner not in self._unseen and not self.writer.running:
            self.look()

    def _watch(self, stopping: threading.Event) -> None:
        """Update the views while the text grows, for at most a fifth of the time."""
        pause = PAUSE
        while not stopping.wait(pause):
            began = time.monotonic()
            self.look()
            pause = max(PAUSE, 4 * (time.monotonic() - began))

    def look(self) -> None:
        """Update the views of the text so far, or of the prompt."""
        bars = self.views.value == "next character"
        self.box.view.layout.display = None if bars else "none"
        self.marked.layout.display = "none" if bars else None
        if self.generator is None:
            return
        if bars:
            self.box.show(self._next_character)
        self._mark()
        self.status.value = self.status_to_html()

    def _next_character(self) -> CaptionedFigure:
        values = self.values()
        for name in ("checkpoint", *UNSEEN):
            del values[name]
        settings = settings_of(values)
        prompt = settings.pop("prompt")
        read, drawn = (self.text or prompt)[-CONTEXT:], min(self.writer.latest, CONTEXT)
        cut = len(read) - drawn
        return plot_distribution(self.generator, read[:cut], drawn=read[cut:], **settings)

    def _mark(self) -> None:
        read = self.text or self.controls["prompt"].value
        try:
            tokens, bits = surprisal_at_the_end(self.generator, read) if read else ([], [])
            marked = surprisal_to_html(tokens, bits) if tokens else "<p>There is no text yet.</p>"
        except Exception as error:
            marked, tokens = problem("Not read:", error), []
        self.marked.value = marked
        length = len("".join(tokens))
        over = f" over the last {length}" if length < len(self.text) else ""
        self._cost = f"{sum(bits) / length:.2f} bits per character{over}" if self.text and length else ""

    def figures(self) -> list[str]:
        """List the parts of the status line."""
        return super().figures() + [self._cost] * bool(self._cost)


def _controls() -> dict[str, Any]:
    """Make the controls by name; all except the first are settings of `TextGenerator.stream`."""
    prompt = ipywidgets.Textarea("ROMEO:\n", description="prompt", rows=3, continuous_update=False, **WHOLE)
    stop = ipywidgets.Text(
        description="stop after", placeholder="e.g. \\n\\n: an empty line", continuous_update=False, **HALF
    )
    forbid = ipywidgets.Text(description="never write", placeholder="e.g. eE", continuous_update=False, **HALF)
    return {
        "checkpoint": ipywidgets.Dropdown(description="checkpoint", **WHOLE),
        "prompt": prompt,
        **sliders(1, *SLIDERS, layout=SLIDER),
        "length": ipywidgets.IntSlider(500, min=0, max=5000, step=50, description="length (0: endless)", **SLIDER),
        "seed": ipywidgets.Text("1", description="seed", **HALF | {"layout": {"width": "274px"}}),
        "stop": stop.add_class("t-stop-string"),
        "forbid": forbid,
    }
