import io
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import torch

import charrnn
import charrnn.cli.main
from charrnn.checkpoint import load_checkpoint
from charrnn.cli.main import main
from charrnn.config import config_fields
from charrnn.data.characters import escape_controls
from charrnn.training.events import Stepped
from tests.conftest import TINY, failing_stream, started

FLAGS = [part for name, value in TINY.items() for part in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture
def run(text_file, tmp_path, capfd):
    """A trained run's directory."""
    assert main(["train", "--data", str(text_file), "--out", str(tmp_path / "run"), "--quiet", *FLAGS]) == 0
    capfd.readouterr()
    return tmp_path / "run"


def fail(capfd, *arguments) -> tuple[int, str]:
    """Exit code and the one line of error of a command that must fail and say nothing else."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as error:
        code = error.code
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert "error: " in err
    return code, err


# --------------------------------------------------------------------------------------------------------------- train


def test_train_tells_what_it_does_and_shows_a_sample(text_file, tmp_path, capfd):
    assert main(["train", "--data", str(text_file), "--out", str(tmp_path / "run"), *FLAGS]) == 0
    out, err = capfd.readouterr()
    assert "2x8 lstm" in out
    assert re.search(r"[abcde \n]{400}", out)
    assert "best validation loss" in err
    assert "100%" in err
    assert load_checkpoint(tmp_path / "run").training_state["step"] == 12


def test_train_quiet_prints_the_directory_alone(text_file, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--data", str(text_file), "--quiet", *FLAGS]) == 0
    out, err = capfd.readouterr()
    assert re.fullmatch(r"checkpoints.words-lstm-\d{8}-\d{6}\n", out)
    assert err == ""
    assert load_checkpoint(out.strip()).model.config.hidden_size == 8


def test_dry_run_shows_the_settings_and_writes_nothing(text_file, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert main(["train", "--data", str(text_file), "--dry-run", *FLAGS]) == 0
    out, _ = capfd.readouterr()
    assert "hidden_size: 8" in out
    assert "steps an epoch" in out
    assert set(tmp_path.iterdir()) - set(before) <= {tmp_path / "data"}


def test_flags_win_over_the_file(text_file, tmp_path, capfd):
    path = tmp_path / "run.yaml"
    path.write_text("model: {dropout: 0.5, hidden_size: 9}\nlogging: {tensorboard: true}")
    flags = ["--dropout", "0", "--no-tensorboard", "--data", str(text_file), "--dry-run"]
    assert main(["train", str(path), *flags]) == 0
    out, _ = capfd.readouterr()
    assert "dropout: 0.0" in out
    assert "hidden_size: 9" in out
    assert "tensorboard: false" in out


def test_a_finished_run_says_so(run, capfd):
    assert main(["train", "--resume", str(run)]) == 0
    out, err = capfd.readouterr()
    assert out == ""
    assert "already finished at step 12; raise the budget to continue" in err


def test_the_recipe_and_an_early_end_are_told(text_file, tmp_path, capfd):
    out = tmp_path / "run"
    recipe = [
        "--optimizer",
        "muon",
        "--schedule",
        "constant",
        "--ema-decay",
        "0.9",
        "--patience",
        "1",
        "--min-delta",
        "9",
    ]
    arguments = ["train", "--data", str(text_file), "--out", str(out), *FLAGS, "--max-steps", "99", *recipe]
    assert main(arguments) == 0
    said, err = capfd.readouterr()
    words = " ".join(re.sub("[│┃]", " ", said).split())
    assert "optimizer muon, learning_rate 0.002, schedule constant, ema_decay 0.9, patience 1, min_delta 9.0" in words
    assert "ended early at step 10: no improvement in 1 evaluations" in err
    assert main(["train", "--resume", str(out)]) == 0
    assert "already finished at step 10; raise the patience to continue" in capfd.readouterr().err


def test_a_text_given_as_the_config_is_told_apart(text_file, tmp_path, capfd):
    assert "got plain text; to train on it, use --data" in fail(capfd, "train", text_file)[1]
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    assert "got no text; to train on it, use --data" in fail(capfd, "train", tmp_path / "picture.png")[1]


def test_resume(run, capfd):
    assert main(["train", "--resume", str(run), "--max-steps", "20", "--quiet"]) == 0
    assert load_checkpoint(run / "last").training_state["step"] == 20


@pytest.mark.parametrize("failure", ["nobody reads", "no space", "closed", "none"])
def test_a_run_goes_on_where_its_output_fails(text_file, tmp_path, monkeypatch, failure):
    with failing_stream(failure) as out, failing_stream(failure) as err:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        code = main(["train", "--data", str(text_file), "--out", str(tmp_path / "run"), *FLAGS])
        assert (sys.stdout, sys.stderr) == (out, err)
        monkeypatch.undo()
    assert code == 0
    assert load_checkpoint(tmp_path / "run" / "last").training_state["step"] == 12


def test_a_closed_standard_input_is_an_error_in_one_line(run, capfd, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert "-: expected text on standard input, but it is closed" in fail(capfd, "data", "-")[1]
    error = fail(capfd, "sample", run, "--interactive", "--quiet")[1]
    assert "--interactive: expected lines on standard input, but it is closed" in error


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_sigterm_saves_and_exits_as_it_does_elsewhere(text_file, tmp_path, capfd, monkeypatch):
    def terminate(bar, event):
        if isinstance(event, Stepped) and event.step == 7:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("charrnn.training.callbacks.ProgressBar.__call__", terminate)
    assert main(["train", "--data", str(text_file), "--out", str(tmp_path / "run"), *FLAGS]) == 143
    assert "stopped at step 7" in capfd.readouterr().err
    assert load_checkpoint(tmp_path / "run" / "last").training_state["step"] == 7


def test_init_from(run, text_file, tmp_path):
    command = ["train", "--init-from", str(run), "--data", str(text_file), "--out", str(tmp_path / "new"), "--quiet"]
    assert main([*command, "--max-steps", "3"]) == 0
    assert load_checkpoint(tmp_path / "new" / "last").model.config.hidden_size == 8


def test_every_setting_is_a_flag_with_help(capfd):
    with pytest.raises(SystemExit) as caught:
        main(["train", "--help"])
    assert caught.value.code == 0
    shown = " ".join(capfd.readouterr().out.split())
    for _, _, name, field in config_fields():
        assert f"--{name.replace('_', '-')}" in shown
        assert field.description.split(";")[0].split()[0] in shown


# --------------------------------------------------------------------------------------------------------------- score


def test_score_shows_each_token_the_worst_places_and_the_mean(run, capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["score", str(run), "ab cd\neab"]) == 0
    out, err = capfd.readouterr()
    assert "each token, its probability, and its surprisal in bits" in err
    assert "\x1b[" in out
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out)
    assert plain.splitlines()[0].split() == ["a", "b", "␣", "c", "d", "⏎"]
    assert plain.splitlines()[4].split() == ["e", "a", "b"]
    found = charrnn.score(charrnn.load_model(run), "ab cd\neab")
    assert f"{found.bpc:.3f} bits per character" in plain
    assert plain.splitlines()[2].split() == [f"{bits:.1f}" for bits in found.surprisal[:6]]
    assert f"{found.surprisal.max():.1f}" in plain[plain.index("most surprising") :]


def test_score_of_a_file_of_standard_input_and_as_json(run, tmp_path, capfd, monkeypatch):
    text = "ab cd\n" * 30
    path = tmp_path / "small.txt"
    path.write_text(text)
    assert main(["score", str(run), str(path), "--json"]) == 0
    from_file = json.loads(capfd.readouterr().out)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert main(["score", str(run), "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == from_file
    assert "".join(each["token"] for each in from_file["scores"]) == text
    assert sum(each["surprisal"] for each in from_file["scores"]) / len(text) == pytest.approx(from_file["bpc"])
    assert from_file["scores"][0]["probability"] == pytest.approx(2 ** -from_file["scores"][0]["surprisal"])


def test_score_of_a_text_longer_than_a_name_may_be(run, capfd):
    text = "ab cd " * 100
    assert main(["score", str(run), text, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["characters"] == len(text)


def test_score_says_what_it_cannot_read(run, capfd):
    assert (
        "TEXT: expected a text, an existing file or -, got 'gone.txt'; no such file"
        in fail(capfd, "score", run, "gone.txt")[1]
    )
    assert "got 'Z' (U+005A) at position 2" in fail(capfd, "score", run, "abZ")[1]


def test_what_a_checkpoint_and_the_devices_are_as_json(run, capfd):
    assert main(["inspect", str(run), "--json"]) == 0
    info = json.loads(capfd.readouterr().out)
    assert (info["model"]["hidden_size"], info["training"]["step"]) == (8, 12)
    assert main(["devices", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)[-1]["device"] == "cpu"


# -------------------------------------------------------------------------------------------------------------- sample


def test_sample_prints_the_text_alone_when_quiet(run, capfd):
    assert main(["sample", str(run), "--quiet", "--prompt", "ab", "--length", "40", "--seed", "1"]) == 0
    out, err = capfd.readouterr()
    assert re.fullmatch(r"ab[abcde \n]{40}\n", out)
    assert err == ""


def test_sample_says_its_settings_beside_the_text(run, capfd):
    assert main(["sample", str(run), "--length", "5", "--seed", "7"]) == 0
    out, err = capfd.readouterr()
    assert len(out) == 6
    assert "seed 7" in err
    assert "top_p 0.9" in err


def test_markup_in_a_text_is_not_interpreted(tmp_path, capfd):
    path = tmp_path / "markup.txt"
    path.write_text("[bold]x[/bold] :smile: " * 200)
    assert main(["train", "--data", str(path), "--out", str(tmp_path / "m"), "--quiet", *FLAGS]) == 0
    assert main(["sample", str(tmp_path / "m"), "--quiet", "--prompt", "[bold]x[/bold] :smile:", "--length", "1"]) == 0
    assert "\n[bold]x[/bold] :smile:" in capfd.readouterr().out


def test_half_precision_is_for_texts_side_by_side(run, capfd):
    assert main(["sample", str(run), "--precision", "bf16", "--length", "5"]) == 2
    assert "--precision: expected bf16 only with --num or --output" in capfd.readouterr().err
    assert main(["sample", str(run), "--precision", "bf16", "--length", "5", "--num", "2"]) == 0


def test_characters_that_are_not_there_are_refused_before_the_training(text_file, tmp_path, capfd):
    flags = ["train", "--data", str(text_file), "--forbid", "Ω", "--out", str(tmp_path / "new"), "--max-steps", "1"]
    assert main(flags) == 2
    assert "forbid: expected characters in the vocabulary, got 'Ω'" in capfd.readouterr().err


def test_a_text_without_end_comes_only_as_it_is_written(run, tmp_path, capfd):
    for flags in (["--num", "2"], ["--output", str(tmp_path / "out.txt")]):
        assert main(["sample", str(run), "--length", "0", *flags]) == 2
        assert "--length: expected at least 1 with --num or --output" in capfd.readouterr().err
    with pytest.raises(ValueError, match="length: expected a number for a text that comes whole, got None"):
        charrnn.load_model(run).generate(length=None)
    pieces = charrnn.load_model(run).stream(length=None, seed=1)
    assert sum(len(next(pieces)) for _ in range(50)) > 1000


def test_sample_many_to_a_file(run, tmp_path, capfd):
    flags = ["--num", "3", "--length", "10", "--seed", "4", "--output", str(tmp_path / "out.txt")]
    assert main(["sample", str(run), *flags]) == 0
    text = (tmp_path / "out.txt").read_text()
    assert [line for line in text.splitlines() if line.startswith("-----")] == [
        f"----- seed {s} -----" for s in (4, 5, 6)
    ]
    assert capfd.readouterr().out == ""
    single = ["sample", str(run), "--quiet", "--length", "10", "--seed", "5"]
    assert main(single) == 0
    assert f"----- seed 5 -----\n{capfd.readouterr().out}" in text


def test_a_byte_model_reads_and_writes_any_bytes(tmp_path, capfdbinary, monkeypatch):
    (tmp_path / "any.bin").write_bytes(random.Random(1).randbytes(3000))
    settings = TINY | {"data": tmp_path / "any.bin", "tokenizer": "byte", "max_steps": 1}
    flags = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert main(["train", "--quiet", "--out", str(tmp_path / "run"), *flags]) == 0
    capfdbinary.readouterr()
    asked = ["sample", str(tmp_path / "run"), "--quiet", "--length", "99", "--seed", "1", "--prompt", "\udcff"]
    assert main([*asked, "--output", str(tmp_path / "out")]) == 0
    written = (tmp_path / "out").read_bytes()
    assert written.startswith(b"\xff")
    assert len(written.decode("utf-8", "surrogateescape")) == 100
    assert "\ufffd" not in written.decode("utf-8", "ignore")
    assert main(asked) == 0
    assert capfdbinary.readouterr().out == written
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert main([*asked[:-2]]) == 0
    shown = capfdbinary.readouterr().out.decode()  # a terminal gets text
    assert shown.count("\ufffd") > 10
    assert main(["score", str(tmp_path / "run"), str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capfdbinary.readouterr().out)["characters"] == 100
    assert main(["data", str(tmp_path / "out"), "--tokenizer", "byte", "--stats"]) == 0


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_a_terminal_obeys_nothing_in_a_text(tmp_path, capfdbinary, monkeypatch, tokenizer):
    (tmp_path / "log.txt").write_bytes(b"\x1b]0;title\x07\x1b[2Jab\t\n" * 200)
    flags = [*FLAGS, "--data", str(tmp_path / "log.txt"), "--tokenizer", tokenizer, "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert main(["train", *flags]) == 0
    shown = capfdbinary.readouterr().out
    assert b"\\x1b" in shown  # in the sample
    assert b"\x07" not in shown
    assert b"\x1b" not in re.sub(rb"\x1b\[\d*m", b"", shown)  # the table's title is slanted
    texts = {}
    asked = ["sample", str(tmp_path / "run"), "--quiet", "--length", "99", "--seed", "1", "--allow", "\x1b\x07ab\t\n"]
    for terminal in (True, False):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        for more in ([], ["--raw"], ["--num", "2"], ["--num", "2", "--raw"]):
            assert main([*asked, *more]) == 0
            texts[terminal, *more] = capfdbinary.readouterr().out
    for more in ([], ["--num", "2"]):
        raw = texts[False, *more]
        assert b"\x1b" in raw
        assert raw == texts[False, *more, "--raw"] == texts[True, *more, "--raw"]
        shown = texts[True, *more].decode()
        assert shown.rstrip() == escape_controls(raw.decode()).rstrip()  # a terminal's line is ended


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
def test_a_full_disk_keeps_the_text_that_was_there(run, tmp_path, capfd):
    import resource

    (tmp_path / "old.txt").write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        code = main(["sample", str(run), "--quiet", "--length", "2000", "--output", str(tmp_path / "old.txt")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert code == 1
    assert "old.txt': File too large" in capfd.readouterr().err
    assert (tmp_path / "old.txt").read_text() == "old"


def test_argmax_and_none(run, capfd):
    texts = []
    for flags in (["--argmax"], ["--temperature", "0"], ["--argmax", "--top-p", "none", "--top-k", "Null"]):
        assert main(["sample", str(run), "--quiet", "--length", "20", *flags]) == 0
        texts.append(capfd.readouterr().out)
    assert len(set(texts)) == 1


def test_interactive_reads_prompts_until_the_end(run, capfd, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("ab\nZ\n:temp -1\nc\n"))
    assert main(["sample", str(run), "--interactive", "--length", "5", "--seed", "1"]) == 0
    out, err = capfd.readouterr()
    assert out.startswith("ab")
    assert "\nc" in out
    assert "got 'Z' (U+005A) at position 0" in err
    assert "(--temperature): expected a value greater than or equal to 0, got '-1'" in err


# ------------------------------------------------------------------------------------------------- eval, inspect, data


def test_eval(run, capfd, text_file):
    assert main(["eval", str(run), "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["loss"] == pytest.approx(load_checkpoint(run).training_state["val_loss"])
    assert result["characters"] == 149
    assert main(["eval", str(run), "--split", "all"]) == 0
    out, _ = capfd.readouterr()
    assert "bits per character" in out
    assert "2,999" in out


def test_inspect(run, capfd):
    assert main(["inspect", str(run)]) == 0
    out, _ = capfd.readouterr()
    for expected in ("lstm", "layers.1.weight_hh_l0", "32 x 8", "validation bpc", "bytes", "7 tokens"):
        assert expected in out


def test_data_as_json(text_file, text, capfd):
    assert main(["data", str(text_file), "--stats", "--baselines", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["characters"], found["tokens"], found["unknown"]) == (3000, 3000, 0)
    assert found["splits"] == {"train": 2700, "val": 150, "test": 150}
    assert (found["lines"], found["words"], found["bytes"]) == (text.count("\n") + 1, len(text.split()), 3000)
    assert found["common"][0]["count"] == max(text.count(character) for character in set(text))
    assert found["entropy"] < found["uniform"] == found["baselines"]["uniform"]
    assert main(["data", "--json"]) == 0
    assert "shakespeare" in [entry["name"] for entry in json.loads(capfd.readouterr().out)]


def test_the_token_cache_is_shown_and_cleared(text_file, data_dir, capfd, monkeypatch):
    monkeypatch.setattr(charrnn.cli.data, "default_data_dir", lambda: data_dir)
    assert main(["data", "--cache"]) == 0  # empty
    assert main(["data", str(text_file), "--tokenizer", "word", "--vocab-size", "9"]) == 0
    capfd.readouterr()
    assert main(["data", "--cache", "--json"]) == 0
    tokens, vocabulary = sorted(json.loads(capfd.readouterr().out), key=lambda entry: -entry["vocab_size"])
    files = [path for path in (data_dir / ".cache").iterdir() if path.suffix != ".vocabulary"]
    assert tokens == {
        "text": str(text_file),
        "tokenizer": "word",
        "vocab_size": 9,
        "bytes": sum(path.stat().st_size for path in files),
        "files": str(files[0].with_suffix(".*")),
    }
    assert sorted(path.suffix for path in files) == [".json", ".spelling", ".tokens"]
    assert vocabulary["text"] == ""
    assert main(["data", "--cache"]) == 0
    out, err = capfd.readouterr()
    assert "word, 9 different" in out
    assert "(a vocabulary)" in out
    assert f"{tokens['bytes'] + vocabulary['bytes']:,} bytes" in err
    assert main(["data", "--cache", "clear"]) == 0
    assert f"removed {tokens['bytes'] + vocabulary['bytes']:,} bytes" in capfd.readouterr().err
    assert list((data_dir / ".cache").iterdir()) == []
    assert "NAME: expected to be left out with --cache" in fail(capfd, "data", str(text_file), "--cache", "clear")[1]


def test_data(text_file, capfd):
    assert main(["data"]) == 0
    assert "tinyshakespeare" in capfd.readouterr().out
    assert main(["data", str(text_file), "--stats", "--val-frac", "0.1"]) == 0
    out, _ = capfd.readouterr()
    for expected in (
        "3,000",
        "of kind char, 7 different",
        "2,700",
        "300",
        "' '",
        "bits per character",
        "lines",
        "words",
    ):
        assert expected in out
    assert "unknown" not in out
    assert main(["data", str(text_file), "--tokenizer", "word", "--min-frequency", "20"]) == 0
    assert "of kind word" in (out := capfd.readouterr().out)
    assert re.search(r"unknown .* \d+\.\d\d% of the tokens", out)


def test_a_separator_is_typed_as_in_a_string(tmp_path, capfd):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("two")
    assert main(["data", str(tmp_path), "--separator", "\\n--\\n", "--stats"]) == 0
    out, _ = capfd.readouterr()
    assert re.search(r"characters +│ 10 ", out)
    assert re.search(r"lines +│ 3 ", out)


def test_baselines_from_worst_to_best_with_the_model_among_them(run, text_file, capfd):
    assert main(["data", str(text_file), "--baselines"]) == 0
    assert re.search(r"uniform .* 2\.8074", capfd.readouterr().out)  # log2 of 7
    assert main(["eval", str(run), "--baselines", "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    ladder = result["baselines"]
    assert list(ladder)[:3] == ["uniform", "unigram", "2-gram"]
    assert ladder["this model"] == result["bpc"]
    assert main(["eval", str(run), "--baselines"]) == 0
    shown = [
        float(bpc)
        for bpc in re.findall(r"│ (?:\d-gram|uniform|unigram|this model) +│ (\d\.\d+)", capfd.readouterr().out)
    ]
    assert len(shown) == len(ladder) == 10
    assert shown == sorted(shown, reverse=True)


def test_baselines_need_nothing_of_the_notebooks(run):
    code = """
import sys
for name in ("matplotlib", "ipywidgets", "scipy", "IPython", "charrnn.lab"):
    sys.modules[name] = None
from charrnn.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
    arguments = ["eval", str(run), "--baselines", "--json"]
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "8-gram" in json.loads(result.stdout)["baselines"]


def test_only_the_measurement_that_is_asked_for_is_imported():
    code = """
import sys
from charrnn.cli.main import main
try:
    main(["bench", "--help"])
finally:
    assert not {"torch", "charrnn.bench", "matplotlib", "scipy"} & set(sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "learning-rate" in result.stdout


def test_the_vocabulary_of_a_model_is_not_a_setting_any_more(run, text_file, capfd):
    code, error = fail(capfd, "train", "--init-from", run, "--data", text_file, "--tokenizer", "byte")
    assert code == 2
    assert "--tokenizer" in error
    assert fail(capfd, "eval", run, "--tokenizer", "byte")[0] == 2


def test_devices(capfd):
    assert main(["devices"]) == 0
    assert "cpu" in capfd.readouterr().out


# --------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected text, got none: there is nothing in it"),
        (b"x", "expected at least 2 tokens, got 0; use a longer text"),
        (bytes(range(256)), "expected text in UTF-8, got byte 0x80 at offset 128"),
    ],
)
def test_a_file_that_cannot_be_learned_from(tmp_path, capfd, content, message):
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    code, err = fail(capfd, "train", "--data", path, "--out", tmp_path / "run")
    assert code == 1
    assert message in err
    assert "bad.txt" in err
    assert not (tmp_path / "run").exists()


def test_a_missing_path(tmp_path, capfd):
    assert fail(capfd, "train", "--data", tmp_path / "no.txt")[0] == 1
    code, err = fail(capfd, "train", tmp_path / "no.yaml")
    assert code == 1
    assert "no.yaml': No such file or directory" in err
    assert "a  b.yaml\\r': No such file" in fail(capfd, "train", tmp_path / "a  b.yaml\r")[1]


def test_an_unknown_key(tmp_path, capfd):
    path = tmp_path / "run.yaml"
    path.write_text("training: {bath_size: 3}")
    code, err = fail(capfd, "train", path)
    assert code == 2
    assert "run.yaml: unknown key 'training.bath_size'; did you mean 'batch_size'?" in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["train", "--hidden-size", "0"], "--hidden-size): expected a value greater than or equal to 1, got '0'"),
        (["train", "--hiden-size", "3"], "unrecognized argument --hiden-size; did you mean --hidden-size?"),
        (["train", "--clip-by", "norm"], "unrecognized argument --clip-by; it is now called --grad-clip-mode"),
        (["train", "--zzz"], "unrecognized argument --zzz (see"),
        (["sample", "x", "--hidden-size", "3"], "unrecognized argument --hidden-size (see charrnn sample --help)"),
        (["sample", "x", "--quite"], "did you mean --quiet?"),
        (["train", "a.yaml", "--resume", "b"], "CONFIG: expected to be left out with --resume"),
        (["train", "--out", "a", "--resume", "b"], "--out: expected to be left out with --resume"),
        (["train", "--init-from", "a", "--dropout", "0"], "--dropout: expected to be left out with --init-from"),
        (["sample", "x", "--interactive", "--output", "f"], "--output: expected to be left out with --interactive"),
        (["train", "--device", "cpu", "--precision", "fp16"], "--precision): expected fp32 or bf16 on cpu, got 'fp16'"),
        (["train", "--max-steps", "x"], "--max-steps): expected a valid integer"),
        (["train", "--device", "tpu"], "--device): expected auto, cpu"),
        (["train", "--resume", "a", "--init-from", "b"], "--init-from: not allowed with argument --resume"),
        (["sample"], "required: CHECKPOINT"),
        (["sample", "x", "--prompt", "-Hello"], "expected one argument; if it starts with a dash: --prompt=-… (see"),
        (
            ["train", "–hidden-size", "3"],
            "–hidden-size: expected two hyphens, got a dash; write --hidden-size",
        ),
        (["sample", "x", "—argmax"], "argument —argmax: expected two hyphens, got a dash; write --argmax"),
        (["data", "—tokenizer=word"], "expected two hyphens, got a dash; write --tokenizer"),
        (
            ["train", "--tie-weights", "true"],
            "--tie-weights: expected no value, got 'true'; write --tie-weights or",
        ),
        (
            ["train", "x", "--residual", "False"],
            "--residual: expected no value, got 'False'; write --residual or",
        ),
        (
            ["train", "--no-residual", "true"],
            "--no-residual: expected no value, got 'true'; write --residual or",
        ),
        (["train", "--residual=true"], "--residual/--no-residual: expected no value, got 'true'"),
        (["data", "--stats", "true"], "--stats: expected no value, got 'true'; write --stats alone"),
        (["train", "--out", "", "--dry-run"], "argument --out: expected a path, got ''"),
        (["train", "--resume", ""], "argument --resume: expected a path, got ''"),
        (["train", "--init-from", ""], "argument --init-from: expected a path, got ''"),
        (["train", ""], "argument config: expected a path, got ''"),
        (["sample", ""], "argument CHECKPOINT: expected a path, got ''"),
        (["sample", "x", "--output", ""], "argument --output: expected a path, got ''"),
        (["plot", "x", ""], "argument RUN: expected a path, got ''"),
        (["bench", "ladder", "--out", ""], "argument --out: expected a path, got ''"),
        (["bench", "sample", "--checkpoint", ""], "argument --checkpoint: expected a path, got ''"),
        (["bench", "batch-size", ""], "argument config: expected a path, got ''"),
        ([], "required: COMMAND"),
    ],
)
def test_misuse_is_one_line_that_names_the_flag(capfd, flags, message):
    code, err = fail(capfd, *flags)
    assert code == 2
    assert message in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt", "aZ"], "--prompt: expected only characters of the vocabulary, got 'Z' (U+005A) at position 1"),
        (["--temperature", "-1"], "--temperature): expected a value greater than or equal to 0"),
        (["--temperature", "nan"], "--temperature): expected a finite number"),
        (["--top-p", "0"], "--top-p): expected a value greater than 0"),
        (["--top-k", "0"], "--top-k): expected a value greater than or equal to 1"),
        (["--length", "-1"], "--length): expected a value greater than or equal to 0"),
        (["--num", "0"], "argument --num: expected a whole number of at least 1, got '0'"),
    ],
)
def test_wrong_sampling_flags(run, capfd, flags, message):
    code, err = fail(capfd, "sample", run, "--quiet", *flags)
    assert code == 2
    assert message in err


def test_commands_can_be_copied_whatever_the_names(text_file, tmp_path, capfd):
    """Each is taken out of the message as a shell would read it."""
    out, text = tmp_path / "my run & more", tmp_path / "it's a text.txt"
    text_file.rename(text)
    assert "--data" in (err := fail(capfd, "train", text)[1])
    assert copied(err, "--data") == str(text)
    assert main(["train", "--data", str(text), "--out", str(out), *FLAGS]) == 0
    assert copied(capfd.readouterr().err, "sample") == str(out)
    assert copied(fail(capfd, "train", "--data", text, "--out", out)[1], "--resume") == str(out)
    model = out / "my model"
    shutil.copytree(out / "last", model)
    assert copied(fail(capfd, "train", "--resume", model)[1], "--init-from") == str(model)
    assert copied(fail(capfd, "train", "--resume", out, "--data", "copy")[1], "--init-from") == str(out / "last")
    (out / "last" / "optimizer.safetensors").unlink()
    assert copied(fail(capfd, "train", "--resume", out)[1], "--init-from") == str(out / "last")


def copied(message: str, after: str) -> str:
    """The word that follows another one, as a shell reads them."""
    return shlex.split(message[message.rindex(f" {after} ") :].partition("\n")[0].rstrip())[1].rstrip(",")


def test_a_name_that_is_no_unicode(text_file, tmp_path, capfd, monkeypatch):
    """As file systems of Linux allow it."""
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(b"caf\xe9")
    text, out = tmp_path / f"{name}.txt", tmp_path / name
    text_file.rename(text)
    assert main(["train", "--data", str(text), "--out", str(out), *FLAGS]) == 0
    for command in (["sample", out, "--length", "3"], ["eval", out], ["inspect", out], ["plot", out], ["data", text]):
        assert main([str(part) for part in command]) == 0, command
    assert main(["train", "--resume", str(out), "--dry-run"]) == 0
    assert "caf\\udce9" in capfd.readouterr().out
    assert "'h\\udce9llo': " in fail(capfd, "train", os.fsdecode(b"h\xe9llo"))[1]
    logs = [*FLAGS, "--tensorboard", "--log-dir", os.fsdecode(b"log\xe9")]
    assert "expected Unicode text, got 'log\\udce9" in fail(capfd, "train", "--data", text, "--quiet", *logs)[1]


def test_a_device_that_does_not_exist(run, text_file, capfd):
    for command in (
        ["train", "--data", text_file],
        ["sample", run],
        ["eval", run],
        ["score", run, "ab"],
        ["bench", "batch-size", "--data", text_file],
        ["bench", "learning-rate", "--data", text_file],
    ):
        for device in ("gpu", "xpu", "cuda:x"):
            code, err = fail(capfd, *command, "--device", device)
            assert code == 2
            assert f"(--device): expected auto, cpu, cuda, cuda:N or mps, got '{device}'" in err


def test_a_lack_of_memory_is_told_from_a_crash_of_the_gpu(run, capfd, monkeypatch):
    def failing(error):
        def load_model(*_):
            raise error

        monkeypatch.setattr("charrnn.cli.sample.load_model", load_model)

    failing(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4503599627370496 bytes."))
    code, err = fail(capfd, "sample", run)
    assert code == 1
    assert "out of memory: lower --hidden-size" in err
    failing(RuntimeError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        main(["sample", str(run)])


def test_a_loss_too_large_for_its_perplexity_is_still_json(run, capfd):
    generator = charrnn.load_model(run)
    with torch.no_grad():
        generator.model.head.weight.mul_(1e6)
    charrnn.save_model(generator, run.parent / "wild")
    assert main(["eval", str(run.parent / "wild"), "--json"]) == 0
    result = json.loads(capfd.readouterr().out, parse_constant=pytest.fail)
    assert result["loss"] > 710
    assert result["perplexity"] is None
    assert main(["eval", str(run.parent / "wild")]) == 0
    assert re.search(r"perplexity +│ inf ", capfd.readouterr().out)


def test_a_truncated_checkpoint(run, capfd):
    path = run / "best" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    code, err = fail(capfd, "sample", run)
    assert code == 1
    assert "model.safetensors: expected a whole safetensors file, got a damaged one" in err


def test_another_architecture_to_resume(run, capfd):
    before = (run / "last" / "model.safetensors").read_bytes()
    code, err = fail(capfd, "train", "--resume", run, "--hidden-size", "16")
    assert code == 1
    assert "expected to continue with its own hidden_size 8, got 16" in err
    assert (run / "last" / "model.safetensors").read_bytes() == before


def test_an_output_that_cannot_be_written(run, text_file, tmp_path, capfd):
    (tmp_path / "file").write_text("in the way")
    code, err = fail(capfd, "train", "--data", text_file, "--out", tmp_path / "file" / "run", "--quiet", *FLAGS)
    assert code == 1
    assert "file" in err
    assert "Not a directory" in err
    code, err = fail(capfd, "sample", run, "--quiet", "--output", tmp_path / "nowhere" / "text")
    assert code == 2
    assert "nowhere" in err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_full_disk_keeps_the_last_good_checkpoint(run, capfd, monkeypatch):
    import charrnn.checkpoint

    before = load_checkpoint(run / "last").training_state["step"]

    def full(path, blocks):
        with open("/dev/full", "wb") as file:
            file.writelines(blocks)

    monkeypatch.setattr(charrnn.checkpoint, "write_new", full)
    code, err = fail(capfd, "train", "--resume", run, "--max-steps", "40", "--quiet")
    assert code == 1
    assert "No space left on device" in err
    monkeypatch.undo()
    assert load_checkpoint(run / "last").training_state["step"] == before


# ---------------------------------------------------------------------------------------- in a process of its own


def command(*arguments):
    return [sys.executable, "-m", "charrnn", *map(str, arguments)]


def test_a_pipe_that_closes_early_is_no_traceback(run):
    arguments = command("sample", run, "--quiet", "--length", "100000")
    with started(arguments) as process:
        assert len(process.stdout.read(100)) == 100
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


@pytest.mark.parametrize("module", ["charrnn.cli.main", "rich.table"])
@pytest.mark.parametrize("start", ["command", "module"])
def test_ctrl_c_while_modules_load_is_silent(start, module):
    """As if Ctrl-C were pressed at the moment that `module` is looked for."""
    project = tomllib.loads((Path(charrnn.__file__).parents[1] / "pyproject.toml").read_text())["project"]
    room, function = project["scripts"]["charrnn"].split(":")
    run = {
        "command": f"from {room} import {function}; sys.exit({function}())",
        "module": "runpy.run_module('charrnn', run_name='__main__', alter_sys=True)",
    }
    code = f"""
import runpy, signal, sys
class Interrupt:
    def find_spec(name, *_):
        if name == "{module}":
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Interrupt)
sys.argv = ["charrnn", "--help"]
{run[start]}
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


def test_ctrl_c_while_the_command_line_is_read_is_silent(capfd, monkeypatch):
    monkeypatch.setattr(charrnn.cli.main, "_parser", lambda: signal.raise_signal(signal.SIGINT))
    try:
        code = main(["devices"])
    except KeyboardInterrupt:  # it would end the tests
        code = None
    assert code == 130
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_ctrl_c_saves_and_says_how_to_go_on(text_file, tmp_path):
    out = tmp_path / "my run"
    arguments = command("train", "--data", text_file, "--out", out, *FLAGS, "--max-steps", "1000000")
    with started(arguments, text=True) as process:
        while process.poll() is None and not (out / "metrics.jsonl").exists():
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
    step = load_checkpoint(out / "last").training_state["step"]
    assert f"stopped at step {step:,}; resume with: python -m charrnn train --resume '{out}'" in err
    assert "Traceback" not in err


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_kill_9_at_random_moments(text_file, tmp_path):
    """CHARRNN_KILLS=20 for the long way; a run that is killed and resumed ends with the weights of one that was not."""
    kills = int(os.environ.get("CHARRNN_KILLS", "1"))
    flags = [*FLAGS, "--max-steps", str(200 * (kills + 1)), "--data", str(text_file), "--quiet", "--save-interval", "5"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command("train", *flags, "--out", whole), check=True, capture_output=True)
    start = command("train", *flags, "--out", killed)
    for kill in range(kills):
        with started(start) as process:
            resumed_at = _last_step(killed)
            while process.poll() is None and _last_step(killed) <= resumed_at:
                time.sleep(0.01)
            time.sleep(random.Random(kill).uniform(0, 0.3))  # anywhere between two checkpoints, or while one is written
        assert process.returncode == -signal.SIGKILL, "it had ended by itself, so nothing was shown"
        start = command("train", "--resume", killed, "--quiet")
    subprocess.run(start, check=True, capture_output=True)
    weights = [(folder / "last" / "model.safetensors").read_bytes() for folder in (whole, killed)]
    assert weights[0] == weights[1]
    best = [(folder / "best" / "model.safetensors").read_bytes() for folder in (whole, killed)]
    assert best[0] == best[1]


def _last_step(folder) -> int:
    """-1 before the first checkpoint."""
    try:
        return json.loads((folder / "last" / "training_state.json").read_text())["step"]
    except (OSError, ValueError):
        return -1
