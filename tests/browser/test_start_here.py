"""Notebook 00 in JupyterLab: it trains a network, and its panel writes."""

import re

import pytest
from playwright.sync_api import expect

from tests.browser.driving import PATIENCE, Widget, in_the_kernel, notebook, outputs_of


@pytest.fixture(scope="module")
def course(lab):
    with notebook(lab, "notebooks/00_start_here.ipynb") as panel:
        yield panel


@pytest.fixture(scope="module")
def writer(course, everything):
    return Widget(outputs_of(course, "panel = lab.GenerationPanel"), everything)


def test_the_network_has_learned(course):
    expect(outputs_of(course, "assert losses == sorted(losses, reverse=True)")).to_contain_text("mine has learned")
    assert outputs_of(course, "plot = lab.LivePlot").locator("img").count() == 1


def test_a_figure_has_an_alt_text_and_a_description(course):
    output = outputs_of(course, "lab.plot_losses(plot.records")
    expect(output.get_by_role("img", name=re.compile("^Line chart of the loss over"))).to_be_visible()
    description = output.locator("details")
    expect(description).to_contain_text("a model that knows nothing has 4.25")
    expect(description).not_to_have_attribute("open", "")
    output.locator("summary").press("Enter")
    expect(description).to_have_attribute("open", "")


def test_sliders_by_keyboard(writer):
    assert writer.press("temperature", "Home") == 0
    assert writer.press("temperature", "ArrowRight", "ArrowRight") == pytest.approx(0.1)
    assert writer.press("temperature", "ArrowLeft") == pytest.approx(0.05)
    assert writer.press("temperature", "End") == 2
    assert writer.press("top_k", "End") == 70
    assert writer.press("top_k", "Home", "ArrowUp") == 1


def test_sliders_by_mouse(writer):
    assert writer.drag("temperature", 0.0) == 0
    assert writer.drag("temperature", 1.0) == 2
    assert writer.drag("temperature", 0.4) == pytest.approx(0.8, abs=0.05)
    assert writer.drag("top_k", 0.0) == 0


def test_it_writes_what_the_controls_say(writer):
    writer.write("prompt", "KING HENRY:\n")
    writer.press("length", "Home", "ArrowRight", "ArrowRight")
    first = writer.generate()
    assert first.startswith("KING HENRY:\n")
    assert len(first) == len("KING HENRY:\n") + 100
    assert writer.generate() == first
    writer.write("seed", "2")
    assert writer.generate() != first


def test_a_wrong_prompt_is_a_sentence(writer):
    writer.write("prompt", "Zürich")
    writer.generate()
    expect(writer.message.get_by_role("alert")).to_contain_text("'ü' (U+00FC) at position 1")
    writer.write("prompt", "ROMEO:\n")
    assert writer.generate().startswith("ROMEO:\n")
    expect(writer.message).to_have_text("")


def test_stop_in_mid_stream(lab, writer, measured):
    length = "panel.controls['length']"
    in_the_kernel(lab, f"{length}.max = {length}.value = 10_000_000")  # too many to finish during the test
    writer.settle()
    seconds = writer.stop_in_mid_stream()
    measured(f"notebook 00: {seconds:.2f} s from the click on Stop to the last character")
    assert seconds < 5


def test_a_seed_that_is_no_number_is_a_sentence(writer):
    for typed in ("1e3", "2.7"):
        writer.write("seed", typed)
        writer.click("Generate")
        expect(writer.message.get_by_role("alert")).to_contain_text(f"expected a whole number such as 7, got '{typed}'")
    writer.write("seed", "1")


def test_a_panel_whose_kernel_was_restarted_says_so(lab, writer):
    said = "element => getComputedStyle(element, '::before').content"
    panel = writer.root.locator(".t-panel")
    assert panel.evaluate(said) == "none"
    lab.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    expect(panel).to_have_class(re.compile("disconnected"), timeout=PATIENCE)
    assert "no longer works because its kernel was restarted. Run the cell again." in panel.evaluate(said)
