"""Drive a notebook and its widgets in a browser: by keyboard, by mouse, and by reading."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Locator, Page, expect

from tests.browser.watching import Watch

PATIENCE = 60_000  # milliseconds for a computation in a kernel

# JupyterLab silently drops "Run All" until the kernel answers, so wait for it; resolves when all cells have run
OPEN = """async path => {
    const app = window.jupyterapp;
    await app.restored;
    const notebook = await app.commands.execute('docmanager:open', {path});
    app.shell.activateById(notebook.id);
    await notebook.context.ready;
    await notebook.sessionContext.ready;
    await notebook.sessionContext.session.kernel.info;
    await app.commands.execute('notebook:run-all-cells');
    const code = Array.from(notebook.content.model.sharedModel.cells).filter(cell => cell.cell_type == 'code');
    return code.map(cell => ({source: cell.source, count: cell.execution_count, outputs: cell.getOutputs()}));
}"""
CLOSE = """async () => {
    const notebook = window.jupyterapp.shell.currentWidget;
    await notebook.sessionContext.shutdown();
    notebook.context.model.dirty = false;  // else a dialog asks
    notebook.close();
}"""

# record in window.told when Stop was pressed, when the text last changed, and whether writing has ended
LISTEN = """root => {
    const told = window.told = {stopped: 0, changed: 0, ended: false};
    const button = name => Array.from(root.querySelectorAll('button')).find(each => each.textContent.trim() == name);
    const observe = (part, options, tell) => new MutationObserver(tell).observe(part, options);
    button('Stop').addEventListener('click', () => { told.stopped = performance.now(); }, {capture: true, once: true});
    observe(root.querySelector('.t-text'), {childList: true, subtree: true, characterData: true},
            () => { told.changed = performance.now(); });
    observe(button('Generate'), {attributeFilter: ['disabled']}, () => { told.ended = !button('Generate').disabled; });
}"""


@contextmanager
def notebook(page: Page, path: str) -> Iterator[Locator]:
    """Open a notebook in JupyterLab, run all its cells without an error, and end its kernel afterwards."""
    page.bring_to_front()  # a page in the background draws only once a second
    try:
        cells = page.evaluate(OPEN, path)
        for cell in cells:
            problems = [output for output in cell["outputs"] if is_problem(output)]
            assert not problems, f"{path}, in the cell\n{cell['source']}\n{problems}"
        assert [cell["count"] for cell in cells] == list(range(1, len(cells) + 1)), f"{path}: cells that did not run"
        yield page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
    finally:
        page.evaluate(CLOSE)


def is_problem(output: dict) -> bool:
    return output["output_type"] == "error" or (output.get("name") == "stderr" and "Traceback" in str(output["text"]))


def outputs_of(panel: Locator, code: str) -> Locator:
    """Find the output of the cell whose source contains this line of code."""
    return panel.locator(".jp-CodeCell", has_text=code).locator(".jp-OutputArea-output").first


class Widget:
    """One of the course's widgets: controls of the class `t-<name>`, buttons, text, messages.

    Args:
        root: what the widget is found in, and nothing else of the kind.
        watch: knows when a kernel has dealt with what was done.
    """

    def __init__(self, root: Locator, watch: Watch):
        self.root = root
        self.page = root.page
        self._watch = watch

    def settle(self) -> None:
        """Wait until the kernel has handled all actions."""
        self._watch.settle(self.page)

    def control(self, name: str) -> Locator:
        return self.root.locator(f".t-{name}")

    def handle(self, name: str) -> Locator:
        return self.control(name).get_by_role("slider")

    def value(self, name: str) -> float:
        """Read the value of a slider."""
        return float(self.control(name).locator(".widget-readout").inner_text().replace(",", "").replace("−", "-"))

    def press(self, name: str, *keys: str) -> float:
        """Focus a slider, press keys, and read its value."""
        self.handle(name).focus()
        for key in keys:
            self.page.keyboard.press(key)
        self.settle()
        return self.value(name)

    def drag(self, name: str, place: float) -> float:
        """Drag a slider's handle in ten steps to a place, from 0 (left) to 1 (right), and read its value."""
        handle, base = self.handle(name), self.control(name).locator(".noUi-base")
        handle.scroll_into_view_if_needed()
        grip, track = handle.bounding_box(), base.bounding_box()
        y = grip["y"] + grip["height"] / 2
        self.page.mouse.move(grip["x"] + grip["width"] / 2, y)
        self.page.mouse.down()
        self.page.mouse.move(track["x"] + place * track["width"], y, steps=10)
        self.page.mouse.up()
        self.settle()
        return self.value(name)

    def write(self, name: str, text: str) -> None:
        """Replace the text of a box, and leave the box."""
        box = self.control(name).locator("textarea, input").first
        box.fill(text)
        box.blur()
        self.settle()

    def choose(self, name: str, label: str) -> None:
        self.control(name).locator("select").select_option(label=label)
        self.settle()

    def button(self, name: str) -> Locator:
        return self.root.get_by_role("button", name=re.compile(rf"^{name}\b"))

    @property
    def text(self) -> Locator:
        return self.root.locator(".t-text pre")

    @property
    def message(self) -> Locator:
        """The message of a panel that writes."""
        return self.root.locator(".t-message")

    @property
    def figure(self) -> Locator:
        """The figure, with its caption and description."""
        return self.root.locator(".t-figure").last

    def click(self, name: str) -> None:
        self.button(name).click()
        self.settle()

    def generate(self) -> str:
        """Press Generate, wait for the end of the text, and read it."""
        self.root.evaluate(LISTEN)
        self.button("Generate").click()
        return self.written()

    def written(self) -> str:
        """Wait for the end of the writing begun since `LISTEN`, and read the text."""
        self.page.wait_for_function("window.told.ended", timeout=PATIENCE)
        self.settle()
        return self.text.text_content()

    def stop_in_mid_stream(self) -> float:
        """Generate an endless text, press Stop, and check that it ends there.

        Returns:
            Seconds from the click to the last change of the text.
        """
        self.root.evaluate(LISTEN)
        before = self.text.text_content()
        self.button("Generate").click()
        changed(self.text, changed(self.text, before))  # it grows
        self.button("Stop").click()
        text = self.written()
        self.page.wait_for_timeout(500)
        assert self.text.text_content() == text, "the text went on after Stop"
        return self.page.evaluate("Math.max(0, window.told.changed - window.told.stopped) / 1000")


def changed(locator: Locator, before: str) -> str:
    """Wait until a text changes, and return it."""
    expect(locator).not_to_have_text(before, timeout=PATIENCE)
    return locator.text_content()


def in_the_kernel(page: Page, code: str) -> None:
    """Run code in the kernel of the notebook that is open in JupyterLab."""
    script = """async code => {
        const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
        const reply = await kernel.requestExecute({code}).done;
        return reply.content.status;
    }"""
    assert page.evaluate(script, code) == "ok", code
