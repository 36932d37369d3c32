"""The playground without a browser: every control, every button, every error."""

import html
import json
import os
import time
from types import SimpleNamespace

import ipywidgets
import pytest

import charrnn
from charrnn import lab
from charrnn.cli import main as cli
from charrnn.data.tokenizer import CharTokenizer
from charrnn.lab.panels import playground as module
from charrnn.lab.panels.generation import OFF, SHOWN, settings_of
from charrnn.lab.panels.playground import copy_script, find_runs, save_text, surprisal_at_the_end
from charrnn.lab.panels.worker import Writer

SETTINGS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "forbid", "stop")
ON = {
    "temperature": 1.5,
    "top_k": 7,
    "top_p": 0.8,
    "min_p": 0.05,
    "typical_p": 0.7,
    "repetition_penalty": 1.3,
    "forbid": "ab\\n",
    "stop": "c\\nd",
}


@pytest.fixture(autouse=True)
def _callbacks_raise(monkeypatch):
    """Raise the errors of a button's callback, which ipywidgets would only log."""

    def call(dispatcher, *args, **kwargs):
        for callback in dispatcher.callbacks:
            callback(*args, **kwargs)

    monkeypatch.setattr(ipywidgets.widgets.widget.CallbackDispatcher, "__call__", call)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two small networks; the one with a shipped name is older."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, characters in (("shakespeare-lstm", "\n abcdefghij<&>"), ("mine", "\n abc")):
        generator = charrnn.create_model(CharTokenizer(characters), hidden_size=8, num_layers=1, seed=1)
        charrnn.save_model(generator, folder / name)
    os.utime(folder / "shakespeare-lstm", (1, 1))
    return folder


@pytest.fixture
def drawn(monkeypatch):
    """The arguments of each distribution; drawing all of them would take minutes."""
    drawn = []

    def figure(generator, prompt, **settings):
        drawn.append((generator, prompt, settings))
        generator.next_logits(prompt)  # raises what the figure would raise
        return SimpleNamespace(to_html=lambda **_: "a distribution")

    monkeypatch.setattr(module, "plot_distribution", figure)
    return drawn


@pytest.fixture
def playground(folder, drawn, tmp_path):
    playground = lab.Playground(folder, save_to=tmp_path / "saved")
    playground.controls["prompt"].value = "ab"
    playground.controls["length"].value = 100
    yield playground
    playground.stop()
    assert playground.wait(20)


def written(playground):
    playground.generate_button.click()
    assert playground.wait(20)
    return playground.text


def endless(playground, characters=200):
    """Start an endless text and wait for its first characters."""
    playground.controls["length"].value = 0
    playground.generate_button.click()
    wait_until(lambda: playground.writer.characters >= characters)


def wait_until(true):
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# -------------------------------------------------------------------------------------------------------- the text


@pytest.mark.parametrize("name", [None, *SETTINGS])
@pytest.mark.parametrize("seed", [0, 5])
def test_it_writes_what_the_library_and_the_command_line_do(playground, folder, capsys, name, seed):
    values = {"temperature": 0.8} | ({name: ON[name]} if name else {})
    for control, value in (values | {"seed": str(seed)}).items():
        playground.controls[control].value = value
    text = written(playground)
    path = folder / "shakespeare-lstm"
    plain = {key: v.replace("\\n", "\n") if isinstance(v, str) else v for key, v in values.items()}
    assert text == charrnn.load_model(path).generate("ab", 100, seed=seed, **plain)
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in ({"top_p": "none"} | values).items()]
    assert cli.main(["sample", str(path), "--prompt=ab", "--length=100", f"--seed={seed}", *flags]) == 0
    assert capsys.readouterr().out == f"{text}\n"
    assert "alert" not in playground.message.value


GRID = {
    "prompt": ["", "a\n<b>&"],
    "temperature": [0, 2],
    "top_k": [0, 1, 15],
    "top_p": [0.05, 1],
    "min_p": [0, 1],
    "typical_p": [0.05, 1],
    "repetition_penalty": [1, 2],
    "length": [50],
    "seed": ["0", str(2**32 - 1)],
    "stop": ["", "\\n"],
    "forbid": ["", "a"],
}


def corners():
    """Combine each value of each control with a few values of the others."""
    longest = max(map(len, GRID.values()))
    for shift in range(longest):
        yield {name: values[(place + shift) % len(values)] for place, (name, values) in enumerate(GRID.items())}
    for name, values in GRID.items():
        for value in values:
            yield {other: each[0] for other, each in GRID.items()} | {name: value}


@pytest.mark.parametrize("values", list(corners()))
def test_every_value_of_every_control_is_fine(playground, values):
    for name, value in values.items():
        playground.controls[name].value = value
    text = written(playground)
    assert text.startswith(values["prompt"])
    for place in (playground.message, playground.box.words, playground.marked):
        assert "alert" not in place.value
    assert not playground.generate_button.disabled
    assert playground.stop_button.disabled
    assert "<b>" not in playground.output.value


def test_a_seed_that_is_no_whole_number_is_refused_and_the_views_stay(playground, drawn):
    text = written(playground)
    playground.controls["seed"].value = "1e3"
    playground.controls["min_p"].value = 0.5
    assert drawn[-1][2]["min_p"] == 0.5  # the seed changes nothing about the next character
    for button in (playground.generate_button, playground.continue_button):
        playground.message.value = ""
        button.click()
        assert playground.wait(20)
        assert "seed: expected a whole number such as 7, got &#x27;1e3&#x27;" in playground.message.value
        assert playground.text == text
        assert not button.disabled


def test_what_is_off_is_none_and_what_is_typed_as_a_newline_is_one():
    values = {"prompt": "\\n", "temperature": 0.0, "length": 3, "seed": "0", **OFF}
    off = dict.fromkeys(OFF)
    assert settings_of(values) == {"prompt": "\\n", "temperature": 0.0, "length": 3, "seed": 0, **off}
    assert settings_of({"stop": "a\\nb", "forbid": "\\t\\\\n"}) == {"stop": "a\nb", "forbid": "\t\\n"}


def test_stop_ends_an_endless_text(playground):
    endless(playground)
    assert playground.generate_button.disabled
    assert playground.continue_button.disabled
    assert not playground.stop_button.disabled
    playground.stop_button.click()
    wait_until(lambda: not playground.writer.running)
    text = playground.text
    assert playground.wait(20)
    assert playground.text == text == playground.generator.generate("ab", len(text) - 2, temperature=0.8, seed=1)
    assert playground.stop_button.disabled
    assert not playground.generate_button.disabled
    assert 'role="status"' in playground.status.value


def test_continue_goes_on_with_another_seed(playground):
    text = written(playground)
    for turn in (1, 2):
        playground.continue_button.click()
        assert playground.wait(20)
        text = playground.generator.generate(text, 100, temperature=0.8, seed=1 + turn)
        assert playground.text == text
    assert "300 characters" in playground.status.value
    assert written(playground) == playground.generator.generate(
        "ab", 100, temperature=0.8, seed=1
    )  # from the start again


def test_a_new_text_waits_for_the_old_one(playground):
    endless(playground)
    playground.controls["prompt"].value = "c"
    watcher = playground._watcher
    playground.generate()
    assert playground._watcher is watcher  # and nobody watches for ever
    assert playground.text.startswith("ab")


def test_an_endless_text_takes_bounded_memory(folder):
    generator = charrnn.load_model(folder / "mine")
    settings = {"prompt": "abc", "length": None, "temperature": 1.0, "seed": 3}
    writer = Writer(longest=100)
    writer.start(generator, settings)
    wait_until(lambda: writer.characters > 1000)
    assert len(writer.text) <= 100
    writer.stop()
    assert writer.wait(20)
    assert writer.text == generator.generate(**settings | {"length": writer.characters})[-100:]
    assert 0 < writer.speed < 1e7


def test_the_view_shows_the_end(playground):
    endless(playground, SHOWN + 500)
    playground.stop()
    assert playground.wait(20)
    assert len(playground.text) > SHOWN
    assert "…" in playground.output.value


def test_a_prompt_that_the_network_cannot_read_is_a_sentence(playground):
    playground.controls["prompt"].value = "a<Z>"
    assert "Not drawn:" in playground.box.words.value
    assert written(playground) == ""
    for place in (playground.message, playground.marked):
        assert 'role="alert"' in place.value
        assert "got &#x27;Z&#x27; (U+005A) at position 2" in place.value
    assert playground.continue_button.disabled
    playground.controls["prompt"].value = "a"
    assert len(written(playground)) == 101
    assert "alert" not in playground.message.value + playground.box.words.value


@pytest.mark.parametrize("name", ["stop", "forbid"])
def test_a_setting_that_makes_no_sense_is_a_sentence(playground, name):
    playground.controls["forbid"].value = "Z" if name == "forbid" else "\\n abcdefghij<&>"
    written(playground)
    assert 'role="alert"' in playground.message.value


def test_a_network_that_breaks_shows_up_in_the_panel(playground, monkeypatch):
    def broken(*_, **__):
        yield "ab"
        yield "c"
        raise RuntimeError("wires <crossed>")

    monkeypatch.setattr(playground.generator, "stream", broken)
    assert written(playground) == "abc"
    assert "an error in the program, RuntimeError: wires &lt;crossed&gt;" in playground.message.value
    assert "in broken" in playground.message.value
    assert not playground.generate_button.disabled


# ----------------------------------------------------------------------------------------------------- the network


def test_checkpoints_are_in_order(folder, tmp_path):
    for age, name in enumerate(["old", "shakespeare-rnn", "new", "run"]):
        charrnn.save_model(charrnn.load_model(folder / "mine"), tmp_path / (f"{name}/best" if name == "run" else name))
        os.utime(tmp_path / name, (age, age))
    (tmp_path / "new").rename(tmp_path / ".new.old")
    (tmp_path / "notes.txt").write_text("no checkpoint")
    names = [path.name for path in find_runs(folder, tmp_path, tmp_path / "nowhere")]
    assert names == ["shakespeare-lstm", "shakespeare-rnn", "mine", "run", "old"]
    assert find_runs(folder / "mine") == [folder / "mine"]


def test_another_network_keeps_the_settings_that_it_can(playground, folder):
    chooser, top_k = playground.controls["checkpoint"], playground.controls["top_k"]
    assert [name for name, _ in chooser.options] == ["shakespeare-lstm", "mine"]
    top_k.value, playground.controls["temperature"].value = 12, 0.5
    assert top_k.max == 15
    chooser.value = str(folder / "mine")
    assert playground.generator.tokenizer.vocab_size == top_k.max == top_k.value == 5
    assert playground.controls["temperature"].value == 0.5
    assert written(playground) == charrnn.load_model(folder / "mine").generate(
        "ab", 100, temperature=0.5, top_k=5, seed=1
    )
    chooser.value = str(folder / "shakespeare-lstm")
    assert top_k.max == 15
    assert top_k.value == 5


def test_a_damaged_checkpoint_is_a_sentence_and_the_old_network_stays(playground, folder, tmp_path, drawn):
    charrnn.save_model(charrnn.load_model(folder / "mine"), tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"noise")
    playground = lab.Playground(folder, tmp_path)
    before = playground.generator
    playground.controls["checkpoint"].value = str(tmp_path / "damaged")
    assert 'role="alert"' in playground.message.value
    assert "damaged/model.safetensors: expected a whole safetensors file" in playground.message.value
    assert playground.generator is before
    assert playground.controls["checkpoint"].value == str(folder / "shakespeare-lstm")
    playground.controls["checkpoint"].value = str(folder / "mine")
    assert "alert" not in playground.message.value


def test_refresh_finds_what_is_new(folder, tmp_path, drawn):
    playground = lab.Playground(tmp_path)
    assert f"expected a checkpoint in {tmp_path}, found none" in playground.message.value
    playground.generate_button.click()
    assert 'role="alert"' in playground.message.value
    charrnn.save_model(charrnn.load_model(folder / "mine"), tmp_path / "first")
    playground.refresh_button.click()
    assert playground.message.value == ""
    charrnn.save_model(charrnn.load_model(folder / "mine"), tmp_path / "second")
    playground.refresh_button.click()
    assert {name for name, _ in playground.controls["checkpoint"].options} == {"first", "second"}
    assert playground.controls["checkpoint"].value == str(tmp_path / "first")  # what was chosen stays


def test_a_folder_that_is_named_twice_is_searched_once(folder):
    assert find_runs(folder, str(folder)) == find_runs(folder)


def test_two_networks_of_one_name_are_told_apart(folder, tmp_path, drawn):
    charrnn.save_model(charrnn.load_model(folder / "mine"), tmp_path / "mine")
    options = lab.Playground(folder, tmp_path).controls["checkpoint"].options
    assert {name for name, _ in options} == {"shakespeare-lstm", str(folder / "mine"), str(tmp_path / "mine")}


# -------------------------------------------------------------------------------------------------- what it thinks


def test_the_bars_are_those_of_the_present_settings(playground, drawn):
    playground.controls["min_p"].value = 0.5
    generator, prompt, settings = drawn[-1]
    assert generator is playground.generator
    assert (prompt, settings["drawn"], settings["min_p"], settings["temperature"]) == ("ab", "", 0.5, 0.8)
    text = written(playground)
    assert (drawn[-1][1], drawn[-1][2]["drawn"]) == ("ab", text[2:])
    playground.continue_button.click()
    assert playground.wait(20)
    assert (drawn[-1][1], drawn[-1][2]["drawn"]) == (text, playground.text[102:])
    assert playground.box.image.value == "a distribution"
    asked = len(drawn)
    playground.controls["seed"].value = "2"  # changes nothing about the next character
    playground.views.value = "surprisal"
    assert len(drawn) == asked


def test_the_bars_are_drawn(folder):
    playground = lab.Playground(folder)
    playground.controls["prompt"].value = "ab"
    assert "data:image/png;base64," in playground.box.image.value
    assert '<img alt="Bar chart of what comes' in playground.box.image.value


def test_the_views_follow_a_text_that_grows(playground, monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0.01)
    playground.views.value = "surprisal"
    endless(playground, 1)
    before = playground.marked.value
    wait_until(lambda: playground.marked.value != before)
    assert playground.writer.running
    wait_until(lambda: "bits per character" in playground.status.value)


def test_the_surprisal_is_that_of_the_end_of_the_text(playground):
    playground.views.value = "surprisal"
    assert playground.box.view.layout.display == "none"
    playground.controls["length"].value = 400
    text = written(playground)
    tokens, bits = surprisal_at_the_end(playground.generator, text)
    assert "".join(tokens) == text[-300:]
    assert bits == pytest.approx(lab.surprisal_and_entropy(playground.generator, text)[0][-300:].tolist())
    assert f"{sum(bits) / 300:.2f} bits per character over the last 300" in playground.status.value
    assert f"{sum(bits):,.1f} bits in all" in playground.marked.value


def test_the_views_read_no_more_than_they_need(playground, monkeypatch, drawn):
    read = []
    monkeypatch.setattr(module, "surprisal", lambda _, text: read.append(text) or lab.surprisal_and_entropy(_, text)[0])
    playground.controls["length"].value = 2000
    text = written(playground)
    assert read[-1] == text[-module.CONTEXT :]
    assert drawn[-1][1] + drawn[-1][2]["drawn"] == text[-module.CONTEXT :]


# -------------------------------------------------------------------------------------------- to keep, and the rest


def test_save_writes_the_text_and_says_where(playground, tmp_path):
    text = written(playground)
    playground.save_button.click()
    (path,) = (tmp_path / "saved").iterdir()
    assert path.read_text(encoding="utf-8") == text
    assert f'<p role="status">Saved as {path}</p>' == playground.message.value
    playground.save_button.click()
    assert len(list((tmp_path / "saved").iterdir())) == 2  # the first is not replaced


def test_a_text_is_saved_whole_or_not_at_all(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        save_text("abc", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_saved_is_a_sentence(playground, tmp_path):
    playground.save_button.click()
    assert "press Generate first" in playground.message.value
    (tmp_path / "saved").write_text("a file where a folder should be")
    text = written(playground)
    playground.save_button.click()
    assert "<b>Not saved:</b>" in playground.message.value
    assert "saved: " in playground.message.value
    assert playground.text == text


def test_copy_hands_the_whole_text_to_the_browser(playground):
    playground.copy_button.click()
    assert "press Generate first" in playground.message.value
    assert playground.copied.outputs == ()
    text = written(playground)
    playground.copy_button.click()
    bundle = playground.copied.outputs[0]["data"]
    assert bundle["application/javascript"] == copy_script(text)
    assert f">\n{html.escape(text)}</textarea>" in playground.by_hand.value  # for where no script runs
    playground.generate_button.click()
    assert playground.copied.outputs == ()  # it is no longer the text above
    assert playground.by_hand.value == ""
    assert playground.wait(20)


@pytest.mark.parametrize("text", ['"; alert(1); "', "</script>", "\u2028\\", "%s{}"])
def test_no_text_can_end_the_script_that_copies_it(text):
    first, *_ = copy_script(text).strip().splitlines()
    assert first.startswith('const text = "')
    assert first.endswith('";')
    assert first.isascii()
    assert "<" not in first
    assert json.loads(first.removeprefix("const text = ").removesuffix(";")) == text


def test_a_new_seed_is_another_one(playground):
    seeds = set()
    for _ in range(5):
        playground.new_seed_button.click()
        seeds.add(playground.controls["seed"].value)
    assert len(seeds) > 1


def test_every_control_has_a_class_and_a_label(playground):
    for name, control in playground.controls.items():
        assert f"t-{name}" in control._dom_classes
        assert control.description
    assert "t-stop-string" in playground.controls["stop"]._dom_classes
    words = [button.description for button in playground.buttons.children]
    assert words == ["Generate", "Stop", "Continue", "Save", "Copy"]
    assert all(button.tooltip for button in playground.buttons.children)


def test_the_grid_names_every_control(playground):
    assert set(GRID) == set(playground.controls) - {"checkpoint"}
    assert len(list(corners())) > len(GRID)
