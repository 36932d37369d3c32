"""The playground in JupyterLab and as a page: writing, stopping, continuing, and accessibility."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

import charrnn
from tests.browser.driving import LISTEN, PATIENCE, Widget, changed, notebook
from tests.browser.servers import CHECKOUT

OUTSIDE = """root => {
    const parts = Array.from(root.querySelectorAll('label, button, input, select, textarea, img, p, pre, .slider'));
    const seen = parts.filter(part => part.checkVisibility());
    const told = part => `${part.tagName} ${part.className} ${part.textContent.slice(0, 30)}`;
    return seen.filter(part => {
        const box = part.getBoundingClientRect();
        const cut = part.matches('label, button, p, pre') && part.scrollWidth > part.clientWidth + 1;
        return cut || box.left < 0 || box.right > window.innerWidth;
    }).map(told);
}"""


@pytest.fixture(scope="module", params=["JupyterLab", "Voilà"])
def playground(request, everything):
    if request.param == "JupyterLab":
        with notebook(request.getfixturevalue("lab"), "notebooks/playground.ipynb") as panel:
            yield Widget(panel.locator(".t-playground"), everything)
    else:
        playground = Widget(request.getfixturevalue("page_of_its_own").locator(".t-playground"), everything)
        playground.root.wait_for(timeout=PATIENCE)
        yield playground


@pytest.fixture(scope="module")
def generator():
    return charrnn.load_model(CHECKOUT / "checkpoints" / "shakespeare-lstm")


def test_everything_has_a_name(playground):
    for role in ("slider", "textbox", "combobox", "button"):
        parts = playground.root.get_by_role(role).all()
        assert parts, role
        for part in parts:
            expect(part).to_have_accessible_name(re.compile(r"\w"))
    for name in ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "length"):
        label = playground.control(name).locator("label").text_content()
        expect(playground.handle(name)).to_have_accessible_name(label)


def test_it_writes_what_the_library_writes(playground, generator):
    assert playground.generate() == generator.generate("ROMEO:\n", length=500, temperature=0.8, seed=1)
    expect(playground.control("status")).to_contain_text("500 characters")


def test_sliders_by_keyboard(playground, generator):
    assert playground.press("temperature", "Home", "ArrowRight") == pytest.approx(0.05)
    assert playground.press("top_k", "End") == 70
    assert playground.press("top_k", "Home", *["ArrowRight"] * 5) == 5
    assert playground.press("length", "Home", "ArrowRight") == 50
    text = playground.generate()
    assert text == generator.generate("ROMEO:\n", length=50, temperature=0.05, top_k=5, seed=1)


def test_sliders_by_mouse(playground, generator):
    temperature, top_p = playground.drag("temperature", 0.6), playground.drag("top_p", 0.5)
    assert temperature == pytest.approx(1.2, abs=0.05)
    assert top_p == pytest.approx(0.525, abs=0.05)
    assert playground.drag("top_k", 0.0) == 0
    text = playground.generate()
    assert text == generator.generate("ROMEO:\n", length=50, temperature=temperature, top_p=top_p, seed=1)
    assert playground.drag("top_p", 1.0) == 1


def test_stop_in_mid_stream_and_continue(playground, measured, request):
    assert playground.press("length", "Home") == 0  # endless
    seconds = playground.stop_in_mid_stream()
    status = playground.control("status").text_content()
    measured(f"{request.node.callspec.id}: {seconds:.2f} s from the click on Stop to the last character; {status}")
    assert seconds < 5
    playground.press("length", "ArrowRight")
    before = playground.text.text_content()
    playground.root.evaluate(LISTEN)
    playground.button("Continue").click()
    assert playground.written()[-550:-50] == before[-500:]


def test_a_wrong_prompt_is_a_sentence(playground):
    playground.write("prompt", "To be £")
    playground.generate()
    expect(playground.message.get_by_role("alert")).to_contain_text("'£' (U+00A3) at position 6")
    playground.write("prompt", "JULIET:\n")
    playground.generate()
    expect(playground.message).to_have_text("")


def test_copy_and_save(playground):
    text = playground.text.text_content()
    playground.click("Copy")
    expect(playground.control("copied")).to_contain_text(f"Copied {len(text)} characters")
    assert playground.page.evaluate("navigator.clipboard.readText()") == text
    playground.click("Save")
    expect(playground.message).to_contain_text("Saved as ")
    path = Path(playground.message.text_content().removeprefix("Saved as "))
    assert path.read_text(encoding="utf-8") == text


def test_another_network_another_view(playground):
    words = playground.figure.text_content()
    playground.choose("checkpoint", "shakespeare-rnn")
    changed(playground.figure, words)
    playground.click("surprisal")
    expect(playground.control("surprisal")).to_contain_text("most surprising is")
    expect(playground.root.locator("img")).to_be_hidden()
    playground.click("next character")
    expect(playground.root.get_by_role("img", name=re.compile("^Bar chart of what comes"))).to_be_visible()
    playground.choose("checkpoint", "shakespeare-lstm")


@pytest.fixture
def magnified(page_of_its_own):
    """200%: half as many points across, each of them twice as large."""
    session = page_of_its_own.context.new_cdp_session(page_of_its_own)
    size = {"width": 640, "height": 500, "deviceScaleFactor": 2, "mobile": False}
    session.send("Emulation.setDeviceMetricsOverride", size)
    yield page_of_its_own
    session.send("Emulation.clearDeviceMetricsOverride")
    session.detach()


def test_at_200_percent_nothing_is_cut_off(magnified):
    assert magnified.evaluate("window.innerWidth") == 640
    assert magnified.evaluate("document.documentElement.scrollWidth") <= 640
    assert magnified.locator(".t-playground").evaluate(OUTSIDE) == []


def test_the_page_follows_the_text_to_its_end(page_of_its_own, everything, screenshot):
    playground = Widget(page_of_its_own.locator(".t-playground"), everything)
    playground.write("prompt", "ROMEO:\n")
    playground.press("temperature", "Home", *["ArrowRight"] * 14)
    playground.press("length", "Home", *["ArrowRight"] * 6)
    text = playground.generate()
    assert len(text) == len("ROMEO:\n") + 300
    expect(playground.control("status")).to_contain_text("bits per character")
    expect(playground.figure).to_contain_text(text[-9:].splitlines()[-1])  # the views have followed the text to its end
    page_of_its_own.set_viewport_size({"width": 1080, "height": 1300})  # a screenshot shows only the visible part
    screenshot(playground.root, "playground")
