"""Notebook 06 in JupyterLab: its three widgets follow the keyboard and the mouse."""

import pytest
from playwright.sync_api import expect

from tests.browser.driving import Widget, changed, notebook, outputs_of


@pytest.fixture(scope="module")
def course(lab):
    with notebook(lab, "notebooks/06_sampling.ipynb") as panel:
        yield panel


# ---------------------------------------------------------------------------------------------------- distribution


@pytest.fixture(scope="module")
def bars(course, everything):
    return Widget(outputs_of(course, "panel = lab.DistributionPanel"), everything)


def test_bars_by_keyboard(bars):
    before = bars.figure.text_content()
    assert bars.press("temperature", "Home") == 0
    before = changed(bars.figure, before)
    assert "entropy 0.00 bits; kept are 1 of 70" in before
    assert bars.press("temperature", *["PageUp"] * 2) > 0
    before = changed(bars.figure, before)
    assert bars.press("top_k", "Home", *["ArrowRight"] * 3) == 3
    expect(bars.figure).to_contain_text("kept are 3 of 70")
    assert bars.press("top_k", "Home") == 0
    expect(bars.figure).to_contain_text("kept are 70 of 70")


@pytest.mark.parametrize(("name", "off", "cut"), [("top_p", 1.0, 0.5), ("min_p", 0.0, 0.4), ("typical_p", 1.0, 0.3)])
def test_bars_by_mouse(bars, name, off, cut):
    expect(bars.figure).to_contain_text("kept are 70 of 70")
    low = 0.0 if name == "min_p" else 0.05
    assert bars.drag(name, (cut - low) / (1 - low)) == pytest.approx(cut, abs=0.05)
    expect(bars.figure).not_to_contain_text("kept are 70 of 70")
    assert bars.drag(name, off) == off
    expect(bars.figure).to_contain_text("kept are 70 of 70")


def test_bars_after_another_prompt(bars, screenshot):
    bars.press("temperature", "Home", *["ArrowRight"] * 14)
    bars.write("prompt", "The q")
    expect(bars.figure).to_contain_text("u is the likeliest")
    bars.write("prompt", "naïve")
    expect(bars.root.get_by_role("alert")).to_contain_text("'ï' (U+00EF)")
    expect(bars.root.locator("img")).to_be_hidden()
    bars.write("prompt", "My lord, I ")
    bars.press("top_k", "Home", *["ArrowRight"] * 8)
    expect(bars.figure).to_contain_text("kept are 8 of 70")
    expect(bars.root.locator("img")).to_be_visible()
    screenshot(bars.root, "distribution")


# ------------------------------------------------------------------------------------------------------- surprisal


@pytest.fixture(scope="module")
def reader(course, everything):
    return Widget(outputs_of(course, "reader = lab.SurprisalPanel"), everything)


def test_surprisal_follows_what_is_typed(reader):
    said = reader.control("surprisal")
    before = said.text_content()
    reader.write("text", "To be")
    assert changed(said, before).startswith("5 characters with ")
    reader.control("text").locator("textarea").press_sequentially(" or")
    reader.page.keyboard.press("Tab")
    reader.settle()
    expect(said).to_contain_text("8 characters with ")
    reader.write("text", "To be…")
    expect(said.get_by_role("alert")).to_contain_text("'…' (U+2026) at position 5")
    reader.write("text", "To be.")
    expect(said).to_contain_text("6 characters with ")


# --------------------------------------------------------------------------------------------------------- chooser


@pytest.fixture(scope="module")
def chooser(course, everything):
    return Widget(outputs_of(course, "chooser = lab.ChooserPanel"), everything)


def test_choose_by_keyboard_and_by_mouse(chooser):
    text = chooser.root.locator(".t-words pre")
    expect(text).to_have_text("My lord, I ")
    offered = chooser.root.locator(".t-choice-0")
    first = offered.text_content()
    offered.focus()
    chooser.page.keyboard.press("Enter")
    chooser.settle()
    expect(text).to_have_text(f"My lord, I {first[0]}")
    chooser.root.locator(".t-choice-1").click()
    chooser.settle()
    chooser.click("let the model choose")
    expect(chooser.root.locator(".t-words").first).to_contain_text("3 ")
    for _ in range(3):
        chooser.click("undo")
    expect(text).to_have_text("My lord, I ")
    expect(chooser.button("undo")).to_be_disabled()


def test_more_to_choose_from(chooser):
    before = chooser.figure.text_content()
    assert chooser.press("count", "End") == 10
    changed(chooser.figure, before)
    assert chooser.root.locator("[class*=t-choice-]:visible").count() == 10
    assert chooser.drag("count", 0.0) == 1
    expect(chooser.root.locator("[class*=t-choice-]:visible")).to_have_count(1)


def test_choose_after_a_wrong_prompt(chooser):
    chooser.write("prompt", "ß")
    expect(chooser.root.get_by_role("alert")).to_contain_text("'ß' (U+00DF) at position 0")
    expect(chooser.button("let the model choose")).to_be_disabled()
    chooser.write("prompt", "The q")
    expect(chooser.root.locator(".t-choice-0")).to_contain_text("u")
