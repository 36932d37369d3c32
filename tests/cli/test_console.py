import argparse
import re
import sys
from pathlib import Path

import pytest

from charrnn.cli import console, flags
from charrnn.cli.score import show_heat
from charrnn.config import config_fields


@pytest.mark.parametrize(
    ("value", "shown"),
    [(2.0, "2 s"), (0.0005, "500 µs"), (0.0321, "32.1 ms"), (12345.0, "12,345 s"), (1.0, "1 s"), (0.0, "0 µs")],
)
def test_seconds_are_shown_in_the_unit_that_suits_them(value, shown):
    assert console.seconds(value) == shown


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "x", ""])
def test_a_number_above_0_is_nothing_else(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected a number above 0, got"):
        flags.positive(text)
    assert flags.positive("1e-5") == 1e-5


def test_whole_numbers_have_a_least():
    assert flags.whole("0") == 0
    for text in ("0", "2.0", "-3", "x"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected a whole number of at least 1, got"):
            flags.count(text)


def test_a_file_to_write_is_checked_before_the_work(tmp_path):
    assert flags.new_file(str(tmp_path / "a.json")) == tmp_path / "a.json"
    assert flags.figure_file(str(tmp_path / "a.SVG")) == tmp_path / "a.SVG"
    for path in (tmp_path, tmp_path / "nowhere" / "a.json"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected a path in an existing folder"):
            flags.new_file(str(path))
    with pytest.raises(argparse.ArgumentTypeError, match=r"ends in .png or .svg, got"):
        flags.figure_file(str(tmp_path / "a.pdf"))


def test_only_flags_that_were_given_are_settings():
    parser = argparse.ArgumentParser()
    fields = config_fields("generation", "data", "logging")
    flags.add_settings(parser, (field for field in fields if field[2] != "data"))
    given = [
        "--top-p",
        "None",
        "--prompt",
        "a\\n\\\\n",
        "--log-dir",
        "none",
        "--separator",
        "\\n\\t",
        "--no-tensorboard",
    ]
    assert flags.given_settings(parser.parse_args(given)) == {
        "top_p": None,
        "prompt": "a\n\\n",
        "log_dir": "none",
        "separator": "\n\t",
        "tensorboard": False,
    }
    with pytest.raises(SystemExit):
        parser.parse_args(["--data", "x"])


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two  blanks \n\t and a line"), "two  blanks and a line"),
        (ValueError("run.yaml\r: a tab\t, \u00a0, \udce9, é"), "run.yaml\\r: a tab\\t, \\xa0, \\udce9, é"),
        (FileNotFoundError(2, "No such file or directory", "my  run "), "'my  run ': No such file or directory"),
        (FileNotFoundError(2, "No such file or directory", Path("a\n")), "'a\\n': No such file or directory"),
        (OSError("nothing else"), "nothing else"),
    ],
)
def test_an_error_is_a_line_in_which_everything_can_be_seen(error, line):
    assert console.one_line(error) == line


@pytest.mark.parametrize("read", [flags.path, flags.new_file, flags.figure_file])
def test_no_path_is_empty(read):
    with pytest.raises(argparse.ArgumentTypeError, match="expected a path, got ''"):
        read("")


def test_the_program_can_be_copied(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/my tools/charrnn"])
    assert console.program() == "'/my tools/charrnn'"


def test_json_has_null_for_what_is_not_finite(capsys):
    console.print_json({"a": [1.5, float("inf"), {"b": float("nan")}], "c": (None, True, "NaN")})
    assert capsys.readouterr().out == '{"a": [1.5, null, {"b": null}], "c": [null, true, "NaN"]}\n'


def test_a_table_shows_markup_as_it_is(capsys):
    console.show_rows("title", [{"a": "[bold]x[/bold]"}], {"a": "{a}"})
    console.show("title", {"b": "[red]y"})
    out = capsys.readouterr().out
    assert "[bold]x[/bold]" in out
    assert "[red]y" in out


def test_what_is_shown_in_a_terminal_obeys_nothing(capsys, monkeypatch):
    """A file may have any name."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(getattr(sys, name), "isatty", lambda: True)
    console.write("a\x07\r\n\tb\x7f")
    console.say("\x1b[2J")
    console.show("\x1b]0;[red]title\x07", {"\x1b[1m": "\x9b2J"})
    console.show_rows("\x1bc", [{"column": "\x1b[2J"}], {"column\x07": "{column}"})
    show_heat([("\x1b", "0.5", 1.0)])
    out, err = capsys.readouterr()
    assert re.sub(r"\x1b\[[\d;]*m|[\n\t]", "", out + err).isprintable()


def test_cells_have_formats_of_their_own_and_a_sign_for_nothing(capsys):
    row = {"speed": 1234.5, "time": 5e-4, "size": 3e8, "none": None, "nested": {"x": 1}}
    columns = {"a": "{speed:,.0f}/s", "b": "{time:time}", "c": "{size:MB}", "d": "{none:.2f}", "e": "{absent[x]}"}
    console.show_rows("title", [row], columns | {"f": "{nested[x]}"})
    assert re.findall(r"[^│\s][^│]*?(?= +│)", capsys.readouterr().out.splitlines()[4]) == [
        "1,234/s",
        "500 µs",
        "300 MB",
        "-",
        "-",
        "1",
    ]


def test_help_shows_defaults_that_say_something(capsys):
    parser = flags.Parser(prog="x")
    parser.add_argument("--rounds", type="count", default=3, help="turns")
    parser.add_argument("--out", help="a file")
    parser.add_argument("--quiet", action="store_true", help="say less")
    out = parser.format_help()
    assert "turns (default: 3)" in out
    assert out.count("default") == 1
    with pytest.raises(SystemExit):
        parser.parse_args(["--rounds", "0"])
    assert "argument --rounds: expected a whole number of at least 1, got '0'" in capsys.readouterr().err
