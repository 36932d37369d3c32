import io
import itertools
import os
import re
import select
import signal
import subprocess
import sys
import time

import pytest
import torch
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from charrnn.checkpoint import save_checkpoint
from charrnn.cli import console
from charrnn.cli import interactive as repl
from charrnn.cli.interactive import USAGES, Session, answer, completions, interact, parse_command
from charrnn.config import GenerationConfig, RunConfig
from charrnn.data.tokenizer import CharTokenizer
from charrnn.errors import ConfigError
from charrnn.generation.generator import TextGenerator
from charrnn.models.recurrent import CharLSTM
from tests.conftest import started

TERMINAL = repl._terminal
POSIX = pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals and signals as POSIX has them")


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(1)
    return TextGenerator(CharLSTM(8, 8), CharTokenizer("\n :abcde"), RunConfig())


def settings(**more):
    return GenerationConfig(length=20, top_p=None).settings() | {"seed": 5} | more


@pytest.fixture
def session(generator):
    return Session(generator, settings())


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    """The folder of the history."""
    monkeypatch.setattr(repl, "user_state_dir", lambda *_, **__: str(tmp_path / "state"))
    return tmp_path / "state"


# ------------------------------------------------------------------------------------------------------ what is typed


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        ("", ("write", "")),
        ("ROMEO:", ("write", "ROMEO:")),
        ("  two spaces ", ("write", "  two spaces ")),
        ("one\\ntwo\\tthree", ("write", "one\ntwo\tthree")),
        ("C:\\\\new\\d", ("write", "C:\\new\\d")),
        ("::temp 3", ("write", ":temp 3")),
        ("::", ("write", ":")),
        (":::", ("write", "::")),
        (":temp 0.8", ("temperature", "0.8")),
        (":TEMP   1e-1  ", ("temperature", "1e-1")),
        (":temp off", ("temperature", "off")),  # which has no such state: refused when it is set
        (":topk 20", ("top_k", "20")),
        (":topk off", ("top_k", None)),
        (":topk None", ("top_k", None)),
        (":topp 0.9", ("top_p", "0.9")),
        (":minp 0.1", ("min_p", "0.1")),
        (":typical OFF", ("typical_p", None)),
        (":top-k 20", ("top_k", "20")),
        (":repetition_penalty 1.3", ("repetition_penalty", "1.3")),
        (":length 0", ("length", "0")),
        (":seed 5", ("seed", "5")),
        (":seed random", ("seed", "random")),
        (":stop \\n\\n", ("stop", "\n\n")),
        (":stop \\\\n", ("stop", "\\n")),
        (':stop " a "', ("stop", " a ")),
        (':stop "', ("stop", '"')),
        (':stop "off"', ("stop", "off")),
        (":stop off", ("stop", None)),
        (":allow abc d", ("allow", "abc d")),
        (":forbid :", ("forbid", ":")),
        (":more", ("more", "")),
        (":more  ", ("more", "")),
        (":save a b.txt", ("save", "a b.txt")),
        (":save! \\new.txt", ("save!", "\\new.txt")),
        (":settings", ("settings", "")),
        (":help", ("help", "")),
        (":quit", ("quit", "")),
    ],
)
def test_a_line_and_its_meaning(line, meaning):
    assert parse_command(line) == meaning


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (":temprature 1", "unknown command ':temprature'; did you mean ':temperature'?"),
        (":penalty 2", "unknown command ':penalty'; did you mean ':repetition_penalty'?"),
        (":top 1", "unknown command ':top'; did you mean ':top_k'?"),
        (":exit", "unknown command ':exit'; :help shows all of them"),
        (":", "unknown command ':'; :help shows all of them"),
        (":temp", ":temperature: expected :temperature NUMBER, got no value"),
        (":topk ", ":top_k: expected :top_k NUMBER|off, got no value"),
        (":stop", ":stop: expected :stop TEXT|off, got no value"),
        (":save", ":save: expected :save FILE, got no value"),
        (":more 100", ":more: expected :more alone, got '100'"),
        (":quit now", ":quit: expected :quit alone, got 'now'"),
    ],
)
def test_a_line_without_meaning(line, message):
    with pytest.raises(ConfigError) as caught:
        parse_command(line)
    assert message in str(caught.value)


def test_every_setting_has_its_command():
    assert set(USAGES) > set(GenerationConfig.model_fields) - {"prompt"}


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        (":t", [":temperature", ":top_k", ":top_p", ":typical_p"]),
        (":he", [":help"]),
        (":topk ", ["off"]),
        (":temp ", []),
        (":topk o", ["off"]),
        (":seed r", ["random"]),
        (":nothing ", []),
        (":save ", []),
        ("t", []),
        ("", []),
        ("::t", []),
    ],
)
def test_completions(line, offered):
    assert [text for text, _ in completions(line)] == offered


def test_all_commands_are_offered_with_what_they_do():
    assert dict(completions(":")) == {f":{name}": about for name, (_, about) in USAGES.items()}


# --------------------------------------------------------------------------------------------------------- the session


def test_texts_are_those_of_the_library_and_the_seed_goes_up(generator, session):
    for turn, prompt in enumerate(["ab", "", "c\n"]):
        assert "".join(session.write(prompt)) == session.text
        assert session.text == generator.generate(prompt, 20, seed=5 + turn)
    assert session.seed == 8


def test_more_goes_on_from_the_text(generator, session):
    first = "".join(session.write("ab"))
    more = "".join(session.more())
    assert len(more) == 20
    assert session.text == first + more == generator.generate(first, 20, seed=6)


def test_more_goes_on_from_where_a_text_was_stopped(session):
    begun = "".join(itertools.islice(session.write("ab"), 3))
    assert session.text == begun
    list(session.more())
    assert session.text.startswith(begun)
    assert len(session.text) == len(begun) + 20


def test_there_is_nothing_to_go_on_from_or_to_save(session, tmp_path):
    with pytest.raises(ConfigError, match=":more: expected a text to continue, got none"):
        session.more()
    with pytest.raises(ConfigError, match=":save: expected a text to save, got none"):
        session.save(str(tmp_path / "text"))


def test_settings_change_what_is_written(generator, session):
    session.change("temperature", "0.5")
    session.change("top_k", "3")
    session.change("length", "7")
    session.change("seed", "11")
    session.change("forbid", "\n")
    expected = generator.generate("a", 7, temperature=0.5, top_k=3, seed=11, forbid="\n")
    assert "".join(session.write("a")) == expected
    session.change("top_k", None)
    assert "".join(session.write("a")) == generator.generate("a", 7, temperature=0.5, seed=12, forbid="\n")


def test_length_0_has_no_end(session):
    session.change("length", "0")
    assert len("".join(itertools.islice(session.write("a"), 25))) > 1000


def test_a_random_seed_is_another_each_time(session):
    seeds = set()
    for _ in range(3):
        session.change("seed", "random")
        seeds.add(session.seed)
    assert len(seeds) == 3


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("temperature", "-1", "(--temperature): expected a value greater than or equal to 0, got '-1'"),
        ("temperature", "nan", "(--temperature): expected a finite number"),
        ("temperature", "off", "(--temperature): expected a valid number"),
        ("top_k", "0", "(--top-k): expected a value greater than or equal to 1, got '0'"),
        ("top_k", "2.5", "(--top-k): expected a valid integer"),
        ("top_p", "1.5", "(--top-p): expected a value less than or equal to 1"),
        ("min_p", "2", "(--min-p)"),
        ("typical_p", "0", "(--typical-p)"),
        ("repetition_penalty", "0.5", "(--repetition-penalty)"),
        ("length", "-1", "(--length)"),
        ("stop", "", "(--stop)"),
        ("allow", "Z", "allow: expected characters in the vocabulary, got 'Z'"),
        ("forbid", "\n :abcde", "allow, forbid: expected to leave at least one token, got none"),
        ("seed", "-1", ":seed: expected a whole number of at least 0 or random, got '-1'"),
        ("seed", "x", ":seed: expected a whole number"),
        ("seed", "²", ":seed: expected a whole number"),
    ],
)
def test_a_wrong_value_changes_nothing(session, setting, value, message):
    list(session.write("a"))
    before = (session.settings(), session.text)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        session.change(setting, value)
    assert message in str(caught.value)
    assert (session.settings(), session.text) == before


def test_a_wrong_prompt_changes_nothing(session):
    text = "".join(session.write("a"))
    with pytest.raises(ValueError, match="'Z' .* at position 1"):
        session.write("aZ")
    assert (session.text, session.seed) == (text, 6)


def test_a_byte_order_mark_of_a_piped_file_is_no_prompt(generator, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\ufeffab\r\n\ufeffc\n"))
    interact(generator, settings())
    texts = [generator.generate(prompt, 20, seed=seed) for seed, prompt in enumerate(("ab", "c"), 5)]
    assert capsys.readouterr().out == "".join(f"{text}\n" for text in texts)


def test_settings_are_shown_as_they_are_typed(generator):
    session = Session(generator, settings(top_k=7, stop="\n\\n", length=None))
    shown = session.settings()
    assert shown == dict.fromkeys(("top_p", "min_p", "typical_p", "repetition_penalty", "allow", "forbid"), "off") | {
        "temperature": "1",
        "top_k": "7",
        "length": "0",
        "stop": '"\\n\\\\n"',
        "seed": "5",
    }
    for name, value in shown.items():  # and typed again they are the same
        assert answer(session, f":{name} {value}")
    assert session.settings() == shown


def test_a_text_is_saved_whole_and_replaces_nothing(session, tmp_path):
    path = tmp_path / "text.txt"
    list(session.write("ab\nc"))
    assert session.save(str(path)) == path
    assert path.read_bytes() == (session.text + "\n").encode()
    list(session.write("d"))
    with pytest.raises(ConfigError, match=":save: expected a new file, got .*text.txt', which exists"):
        session.save(str(path))
    assert path.read_text().startswith("ab\nc")
    session.save(str(path), replace=True)
    assert path.read_text() == session.text + "\n"
    with pytest.raises(ConfigError, match="expected a new file"):
        session.save(str(tmp_path), replace=True)
    assert os.listdir(tmp_path) == ["text.txt"]  # and nothing half-written beside it


def test_a_file_that_cannot_be_written_keeps_the_old_one(session, tmp_path, monkeypatch, capsys):
    path = tmp_path / "text.txt"
    path.write_text("old")
    list(session.write("ab"))

    def fail(*_):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(repl.os, "replace", fail)
    assert answer(session, f":save! {path}")
    assert capsys.readouterr().err == f"'{path}': No space left on device\n"
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["text.txt"]


# ---------------------------------------------------------------------------------------------------------- the answers


def test_what_is_wrong_is_one_line(session, capsys):
    for line in (":tmp", ":temp", ":temp -1", ":more", "Z", ":save x", ":allow Z"):
        assert answer(session, line)
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1


def test_nothing_is_said_to_nobody(session, monkeypatch):
    def closed(text):
        raise BrokenPipeError

    monkeypatch.setattr("sys.stdout.write", closed)
    with pytest.raises(BrokenPipeError):
        answer(session, "ab")


def test_help_and_settings(session, capsys):
    assert answer(session, ":help")
    assert answer(session, ":settings")
    err = capsys.readouterr().err
    for name in USAGES:
        assert f":{name} " in err
    assert re.search(r"\n  length +20\n", err)
    assert answer(session, ":quit") is False


class Terminal(io.StringIO):
    """A standard stream that calls itself a terminal."""

    def isatty(self):
        return True


class Counting(io.StringIO):
    flushes = 0

    def flush(self):
        self.flushes += 1


def test_text_comes_at_once_but_is_not_flushed_for_each_character(monkeypatch):
    clock = itertools.count(step=1 / 50_000)  # of a fast model
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys, "stdout", out := Counting())
    seen = []
    console.write_stream(seen.append(out.getvalue()) or "x" for _ in range(100_000))
    assert out.getvalue() == "x" * 100_000 + "\n"
    assert 100 <= out.flushes <= 122  # in two seconds
    assert seen[1] == "x"


def test_an_error_in_mid_text_loses_nothing_of_it(capsys):
    def pieces():
        yield from ("a", "b", "c")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        console.write_stream(pieces())
    assert capsys.readouterr().out == "abc\n"


@pytest.mark.parametrize(
    ("out", "raw", "shown"),
    [
        (Terminal, False, "\\x1b]0;title\\x07 a\tb\n\\x9b2J é\n"),
        (Terminal, True, "\x1b]0;title\x07 a\tb\n\x9b2J é\n"),
        (io.StringIO, False, "\x1b]0;title\x07 a\tb\n\x9b2J é\n"),
    ],
)
def test_a_terminal_obeys_nothing_in_a_text(monkeypatch, out, raw, shown):
    monkeypatch.setattr(sys, "stdout", out := out())
    console.write_stream("\x1b]0;title\x07 a\tb\n\x9b2J é", raw)
    assert out.getvalue() == shown


# ---------------------------------------------------------------------------------------------------------- a terminal


def typed(generator, keys, monkeypatch, **more):
    """What a talk leaves on stdout when these keys are struck in a terminal that is not there."""
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(sys, "stdout", out := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with create_pipe_input() as keyboard:
        keyboard.send_text(keys)
        output = {"input": keyboard, "output": DummyOutput()}
        monkeypatch.setattr(repl, "_terminal", lambda session: TERMINAL(session, **output))
        repl.interact(generator, settings(**more))
    return out.getvalue()


END = "\x04"  # Ctrl-D


def test_keys_become_texts(generator, monkeypatch):
    out = typed(generator, "ab\r:temp 0.5\r\rc\r" + END, monkeypatch)
    expected = [("ab", 1.0, 5), ("", 0.5, 6), ("c", 0.5, 7)]
    texts = [
        generator.generate(prompt, 20, temperature=temperature, seed=seed) for prompt, temperature, seed in expected
    ]
    assert out == "".join(f"{text}\n" for text in texts)


def test_ctrl_c_clears_the_line_and_ctrl_d_ends(generator, monkeypatch):
    assert typed(generator, "abc\x03d\r" + END, monkeypatch) == generator.generate("d", 20, seed=5) + "\n"


def test_quit_ends(generator, monkeypatch):
    assert typed(generator, ":quit\rab\r", monkeypatch) == ""


def test_what_was_typed_is_remembered_in_the_next_talk(generator, monkeypatch):
    typed(generator, "a\r:length 3\r" + END, monkeypatch)
    typed(generator, "b\r" + END, monkeypatch)
    assert list(repl._history().load_history_strings()) == ["b", ":length 3", "a"]


def test_the_toolbar_shows_what_is_set(session):
    with create_pipe_input() as keyboard:
        terminal = repl._terminal(session, input=keyboard, output=DummyOutput())
    session.change("top_k", "9")
    list(session.write("a"))
    terminal.app.before_render.fire()
    assert terminal.bottom_toolbar() == "temperature 1  top_k 9  length 20  seed 6"


def test_commands_their_values_and_files_are_completed(session, tmp_path):
    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.document import Document

    (tmp_path / "text.txt").touch()
    with create_pipe_input() as keyboard:
        completer = repl._terminal(session, input=keyboard, output=DummyOutput()).completer
    for line, whole in {
        ":len": ":length",
        ":top_k o": ":top_k off",
        f":save {tmp_path}/te": f":save {tmp_path}/text.txt",
        f":save! {tmp_path}/te": f":save! {tmp_path}/text.txt",
    }.items():
        (found,) = completer.get_completions(Document(line), CompleteEvent())
        assert line[: len(line) + found.start_position] + found.text == whole


def test_without_a_place_for_it_the_history_is_kept_in_memory(generator, monkeypatch, state):
    state.write_text("a file in the way")
    assert isinstance(repl._history(), InMemoryHistory)
    assert typed(generator, "a\r\x1b[A\r" + END, monkeypatch).count("\n") >= 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_full_disk_does_not_end_a_talk(generator, monkeypatch, state):
    state.mkdir()
    (state / "history").symlink_to("/dev/full")
    monkeypatch.setattr("prompt_toolkit.history.FileHistory.load_history_strings", lambda self: [])
    assert typed(generator, "a\r" + END, monkeypatch) == generator.generate("a", 20, seed=5) + "\n"


def test_without_prompt_toolkit_it_says_what_to_install(generator, monkeypatch):
    monkeypatch.setitem(sys.modules, "prompt_toolkit", None)
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(ImportError, match="--interactive: .* got none; run: pip install prompt_toolkit"):
        repl.interact(generator, settings())


# ------------------------------------------------------------------------------------------ in a process of its own


@pytest.fixture
def command(generator, tmp_path):
    save_checkpoint(tmp_path / "model", generator.model, generator.tokenizer, generator.config)
    return [sys.executable, "-m", "charrnn", "sample", str(tmp_path / "model"), "--top-p", "none"]


def test_lines_from_a_pipe(generator, command):
    lines = "ab:\n:temp 0.5\n:tmp\n\n"
    result = subprocess.run(
        [*command, "--interactive", "--seed", "5", "--length", "30"],
        input=lines,
        capture_output=True,
        text=True,
        timeout=60,
    )
    expected = generator.generate("ab:", 30, seed=5), generator.generate("", 30, temperature=0.5, seed=6)
    assert result.stdout == "".join(f"{text}\n" for text in expected)
    assert "unknown command ':tmp'; :help shows all of them\n" in result.stderr
    assert (result.returncode, "Traceback" in result.stderr) == (0, False)


class Screen:
    """A pseudo-terminal with a program in it; `more` redirects some of its streams."""

    def __init__(self, command, folder, rows=40, term="xterm", **more):
        import fcntl
        import pty
        import struct
        import termios

        self._main, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", rows, 120, 0, 0))
        environment = os.environ | {"TERM": term, "HOME": str(folder), "XDG_STATE_HOME": str(folder / "state")}
        streams = {"stdin": inner, "stdout": inner, "stderr": inner} | more
        self.process = subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=_owned, **streams)
        os.close(inner)

    def type(self, keys):
        os.write(self._main, keys.encode())

    def wait(self, until, seconds=20):
        """Read on until `until(what came since the last wait)`, and return that: texts between control codes."""
        seen, end = "", time.monotonic() + seconds
        while not until(seen):
            assert time.monotonic() < end, seen[-2000:]
            if select.select([self._main], [], [], 0.1)[0]:
                try:
                    part = os.read(self._main, 65536).decode(errors="replace")
                except OSError:  # the program has ended
                    break
                seen += part
                self.type("\x1b[1;1R" * part.count("\x1b[6n"))  # it asks where the cursor is
        return seen

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._main)


def _owned():
    """In the new process: the terminal is its own, so that Ctrl-C reaches it."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@POSIX
def test_ctrl_c_stops_the_text_and_not_the_program(command, tmp_path):
    screen = Screen([*command, "--interactive", "--length", "0", "--seed", "5"], tmp_path)
    try:
        for seed in ("5", "6"):
            screen.wait(lambda seen, seed=seed: f"length 0  seed {seed}" in seen)  # the toolbar below the prompt
            screen.type("abc\r")
            screen.wait(lambda seen: len(seen) > 4000)  # without an end
            screen.type("\x03")
        screen.wait(lambda seen: "length 0  seed 7" in seen)
        screen.type("ab\x03:len")  # a line that is cleared, a command that is completed
        screen.wait(lambda seen: ":length" in seen)
        screen.type("\t")
        screen.wait(lambda seen: ":length" in seen or "gth" in seen)
        screen.type(" 3\r")
        screen.wait(lambda seen: "length 3  seed 7" in seen)
        screen.type(":quit\r")
        screen.wait(lambda _: screen.process.poll() is not None)
        assert screen.process.wait(10) == 0
    finally:
        screen.close()


@POSIX
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_the_line_is_shown_in_a_low_terminal(command, tmp_path, rows):
    screen = Screen([*command, "--interactive", "--length", "3", "--seed", "5"], tmp_path, rows)
    try:
        seen = screen.wait(lambda seen: ">" in seen or "too small" in seen)
        screen.type("abcde")
        seen += screen.wait(lambda seen: "abcde" in seen or "too small" in seen)
        screen.type("\r:quit\r")
        seen += screen.wait(lambda _: screen.process.poll() is not None)
        assert "too small" not in seen
        assert ("length 3  seed 5" in seen) == (rows > 3)  # the toolbar
    finally:
        screen.close()


@POSIX
def test_a_dumb_terminal_gets_lines_alone(generator, command, tmp_path):
    screen = Screen([*command, "--interactive", "--length", "30", "--seed", "5"], tmp_path, term="dumb")
    try:
        seen = screen.wait(lambda seen: "Ctrl-D ends" in seen)
        screen.type("ab\n")
        text = generator.generate("ab", 30, seed=5).replace("\n", "\r\n")
        seen += screen.wait(lambda seen: text in seen)
        screen.type(":length 0\nc\n")
        seen += screen.wait(lambda seen: len(seen) > 4000)
        screen.type("\x03")  # stops the text, not the program
        screen.type(":settings\n")
        seen += screen.wait(lambda seen: "top_k " in seen)
        screen.type(END)
        screen.wait(lambda _: screen.process.poll() is not None)
        assert screen.process.wait(10) == 0
        assert "\x1b" not in seen
    finally:
        screen.close()


@POSIX
def test_the_prompt_is_not_drawn_into_files(generator, command, tmp_path):
    with open(tmp_path / "out", "wb") as out, open(tmp_path / "err", "wb") as err:
        screen = Screen([*command, "--interactive", "--length", "9", "--quiet"], tmp_path, stdout=out, stderr=err)
    try:
        screen.type(":seed 5\nab\n:quit\n")
        screen.wait(lambda _: screen.process.poll() is not None)
        assert screen.process.wait(10) == 0
    finally:
        screen.close()
    assert (tmp_path / "out").read_text() == generator.generate("ab", 9, seed=5) + "\n"
    assert "\x1b" not in (tmp_path / "err").read_text()


@POSIX
def test_ctrl_c_ends_what_reads_from_a_pipe(command):
    arguments = [*command, "--interactive", "--length", "0"]
    with started(arguments, stdin=subprocess.PIPE) as process:
        process.stdin.write(b"ab\ncd\n")
        process.stdin.flush()
        assert process.stdout.read(3000).startswith(b"ab")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130
    assert b"Traceback" not in err
