import contextlib
import errno
import json
import math
import os
import re
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import charrnn
from charrnn.checkpoint import load_checkpoint
from charrnn.config import RunConfig, dump_config
from charrnn.data.files import Source
from charrnn.errors import CheckpointError, ConfigError, CorpusError, DivergedError
from charrnn.training.callbacks import read_metrics
from charrnn.training.events import Evaluated, Stepped
from charrnn.training.run import Run, new_run_directory

from .conftest import TINY


def weights(generator):
    return torch.cat([parameter.detach().flatten() for parameter in generator.model.parameters()])


def test_create_model():
    generator = charrnn.create_model(charrnn.CharTokenizer("abc"), type="gru", hidden_size=5, num_layers=1)
    assert isinstance(generator.model, charrnn.CharGRU)
    assert generator.model.vocab_size == 3
    with pytest.raises(ConfigError, match="unknown model option 'learning_rate'"):
        charrnn.create_model(charrnn.CharTokenizer("abc"), learning_rate=3)


def test_train_save_load_generate(text_file, tmp_path):
    generator = charrnn.train(text_file, **TINY)
    charrnn.save_model(generator, tmp_path / "model")
    loaded = charrnn.load_model(tmp_path / "model")
    assert loaded.generate("a", 50, seed=1) == generator.generate("a", 50, seed=1)
    assert loaded.training_state["step"] == 12
    assert loaded.training_state["val_loss"] == pytest.approx(charrnn.evaluate(loaded, text_file).loss)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "model", "words.txt"]


def test_a_tokenizer_of_ones_own(text):
    class Halves(charrnn.CharTokenizer):
        kind = "halves"

    generator = charrnn.create_model(Halves("ab\n"), hidden_size=4, num_layers=1)
    assert generator.tokenizer.kind == "halves"
    assert len(generator.generate("ab", length=5, seed=1)) == 7


def test_the_text_that_a_file_of_settings_names_is_the_one_trained_on(text_file, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(dump_config(RunConfig().override({**TINY, "data": str(text_file), "max_steps": 1})))
    assert charrnn.train(config=config).training_state["corpus"] == str(text_file)
    other = tmp_path / "other.txt"
    other.write_text("xyz " * 200)
    assert charrnn.train(other, config).training_state["corpus"] == str(other)
    assert charrnn.train("copy:length=900", config).training_state["corpus"] == "copy:length=900"


def test_a_text_and_its_settings_are_checked_and_read_once(text_file, tmp_path, monkeypatch):
    walk = []
    parse, parts = charrnn.config.parse_config, Source.parts
    monkeypatch.setattr(charrnn.config, "parse_config", lambda *a: walk.append("checked") or parse(*a))
    monkeypatch.setattr(Source, "parts", lambda self, doing="reading", *a: walk.append(doing) or parts(self, doing, *a))
    settings = {"hidden_size": 4, "num_layers": 1, "device": "cpu", "batch_size": 4}
    for expected in (["checked", "reading", "learning the tokens of", "encoding"], ["checked", "reading"]):
        walk.clear()
        charrnn.train(text_file, max_steps=2, out=tmp_path / f"run{len(expected)}", **settings)
        assert walk == expected
    walk.clear()
    charrnn.load_corpus(text_file)
    assert walk == ["checked", "reading"]
    walk.clear()
    Run.resume(tmp_path / "run2", {"max_steps": 3})
    assert walk == ["checked", "reading"]


def test_a_path_is_never_the_name_of_a_corpus(text_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("copy", "shakespeare", "-"):
        text_file.with_name(name).write_bytes(text_file.read_bytes())
        trained = charrnn.train(Path(name), **TINY | {"max_steps": 1})
        assert trained.training_state["corpus"] == str(tmp_path / name)
        assert charrnn.evaluate(trained, Path(name), split="all").tokens == 2999
    assert charrnn.train("copy", **TINY | {"max_steps": 1}).training_state["corpus"] == "copy"
    with pytest.raises(CorpusError, match=f"got '{tmp_path / 'counting:x'}'"):
        charrnn.load_corpus(Path("counting:x"))


def test_train_gives_the_best_of_a_run_that_is_written(text_file, tmp_path):
    generator = charrnn.train(text_file, out=tmp_path / "run", **TINY | {"max_steps": 60, "learning_rate": 0.3})
    best, last = (load_checkpoint(tmp_path / "run" / name) for name in ("best", "last"))
    assert torch.equal(weights(generator), weights(best))
    assert best.training_state["step"] < last.training_state["step"]
    result = charrnn.evaluate(generator, text_file)
    assert result.loss == pytest.approx(best.training_state["val_loss"], rel=1e-6)
    assert result.bpc == pytest.approx(best.training_state["val_bpc"], rel=1e-6)
    assert min(record.get("bpc", 99) for record in read_metrics(tmp_path / "run")) == pytest.approx(result.bpc)
    assert result.perplexity == pytest.approx(math.exp(result.loss))


def test_saving_again_loses_nothing(text_file, tmp_path):
    charrnn.train(text_file, out=tmp_path / "run", **TINY)
    charrnn.save_model(charrnn.load_model(tmp_path / "run"), tmp_path / "again")
    first, again = load_checkpoint(tmp_path / "run"), load_checkpoint(tmp_path / "again")
    assert (first.config, first.training_state) == (again.config, again.training_state)


def test_saving_replaces_nothing_but_checkpoints(text_file, tmp_path):
    generator = charrnn.create_model(charrnn.CharTokenizer("ab"), hidden_size=2)
    charrnn.train(text_file, out=tmp_path / "run", **TINY)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("years of work")
    hub, mixed = tmp_path / "hub", tmp_path / "mixed"
    hub.mkdir()
    (hub / "config.json").write_text('{"model_type": "gpt2"}')
    charrnn.save_model(generator, mixed)
    (mixed / "notes.txt").write_text("years of work")
    for path in (tmp_path / "run", tmp_path / "thesis", text_file, hub, mixed):
        with pytest.raises(CheckpointError, match="got other files"):
            charrnn.save_model(generator, path)
    assert (tmp_path / "thesis" / "thesis.txt").read_text() == "years of work"
    assert (mixed / "notes.txt").read_text() == "years of work"
    assert [path.name for path in hub.iterdir()] == ["config.json"]
    assert list(tmp_path.glob(".*")) == []
    assert load_checkpoint(tmp_path / "run" / "last")
    (tmp_path / "empty").mkdir()
    charrnn.save_model(generator, tmp_path / "empty")


def test_training_leaves_the_process_as_it_was(text_file):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(3)
    during = set()
    try:
        charrnn.train(text_file, callbacks=(lambda event: during.add(torch.get_num_threads()),), **TINY)
        assert torch.get_num_threads() == 3
        assert during == {TINY["threads"]}
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_prompt_the_model_cannot_read_is_refused_before_training(text_file, tmp_path):
    with pytest.raises(ConfigError, match=r"--prompt\): expected only characters of the vocabulary, got 'Z'"):
        charrnn.train(text_file, out=tmp_path / "run", prompt="Z", **TINY)
    assert not (tmp_path / "run").exists()


def test_a_config_file_and_overrides(text_file, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model: {hidden_size: 99}\ntraining: {max_epochs: 9}")
    generator = charrnn.train(text_file, path, **TINY)
    assert generator.model.config.hidden_size == TINY["hidden_size"]


def test_get_model_info(text_file, tmp_path):
    charrnn.train(text_file, out=tmp_path / "run", **TINY)
    info = charrnn.get_model_info(tmp_path / "run")
    assert info["num_parameters"] == sum(math.prod(shape) for shape in info["parameters"].values())
    assert info["model"]["hidden_size"] == 8
    assert info["training"]["corpus"] == str(text_file)
    assert info["bytes"] > 4 * info["num_parameters"]


def test_evaluate_knows_the_splits(text_file):
    generator = charrnn.create_model(charrnn.load_corpus(str(text_file)).tokenizer)
    sizes = {
        split: charrnn.evaluate(generator, text_file, split).characters for split in ("train", "val", "test", "all")
    }
    assert sizes == {"train": 2699, "val": 149, "test": 149, "all": 2999}
    with pytest.raises(ConfigError, match="split: expected one of train, val, test, all, got 'dev'"):
        charrnn.evaluate(generator, text_file, "dev")
    with pytest.raises(charrnn.CorpusError, match="at least 2 tokens in the test split, got 0"):
        charrnn.evaluate(generator, text_file, "test", train_frac=0.9, val_frac=0.1)


@pytest.mark.parametrize("kind", ["byte", "word", "bpe"])
def test_every_kind_of_token_is_trained_saved_resumed_and_measured(text_file, tmp_path, kind):
    settings = TINY | {"tokenizer": kind, "vocab_size": 300, "embedding_dim": 6}
    generator = charrnn.train(text_file, out=tmp_path / "run", **settings)
    loaded = charrnn.load_model(tmp_path / "run")
    assert loaded.tokenizer == generator.tokenizer
    assert loaded.tokenizer.kind == kind
    assert loaded.generate(" ", 50, seed=1) == generator.generate(" ", 50, seed=1)
    result = charrnn.evaluate(loaded)
    text = loaded.tokenizer.decode(charrnn.load_corpus(text_file, loaded.tokenizer).split().val[1:])
    assert result.characters == len(text)
    assert result.bpc == pytest.approx(result.loss / math.log(2) * result.tokens / len(text))
    assert result.bpc == pytest.approx(loaded.training_state["val_bpc"])
    run = Run.resume(tmp_path / "run", {"max_steps": 14})
    run.fit()
    assert load_checkpoint(tmp_path / "run" / "last").training_state["step"] == 14
    with pytest.raises(CheckpointError, match="expected to continue with its own tokenizer .*, got char"):
        Run.resume(tmp_path / "run", {"tokenizer": "char"})


def test_a_run_takes_the_tokenizer_of_its_initial_model(text_file, tmp_path):
    charrnn.train(text_file, out=tmp_path / "run", **TINY, tokenizer="byte")
    config = charrnn.RunConfig().override({**TINY, "data": str(text_file), "tokenizer": "word"})
    run = Run.start(config, init_from=tmp_path / "run")
    assert run.config.data.tokenizer == "byte"
    assert run.corpus.tokenizer.kind == "byte"


def test_evaluate_takes_settings_that_differ_from_the_run(text_file, tmp_path):
    (tmp_path / "latin.txt").write_bytes("abcde\n".encode("utf-16") * 50)
    generator = charrnn.train(text_file, **TINY, train_frac=0.5, val_frac=0.5)
    assert charrnn.evaluate(generator).tokens == 1499
    assert charrnn.evaluate(generator, val_frac=0.25).tokens == 749
    corpus = charrnn.load_corpus(text_file, generator.tokenizer)
    assert charrnn.evaluate(generator, corpus, "all").tokens == 2999
    with pytest.raises(ConfigError, match="unknown data setting 'size'"):
        charrnn.evaluate(generator, size=3)
    with pytest.raises(ConfigError, match="expected a corpus in the model's own tokens"):
        charrnn.evaluate(generator, charrnn.load_corpus(text_file, "byte"))


def test_how_a_text_is_read_is_not_said_of_another_text(text_file, tmp_path):
    (tmp_path / "latin.txt").write_bytes("déjà vu\n".encode("latin-1") * 300)
    (tmp_path / "utf.txt").write_text("déjà vu\n" * 100, encoding="utf-8")
    settings = TINY | {"tokenizer": "byte", "encoding": "latin-1", "train_frac": 0.8, "val_frac": 0.2}
    generator = charrnn.train(tmp_path / "latin.txt", **settings)
    assert charrnn.evaluate(generator, split="all").characters == 2399
    assert charrnn.evaluate(generator, tmp_path / "utf.txt", "all").characters == 799
    assert charrnn.evaluate(generator, tmp_path / "utf.txt").characters == pytest.approx(160, abs=2)
    assert charrnn.evaluate(generator, tmp_path / "latin.txt", "all", encoding="latin-1").characters == 2399


@pytest.mark.parametrize("vocab_size", [2, 3, 20, 4096])
def test_bits_per_character_of_words_are_those_of_the_whole_text(text_file, text, vocab_size):
    """A small vocabulary hides most of the text from the model, and must not look better for it."""
    corpus = charrnn.load_corpus(text_file, "word", vocab_size=vocab_size)
    generator = charrnn.create_model(corpus.tokenizer, hidden_size=4, num_layers=1)
    result = charrnn.evaluate(generator, corpus, "all")
    assert result.characters == len(text) - len(text.split()[0])
    assert result.bpc * result.characters == pytest.approx(result.loss / math.log(2) * result.tokens + result.spelling)
    assert result.bpc > 2
    assert (result.spelling == 0) == (vocab_size == 4096)


def test_a_validation_text_of_ones_own(tiny, tmp_path, text, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "val.txt"
    path.write_text("xyz" + text[:500], encoding="utf-8")  # it adds to the vocabulary
    config = tiny.override({"val_data": "val.txt", "train_frac": 0.95})
    run = Run.start(config, tmp_path / "run")
    assert [len(tokens) for tokens in run.corpus.split(0.95)] == [2850, 503, 150]
    assert run.config.data.val_data == str(path)
    best = run.fit()
    result = charrnn.evaluate(best)
    assert result.tokens == result.characters == 502
    assert result.loss == pytest.approx(best.training_state["val_loss"], rel=1e-6)
    assert result.bpc == pytest.approx(best.training_state["val_bpc"], rel=1e-6)
    assert charrnn.evaluate(best, split="all").tokens == 2999
    other = tmp_path / "other.txt"
    other.write_text(text, encoding="utf-8")
    assert charrnn.evaluate(best, other, "train").tokens == 2849
    assert charrnn.evaluate(best, other).tokens == 149  # another text is cut as usual
    Run.resume(tmp_path / "run", {"max_steps": 13}).fit()
    with pytest.raises(CheckpointError, match="the text it was validated on, got another one from the text itself"):
        Run.resume(tmp_path / "run", {"val_data": None})
    path.write_text("xyz" + text[:499], encoding="utf-8")
    with pytest.raises(CheckpointError, match="validated on, got another one from .*val.txt; .* with --val-data"):
        Run.resume(tmp_path / "run")
    path.write_text("ä", encoding="utf-8")
    with pytest.raises(charrnn.CorpusError, match=r"val.txt: expected only characters of the vocabulary, got 'ä'"):
        charrnn.evaluate(best)


def test_a_validation_text_replaces_the_share(tiny):
    with pytest.raises(ConfigError, match=r"data.val_frac \(--val-frac\): expected to be left out with val_data"):
        tiny.override({"val_data": "x", "val_frac": 0.1})
    assert tiny.override({"val_data": "x", "train_frac": 1}).data.val_frac == 0.05  # not used
    with pytest.raises(ConfigError, match="expected another text for --val-data than for --data, got the same"):
        tiny.override({"val_data": tiny.data.name})


def test_a_run_tells_bits_per_character_of_the_whole_text(tiny, tmp_path):
    config = tiny.override({"tokenizer": "word", "vocab_size": 5})
    Run.start(config, tmp_path / "run").fit()
    told = [line["bpc"] for line in read_metrics(tmp_path / "run") if line["event"] == "evaluated"]
    best = charrnn.load_model(tmp_path / "run")
    assert min(told) == best.training_state["val_bpc"] == pytest.approx(charrnn.evaluate(best).bpc)


def test_a_split_in_which_no_character_begins_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("中" * 4, encoding="utf-8")  # twelve bytes
    generator = charrnn.create_model(charrnn.ByteTokenizer(), hidden_size=2)
    with pytest.raises(charrnn.CorpusError, match="expected a character to begin in the val split, got none"):
        charrnn.evaluate(generator, tmp_path / "a.txt", train_frac=0.8, val_frac=0.2)


def test_a_model_says_which_tokens_it_has(text_file, tmp_path):
    generator = charrnn.create_model(charrnn.ByteTokenizer(), hidden_size=2)
    assert generator.config.data.tokenizer == "byte"
    charrnn.save_model(generator, tmp_path / "model")
    config = charrnn.RunConfig().override({**TINY, "data": str(text_file)})
    assert Run.start(config, init_from=tmp_path / "model").config.data.tokenizer == "byte"


def test_an_untrained_model_knows_nothing(text_file):
    generator = charrnn.create_model(charrnn.load_corpus(str(text_file)).tokenizer)
    assert charrnn.evaluate(generator, text_file).perplexity == pytest.approx(generator.model.vocab_size, rel=0.05)


# ------------------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_resumed_run_ends_with_the_same_weights(tiny, tmp_path, kind):
    config = tiny.override({"max_steps": 30, "model_type": kind})
    whole = Run.start(config, tmp_path / "whole")
    whole.fit()
    run = Run.start(config, tmp_path / "parts")
    run.fit(lambda event: run.trainer.stop() if isinstance(event, Stepped) and event.step == 13 else None)
    resumed = Run.resume(tmp_path / "parts")
    assert resumed.trainer.progress.step == 13
    resumed.fit()
    last = [load_checkpoint(tmp_path / name / "last") for name in ("whole", "parts")]
    assert torch.equal(weights(last[0]), weights(last[1]))
    bests = [(tmp_path / name / "best" / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert bests[0] == bests[1]
    steps = [
        [r["step"] for r in read_metrics(tmp_path / name) if r["event"] == "evaluated"] for name in ("whole", "parts")
    ]
    assert steps[0] == steps[1]


def test_a_finished_run_is_resumed_to_do_nothing_or_more(tiny, tmp_path):
    Run.start(tiny, tmp_path / "run").fit()
    again = Run.resume(tmp_path / "run")
    again.fit()
    assert again.trainer.progress.step == 12
    more = Run.resume(tmp_path / "run", {"max_steps": 15})
    more.fit()
    assert load_checkpoint(tmp_path / "run" / "last").training_state["step"] == 15


def test_the_last_evaluation_is_known_to_the_last_checkpoint(tiny, tmp_path):
    """Though a save is due at the last step, and an evaluation is not."""
    config = tiny.override({"max_steps": 40, "eval_interval": 7, "save_interval": 4})
    Run.start(config, tmp_path / "run").fit()
    last, best = (load_checkpoint(tmp_path / "run" / name) for name in ("last", "best"))
    assert last.training_state["progress"]["best_loss"] == best.training_state["val_loss"]
    assert last.training_state["progress"]["evaluated_at"] == 40


def test_a_run_killed_before_its_last_evaluation_makes_up_for_it(tiny, tmp_path):
    config = tiny.override({"eval_interval": 1000, "save_interval": 1})
    run = Run.start(config, tmp_path / "run")

    def kill(event):
        if isinstance(event, Evaluated):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.fit(kill)
    shutil.rmtree(tmp_path / "run" / "best")
    Run.resume(tmp_path / "run").fit()
    assert load_checkpoint(tmp_path / "run" / "best").training_state["step"] == 12


def test_a_precision_that_is_asked_for_replaces_the_runs(tiny, tmp_path):
    for first, second in (("bf16", "fp32"), ("fp32", "bf16")):
        run = Run.start(tiny.override({"precision": first}), tmp_path / first)
        run.fit(lambda event, run=run: run.trainer.stop() if isinstance(event, Stepped) and event.step == 5 else None)
        resumed = Run.resume(tmp_path / first, {"precision": second})
        resumed.fit()
        assert resumed.trainer.progress.precision == second


def test_resuming_with_another_architecture_is_refused(tiny, tmp_path):
    Run.start(tiny, tmp_path / "run").fit()
    with pytest.raises(CheckpointError, match="expected to continue with its own hidden_size 8, got 9"):
        Run.resume(tmp_path / "run", {"hidden_size": 9})
    with pytest.raises(CheckpointError, match="its own type lstm, got gru"):
        Run.resume(tmp_path / "run", {"model_type": "gru"})
    Run.resume(tmp_path / "run", {"hidden_size": 8})
    for name, value in {"batch_size": 3, "train_frac": 0.5, "val_frac": 0.06}.items():
        with pytest.raises(CheckpointError, match=f"its own {name} .*, got {value}"):
            Run.resume(tmp_path / "run", {name: value})


def test_resuming_on_another_text_is_refused(tiny, tmp_path, text_file):
    Run.start(tiny, tmp_path / "run").fit()
    for other in (text_file.read_text()[::-1], "characters it has never seen"):
        text_file.write_text(other)
        with pytest.raises(CheckpointError, match="expected the text it was trained on, got another one"):
            Run.resume(tmp_path / "run")


def test_resuming_a_checkpoint_that_cannot_go_on(tiny, tmp_path):
    Run.start(tiny, tmp_path / "run").fit()
    with pytest.raises(CheckpointError, match="without optimizer.safetensors; start a new run from its weights"):
        Run.resume(tmp_path / "run" / "best")
    with pytest.raises(CheckpointError, match="nothing there"):
        Run.resume(tmp_path / "nowhere")
    shutil.copytree(tmp_path / "run" / "last", tmp_path / "copy")
    with pytest.raises(CheckpointError, match="got a single checkpoint; start a new run from its weights"):
        Run.resume(tmp_path / "copy")


def test_a_damaged_memory_is_named(tiny, tmp_path):
    Run.start(tiny, tmp_path / "run").fit()
    path = tmp_path / "run" / "last" / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"optimizer.safetensors: expected a whole safetensors file"):
        Run.resume(tmp_path / "run")
    path = tmp_path / "run" / "last" / "training_state.json"
    path.write_text(path.read_text().replace('"position"', '"bogus"'))
    with pytest.raises(CheckpointError):
        Run.resume(tmp_path / "run")


def test_a_run_is_never_written_over(tiny, tmp_path):
    Run.start(tiny, tmp_path / "run").fit()
    before = (tmp_path / "run" / "last" / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="holds a run; continue it with --resume"):
        Run.start(tiny, tmp_path / "run")
    assert (tmp_path / "run" / "last" / "model.safetensors").read_bytes() == before
    (tmp_path / "mine" / "best").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="expected a new directory"):
        Run.start(tiny, tmp_path / "mine")
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="got a file"):
        Run.start(tiny, tmp_path / "file")


def test_runs_without_a_name_never_share_a_directory(tiny, tmp_path):
    config = tiny.override({"checkpoint_dir": str(tmp_path / "runs")})
    directories = [new_run_directory(config) for _ in range(5)]  # within a second
    assert len(set(directories)) == 5
    assert all(directory.is_dir() for directory in directories)


def test_a_long_name_of_a_text_is_cut(tiny, tmp_path):
    config = tiny.override({"data": f"{'中' * 80}.txt", "checkpoint_dir": str(tmp_path)})
    assert re.fullmatch(r"中{33}-lstm-\d{8}-\d{6}", new_run_directory(config).name)


def test_an_unwritable_folder_for_runs_is_named_with_advice(tiny, tmp_path):
    (tmp_path / "runs").touch()
    config = tiny.override({"checkpoint_dir": str(tmp_path / "runs")})
    message = (
        r"checkpoint_dir \(--checkpoint-dir\): expected a folder that can be written to, got .*runs; .* with --out"
    )
    with pytest.raises(ConfigError, match=message):
        new_run_directory(config)


def test_metrics_of_something_else_are_never_rewritten(tiny, tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    path.parent.mkdir()
    path.write_text("mine\n")
    with pytest.raises(CheckpointError, match="expected a new directory"):
        Run.start(tiny, tmp_path / "run")
    assert path.read_text() == "mine\n"


def test_only_one_process_at_a_time_trains_a_run(tiny, tmp_path):
    run, late = (Run.start(tiny, tmp_path / "run") for _ in range(2))
    resumed, refused = [], []

    def interfere(event):
        if isinstance(event, Stepped) and event.step == 7:
            resumed.append(Run.resume(tmp_path / "run"))
            with pytest.raises(CheckpointError, match="another process is training in this directory") as caught:
                resumed[0].fit()
            refused.append(caught)

    run.fit(interfere)
    assert refused
    with pytest.raises(CheckpointError, match="expected a run at step 4, as it was loaded, got .* to step 12; resume"):
        resumed[0].fit()
    with pytest.raises(CheckpointError, match="holds a run"):
        late.fit()
    assert [r["step"] for r in read_metrics(tmp_path / "run") if r["event"] == "logged"] == [3, 6, 9, 12]
    Run.resume(tmp_path / "run", {"max_steps": 14}).fit()


def test_a_file_system_without_locks_is_no_reason_to_stop(tiny, tmp_path, monkeypatch):
    def acquire(lock):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("charrnn.training.run.FileLock.acquire", acquire)
    Run.start(tiny, tmp_path / "run").fit()
    assert load_checkpoint(tmp_path / "run" / "last").training_state["step"] == 12


def test_starting_from_other_weights(tiny, tmp_path):
    first = Run.start(tiny, tmp_path / "first").fit()
    config = tiny.override({"hidden_size": 99, "max_steps": 1, "learning_rate": 1e-9})
    second = Run.start(config, tmp_path / "second", init_from=tmp_path / "first")
    assert second.config.model == first.model.config
    assert second.trainer.progress.step == 0
    torch.testing.assert_close(weights(second.fit()), weights(first), rtol=0, atol=1e-6)


def test_a_new_text_adds_its_frequent_characters_to_a_vocabulary_with_an_unknown_one(tiny, tmp_path, text_file):
    text_file.write_text(text_file.read_text() + "zz", encoding="utf-8")
    first = Run.start(tiny.override({"min_frequency": 3}), tmp_path / "first").fit()
    assert first.tokenizer.characters[first.tokenizer.unknown] == "\ufffd"
    assert Run.start(tiny, init_from=tmp_path / "first").generator.tokenizer == first.tokenizer  # nothing is new
    (tmp_path / "other.txt").write_text("äöü" * 400 + "ßz", encoding="utf-8")
    config = tiny.override({"data": str(tmp_path / "other.txt")})
    with pytest.warns(UserWarning, match="characters grows to .*, by 'äöü'"):
        run = Run.start(config, init_from=tmp_path / "first")
    assert run.generator.tokenizer.characters == first.tokenizer.characters + "äöü"
    assert run.corpus.tokenizer.decode(run.corpus.tokens)[-3:] == "ü\ufffd\ufffd"


@pytest.mark.parametrize("options", [{}, {"tie_weights": True}, {"embedding_dim": 5}])
def test_a_new_text_may_add_to_the_vocabulary(tiny, tmp_path, options):
    """Old tokens keep their ids; the new ones change the probabilities of the old only by taking a share."""
    first = Run.start(tiny.override(options), tmp_path / "first").fit()
    known = first.tokenizer.characters
    text = tmp_path / "other.txt"
    text.write_text((known * 5 + "ÄÖ") * 40, encoding="utf-8")
    with pytest.warns(
        UserWarning, match=f"the vocabulary of {len(known)} characters grows to {len(known) + 2}, by 'ÄÖ'"
    ):
        run = Run.start(tiny.override({"data": str(text), "max_steps": 3}), tmp_path / "second", tmp_path / "first")
    assert run.generator.tokenizer.characters == known + "ÄÖ"
    tokens = torch.tensor([first.tokenizer.encode(known).astype(int).tolist()])
    old, new = (generator.model.eval()(tokens)[0] for generator in (first, run.generator))
    torch.testing.assert_close(new[..., : len(known)], old)
    assert new.shape[-1] == len(known) + 2
    tuned = run.fit()
    assert charrnn.load_model(tmp_path / "second").generate("ÄÖ", length=5, seed=1) == tuned.generate("ÄÖ", 5, seed=1)


def test_the_saved_weights_are_the_measured_ema(tiny, tmp_path):
    run = Run.start(tiny.override({"ema_decay": 0.9, "learning_rate": 0.02, "max_steps": 30}), tmp_path / "run")
    best = run.fit()
    assert charrnn.evaluate(best).loss == pytest.approx(run.trainer.progress.best_loss)
    last = load_checkpoint(tmp_path / "run" / "last")
    flat, of_run = torch.nn.utils.parameters_to_vector, run.trainer
    assert torch.equal(weights(last), flat(of_run.ema_model.parameters()))
    assert not torch.equal(weights(last), flat(of_run.model.parameters()))
    unwritten = Run.start(tiny.override({"ema_decay": 0.9, "max_steps": 5}))
    assert unwritten.fit().model is unwritten.trainer.ema_model


def test_the_best_few_are_kept_under_names_that_say_it(tiny, tmp_path):
    run = Run.start(tiny.override({"save_top_k": 2, "max_steps": 40, "learning_rate": 0.01}), tmp_path / "run")
    run.fit()
    lowest = sorted((loss, step, epoch) for step, epoch, loss in run.trainer.progress.history)[:2]
    expected = {f"lm_lstm_step{step}_epoch{epoch:.2f}_{loss:.4f}" for loss, step, epoch in lowest}
    assert {path.name for path in (tmp_path / "run").glob("lm_*")} == expected
    for name in expected:
        assert load_checkpoint(tmp_path / "run" / name).training_state["val_loss"] == pytest.approx(
            float(name.rpartition("_")[2]), abs=5e-5
        )


def test_kept_checkpoints_of_equal_epoch_and_loss_are_all_kept(tiny, tmp_path):
    """With a rate of nearly nothing every loss rounds alike, and on a long text so does the epoch."""
    tiny = tiny.override({"save_top_k": 3, "learning_rate": 1e-12, "eval_interval": 1, "max_steps": 3})
    Run.start(tiny, tmp_path / "run").fit()
    kept = sorted(path.name.split("_epoch")[0] for path in (tmp_path / "run").glob("lm_*"))
    assert kept == ["lm_lstm_step1", "lm_lstm_step2", "lm_lstm_step3"]


def test_a_best_checkpoint_newer_than_the_last_one_is_not_replaced_by_a_worse(tiny, tmp_path):
    """Evaluated more often than saved, and killed in between."""
    tiny = tiny.override({"eval_interval": 2, "save_interval": 100, "max_steps": 20, "learning_rate": 0.05})
    run = Run.start(tiny, tmp_path / "run")
    with contextlib.suppress(KeyboardInterrupt):
        run.fit(lambda event: (_ for _ in ()).throw(KeyboardInterrupt) if isinstance(event, Evaluated) else None)
    assert load_checkpoint(tmp_path / "run" / "last").training_state["step"] == 0
    best = load_checkpoint(tmp_path / "run" / "best").training_state
    os.rename(tmp_path / "run" / "best", tmp_path / "run" / ".best.old")  # killed between the two renames of a save
    assert Run.resume(tmp_path / "run").trainer.progress.best_loss == best["val_loss"]
    os.rename(tmp_path / "run" / ".best.old", tmp_path / "run" / "best")
    resumed = Run.resume(tmp_path / "run", {"learning_rate": 1e-12})
    resumed.fit()
    assert load_checkpoint(tmp_path / "run" / "best").training_state == best
    assert resumed.trainer.progress.best_loss == best["val_loss"]
    charrnn.save_model(charrnn.create_model(resumed.generator.tokenizer), tmp_path / "run" / "best")
    assert Run.resume(tmp_path / "run").trainer.progress.best_loss == best["val_loss"]  # another one's is not known


def test_folders_that_only_look_like_kept_checkpoints_are_left_alone(tiny, tmp_path):
    mine = [
        tmp_path / "run" / name
        for name in ("lm_lstm_epoch1.00_9.0000", "lm_lstm_epoch1_mine", "lm_lstm_epoch1.00_8.0000.zip")
    ]
    for path in mine:
        path.mkdir(parents=True)
    Run.start(tiny.override({"save_top_k": 1, "learning_rate": 0.01}), tmp_path / "run").fit()
    assert all(path.is_dir() for path in mine)
    assert len(list((tmp_path / "run").glob("lm_*"))) == 4


def test_streams_that_a_short_text_no_longer_has_are_named(tiny, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("hello world, this is a text. " * 40, encoding="utf-8")
    config = tiny.override({"data": str(path), "batch_size": 20, "seq_length": 10, "max_steps": 3})
    Run.start(config, tmp_path / "run").fit()
    with (
        pytest.warns(UserWarning, match="too few for 20 streams"),
        pytest.raises(CheckpointError, match="its 20 streams"),
    ):
        Run.resume(tmp_path / "run", {"seq_length": 200, "max_steps": 6})


def test_a_backend_that_is_not_here_is_chosen_anew(tiny, tmp_path, monkeypatch):
    pytest.importorskip("numba")
    Run.start(tiny.override({"backend": "numba", "max_steps": 3}), tmp_path / "run").fit()
    monkeypatch.setattr("charrnn.models.recurrent.numba_available", lambda: False)
    run = Run.resume(tmp_path / "run", {"backend": "auto", "max_steps": 6})
    run.fit()
    assert run.trainer.progress.backend in ("torch", "fused")


@pytest.mark.parametrize("asked", [{"patience": 1}, {"schedule": "plateau"}, {"save_top_k": 2}])
def test_options_based_on_evaluations_need_a_validation_split(tiny, asked):
    with pytest.raises(ConfigError, match="expected a validation split, got 0 tokens"):
        Run.start(tiny.override({"train_frac": 1.0, "val_frac": 0.0, **asked}))


def test_a_stop_before_the_first_step_is_not_lost(tiny):
    run = Run.start(tiny)
    run.trainer.stop()
    run.fit()
    assert run.trainer.progress.step == 0


def test_another_optimizer_cannot_take_over(tiny, tmp_path):
    Run.start(tiny, tmp_path / "run").fit()
    with pytest.raises(CheckpointError, match="its own optimizer adamw, got muon"):
        Run.resume(tmp_path / "run", {"optimizer": "muon"})


def test_a_run_out_of_patience_goes_on_with_more(tiny, tmp_path):
    run = Run.start(tiny.override({"patience": 1, "min_delta": 9.0, "max_steps": 99}), tmp_path / "run")
    run.fit()
    assert run.trainer.progress.step == 10
    resumed = Run.resume(tmp_path / "run")
    assert resumed.trainer.done()
    resumed.fit()
    assert resumed.trainer.progress.step == 10
    more = Run.resume(tmp_path / "run", {"patience": 2})
    more.fit()
    assert more.trainer.progress.step == 15


# ------------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_save_at_the_end_of_the_step(tiny, tmp_path, name):
    if not hasattr(signal, name):
        pytest.skip(f"no {name} on this system")
    number = getattr(signal, name)
    run = Run.start(tiny.override({"max_steps": 10_000}), tmp_path / "run")

    def interrupt(event):
        if isinstance(event, Stepped) and event.step == 7:
            signal.raise_signal(number)

    with handled(number, signal.default_int_handler):
        run.fit(interrupt)
        assert signal.getsignal(number) is signal.default_int_handler
    assert load_checkpoint(tmp_path / "run" / "last").training_state["step"] == 7
    assert run.stopped_by == number


@contextlib.contextmanager
def handled(number, handler):
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_an_ignored_signal_stays_ignored(tiny):
    run = Run.start(tiny)
    with handled(signal.SIGINT, signal.SIG_IGN), handled(signal.SIGHUP, signal.SIG_IGN):
        run.fit(lambda event: [signal.raise_signal(number) for number in (signal.SIGINT, signal.SIGHUP)])
        assert signal.getsignal(signal.SIGINT) == signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    assert run.trainer.progress.step == 12


def test_a_handler_that_is_not_pythons_is_left_in_place(tiny, monkeypatch):
    monkeypatch.setattr(signal, "getsignal", lambda number: None)  # what Python says of such a handler
    monkeypatch.setattr(signal, "signal", lambda number, handler: pytest.fail("it cannot be put back"))
    run = Run.start(tiny)
    run.fit()
    assert run.trainer.progress.step == 12


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
@pytest.mark.parametrize("full_at", [8, 15])  # a save of last/, and one of best/
def test_a_full_disk_loses_nothing_that_was_there(tiny, tmp_path, full_at):
    """No file may grow beyond 3,000 bytes: weights fail to be written, and the run goes on later as if they had not."""
    import resource

    tiny = tiny.override({"learning_rate": 0.01, "max_steps": 30})
    Run.start(tiny, tmp_path / "whole").fit()
    run = Run.start(tiny, tmp_path / "run")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(event):
        if isinstance(event, Stepped) and event.step == full_at:
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(OSError, match="an old checkpoint is untouched") as caught:
            run.fit(fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert "model.safetensors" in str(caught.value.filename)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", "best", "last", "metrics.jsonl"]
    assert load_checkpoint(tmp_path / "run" / "last").training_state["step"] == full_at // 4 * 4 - 4 * (
        full_at % 4 == 0
    )
    Run.resume(tmp_path / "run").fit()
    for name in ("best", "last"):
        assert torch.equal(*(weights(load_checkpoint(tmp_path / run / name)) for run in ("whole", "run")))


def test_a_second_ctrl_c_interrupts_at_once(tiny, tmp_path):
    run = Run.start(tiny, tmp_path / "run")

    def interrupt(event):
        if isinstance(event, Stepped) and event.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            while not run.trainer._stop:  # two signals that wait together are one
                time.sleep(0.001)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)

    with pytest.raises(KeyboardInterrupt):
        run.fit(interrupt)


def test_training_works_outside_the_main_thread(text_file):
    done = []
    thread = threading.Thread(target=lambda: done.append(charrnn.train(text_file, **TINY)))
    thread.start()
    thread.join()
    assert done


def test_a_crash_saves_nothing(tiny, tmp_path):
    run = Run.start(tiny.override({"save_interval": 1000}), tmp_path / "run")

    def crash(event):
        if isinstance(event, Stepped) and event.step == 3:
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run.fit(crash)
    assert load_checkpoint(tmp_path / "run" / "last").training_state["step"] == 0


def test_a_run_that_diverges_keeps_the_last_good_checkpoint(tiny, tmp_path):
    run = Run.start(tiny.override({"learning_rate": 1e38, "max_steps": 50, "warmup_frac": 0.5}), tmp_path / "run")
    with pytest.raises(DivergedError):
        run.fit()
    last = load_checkpoint(tmp_path / "run" / "last")
    assert weights(last).isfinite().all()
    assert json.loads((last.path / "training_state.json").read_text())["step"] % 4 == 0


def test_no_validation_split_is_said(tiny, tmp_path, text_file):
    with pytest.warns(UserWarning, match="its validation split has 1 tokens, so nothing is evaluated"):
        Run.start(tiny.override({"train_frac": 0.999, "val_frac": 0.0005}))


def test_a_text_too_short_names_file_size_and_need(tmp_path):
    path = tmp_path / "one.txt"
    path.write_text("x")
    message = r"one.txt \(1 tokens\): the training split: expected at least 2 tokens, got 0"
    with pytest.raises(charrnn.CorpusError, match=message):
        charrnn.train(path, max_steps=1)


def test_a_run_on_a_relative_path_is_resumed_from_anywhere(tiny, tmp_path, text_file, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Run.start(tiny.override({"data": text_file.name}), tmp_path / "run").fit()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert Run.resume(tmp_path / "run").config.data.name == str(text_file)
