"""Texts of many documents: each is read from an empty state, and where it ends is learned."""

import json
import random
from dataclasses import asdict
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import charrnn
from charrnn.cli.interactive import Session
from charrnn.cli.main import main
from charrnn.config import GenerationConfig, RunConfig
from charrnn.data.corpus import load_corpus
from charrnn.data.streams import DocumentDataset, find_ends
from charrnn.data.tokenizer import ByteTokenizer, CharTokenizer, DocumentTokenizer, StreamDecoder, tokenizer_from_json
from charrnn.errors import CheckpointError, ConfigError, CorpusError
from charrnn.generation.generator import TextGenerator, load_model
from charrnn.generation.text import GeneratedText
from charrnn.models.build import build_model
from charrnn.models.state import begin_rows
from charrnn.training.evaluation import evaluate
from charrnn.training.events import Logged, Stepped
from charrnn.training.run import Run
from charrnn.training.trainer import Trainer
from tests.conftest import TINY

IDLE = SimpleNamespace(param_groups=[], step=lambda: None, zero_grad=lambda: None)  # an optimizer that does nothing


@pytest.fixture(scope="module")
def names() -> list[str]:
    """500 made-up names of one to twelve letters."""
    generator = random.Random(0)
    return ["".join(generator.choices("aeilmnor", k=generator.randint(1, 12))) for _ in range(500)]


@pytest.fixture
def names_file(tmp_path, names):
    path = tmp_path / "names.txt"
    path.write_text("\n".join(names) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def split(names) -> tuple[np.ndarray, int]:
    """The names as tokens, the end token before, between and after them; and its id."""
    tokenizer = DocumentTokenizer(CharTokenizer("aeilmnor"))
    return np.concatenate([[8], *([*tokenizer.encode(name), 8] for name in names)]).astype(np.uint8), 8


def documents_of(corpus) -> list[str]:
    ends = find_ends(corpus.tokens, corpus.end)
    return [corpus.tokenizer.decode(corpus.tokens[a:b]) for a, b in pairwise(ends)]


# ------------------------------------------------------------------------------------------------- text -> tokens


def test_end_token_has_no_text_wherever_its_id_is():
    for end, tokens in ((None, [0, 1]), (0, [1, 2]), (1, [0, 2])):
        tokenizer = DocumentTokenizer(CharTokenizer("ab"), end)
        assert tokenizer.vocab_size == 3
        assert tokenizer.encode("ab").tolist() == tokens
        both = [tokenizer.end, *tokens, tokenizer.end]
        assert tokenizer.decode(both) == StreamDecoder(tokenizer).push(both) == "ab"
        again = tokenizer_from_json(tokenizer.to_json())
        assert (again, again.end, again.kind) == (tokenizer, tokenizer.end, "char")
    assert DocumentTokenizer(CharTokenizer("".join(map(chr, range(256))))).encode("ÿ").dtype == np.uint16


@pytest.mark.parametrize("kind", ["char", "byte", "word", "bpe"])
def test_lines_of_a_file_become_documents(names, names_file, kind):
    corpus = load_corpus(names_file, kind, documents=True, vocab_size=1000)
    assert documents_of(corpus) == names
    assert corpus.characters == sum(map(len, names))
    assert corpus.end == corpus.tokenizer.end == corpus.tokenizer.vocab_size - 1
    assert load_corpus(names_file, kind, documents=True, vocab_size=1000).tokens.tolist() == corpus.tokens.tolist()


def test_files_of_a_folder_become_documents_with_all_they_hold(tmp_path):
    for name, text in (("b.txt", "two\nlines\n"), ("a.txt", "one"), ("c.txt", ""), ("d.txt", "four")):
        (tmp_path / name).write_text(text)
    whole = load_corpus(tmp_path, documents=True)
    assert documents_of(whole) == ["one", "two\nlines\n", "four"]  # an empty file has nothing to learn from
    assert documents_of(load_corpus(f"{tmp_path}/[ab]*.txt", documents=True)) == ["one", "two\nlines\n"]
    assert load_corpus(tmp_path).end is None
    assert load_corpus(tmp_path).sha256 != whole.sha256


@pytest.mark.parametrize("separator", ["\n", "\n\n", "--", "==="])
def test_separator_is_found_wherever_pieces_are_cut(tmp_path, monkeypatch, separator):
    path = tmp_path / "text.txt"
    documents = ["a-b", "c=\nd", "e" * 9, "-", "f"]
    documents = [document for document in documents if separator not in document]
    text = separator.join(["", *documents[:2], "", *documents[2:], ""])
    path.write_text(text)
    for block in range(1, 9):
        monkeypatch.setattr("charrnn.data.files.BLOCK", block)
        corpus = load_corpus(path, documents=True, separator=separator)
        assert documents_of(corpus) == [document for document in text.split(separator) if document]


def test_splits_keep_documents_whole(names, names_file):
    corpus = load_corpus(names_file, documents=True)
    for fractions in ((0.9, 0.05), (0.5, 0.5), (1.0, 0.0), (0.001, 0.3)):
        parts = corpus.split(*fractions)
        assert all(part[0] == part[-1] == corpus.end for part in parts)
        assert sum(len(part) - 1 for part in parts) == len(corpus.tokens) - 1
        assert "".join(map(corpus.tokenizer.decode, parts)) == "".join(names)
        assert abs(len(parts.train) - fractions[0] * len(corpus.tokens)) < 13  # the longest name, its end and one


def test_data_tells_how_many_documents_there_are(names, names_file, capsys):
    assert main(["data", str(names_file), "--documents", "--stats", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["documents"], told["characters"]) == (500, sum(map(len, names)))


def test_impossible_documents_are_errors(names_file):
    with pytest.raises(ConfigError, match="expected a --separator with documents"):
        RunConfig().override({"documents": True, "separator": ""})
    with pytest.raises(ConfigError, match="model that was trained on documents"):
        load_corpus(names_file, CharTokenizer("aeilmnor\n"), documents=True)
    names_file.write_text("\n\n")
    with pytest.raises(CorpusError, match="nothing in it"):
        load_corpus(names_file, documents=True)


# ---------------------------------------------------------------------------------------------- tokens -> windows


def read(dataset: DocumentDataset, epoch: int) -> list[list[int]]:
    """The documents that an epoch brings, in the order in which they begin; each as it is read, padding left out."""
    found: list[list[int]] = []
    rows: dict[int, list[int]] = {}
    for window in dataset.windows(epoch):
        for row, (begins, length) in enumerate(zip(window.begins, window.lengths, strict=True)):
            if begins:
                rows[row] = []
                found.append(rows[row])
                assert window.inputs[row, 0] == 8
            inputs, targets = window.inputs[row].tolist(), window.targets[row].tolist()
            assert inputs[1:length] == targets[: max(length, 1) - 1]
            assert targets[length:] == [-100] * (len(targets) - length)
            rows.setdefault(row, []).extend(targets[:length])
    return found


@pytest.mark.parametrize("batch_size", [1, 7, 50, 1000])
@pytest.mark.parametrize("seq_length", [1, 5, 50])
def test_epoch_visits_every_token_of_every_document_once(names, split, batch_size, seq_length):
    dataset = DocumentDataset(*split[:1], batch_size, seq_length, split[1], seed=1)
    tokenizer = DocumentTokenizer(CharTokenizer("aeilmnor"))
    orders = [read(dataset, epoch) for epoch in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    for order in orders:
        assert all(document[-1] == 8 and 8 not in document[:-1] for document in order)
        assert sorted(map(tokenizer.decode, order)) == sorted(names)
    assert orders[0] != read(DocumentDataset(*split[:1], batch_size, seq_length, split[1], seed=2), 0)


def test_windows_go_on_from_any_of_their_ends(split):
    dataset = DocumentDataset(split[0], 7, 5, split[1])
    windows = list(dataset.windows(3))
    assert windows[-1].end == dataset.stream_length == len(split[0]) - 1
    for i in (0, 1, len(windows) // 2):
        rest = list(dataset.windows(3, windows[i].end))
        assert [w.end for w in rest] == [w.end for w in windows[i + 1 :]]
        assert all((a.targets == b.targets).all() for a, b in zip(rest, windows[i + 1 :], strict=True))


def test_little_is_padded(split):
    dataset = DocumentDataset(split[0], 10, 50, split[1])
    assert dataset.padding < 0.1
    assert dataset.steps == len(list(dataset.windows(0)))
    assert DocumentDataset(split[0], 1, 50, split[1]).padding == 0


# ----------------------------------------------------------------------------------------------------- training


def make_trainer(split, **overrides) -> Trainer:
    tokens, end = split
    budget = {"max_steps": None, "max_epochs": 1}
    config = RunConfig().override({**TINY, **budget, "dropout": 0, "log_interval": 10**6, **overrides})
    model = build_model(config.model, end + 1, config.device.seed)
    return Trainer(model, tokens, tokens[:0], config.training, config.device, config.logging.log_interval, end=end)


def alone(model, split, smoothing=0.0) -> torch.Tensor:
    """Nats of each document, `(D,)`, each read by itself."""
    tokens, end = torch.from_numpy(split[0].astype(np.int64)), split[1]
    documents = [tokens[a : b + 1] for a, b in pairwise(find_ends(split[0], end))]
    options = {"reduction": "sum", "label_smoothing": smoothing}
    return torch.stack([F.cross_entropy(model(each[None, :-1])[0][0], each[1:], **options) for each in documents])


@pytest.fixture
def few(split):
    """The first 60 names."""
    return split[0][: find_ends(*split)[60] + 1], split[1]


@pytest.mark.parametrize(
    ("kind", "backend"),
    [("rnn", "torch"), ("gru", "fused"), ("lstm", "torch"), ("lstm", "reference"), ("lstm", "numba")],
)
def test_an_epoch_is_the_documents_alone(few, kind, backend):
    """The loss whatever the windows, and where no window cuts a document each token's part of the gradient."""
    model = make_trainer(few, model_type=kind).model
    expected = alone(model, few).sum() / (len(few[0]) - 1)
    expected.backward()
    for batch_size, seq_length, micro_batches in ((1, 50, 1), (7, 13, 3), (60, 13, 1), (7, 4, 1), (7, 1, 2)):
        settings = {"batch_size": batch_size, "seq_length": seq_length, "micro_batches": micro_batches}
        trainer = make_trainer(few, model_type=kind, backend=backend, grad_clip=None, **settings)
        trainer._optimizer = IDLE  # gradients add up over the epoch, and no weight moves
        *_, logged = [event for event in trainer if isinstance(event, Logged)]
        assert logged.loss == pytest.approx(expected.item(), rel=1e-6)
        if seq_length >= 13:
            for mine, theirs in zip(trainer.model.parameters(), model.parameters(), strict=True):
                assert torch.allclose(mine.grad / trainer.dataset.steps, theirs.grad, rtol=1e-4, atol=1e-7)


def test_windows_with_the_state_carried_are_the_documents_alone(few):
    for kind, options in (("rnn", {}), ("gru", {"residual": True}), ("lstm", {"layer_norm": True, "backend": "fused"})):
        model = make_trainer(few, model_type=kind, **options).model.double()
        total, state = 0.0, None
        with torch.no_grad():
            for window in DocumentDataset(few[0], 7, 4, few[1]).windows(0):
                logits, state = model(window.inputs, begin_rows(state, window.begins))
                total += F.cross_entropy(logits.flatten(0, 1), window.targets.flatten(), reduction="sum").item()
            assert total == pytest.approx(alone(model, few).sum().item(), rel=1e-12)


def test_ranks_together_make_the_step_of_one_process(few, monkeypatch):
    whole, *ranks = (make_trainer(few, batch_size=6, seq_length=4, grad_clip=None) for _ in range(3))
    for rank, trainer in enumerate([whole, *ranks], -1):
        rows = slice(0, 6) if rank < 0 else slice(rank * 3, rank * 3 + 3)
        monkeypatch.setattr("charrnn.training.distributed.local_rows", lambda _, rows=rows: rows)
        trainer._optimizer = IDLE
        trainer.fit()
    for one, *parts in zip(*(trainer.model.parameters() for trainer in (whole, *ranks)), strict=True):
        assert torch.allclose(one.grad, sum(part.grad for part in parts) / 2, rtol=1e-4, atol=1e-6)


def test_padding_takes_no_part_in_label_smoothing(few):
    trainer = make_trainer(few, batch_size=7, seq_length=13, grad_clip=None, label_smoothing=0.3)
    trainer._optimizer = IDLE
    trainer.fit()
    model = make_trainer(few).model
    (alone(model, few, smoothing=0.3).sum() / (len(few[0]) - 1)).backward()
    for mine, theirs in zip(trainer.model.parameters(), model.parameters(), strict=True):
        assert torch.allclose(mine.grad / trainer.dataset.steps, theirs.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("left_at", [1, 5, 23, 40])
def test_resuming_equals_never_having_stopped(few, left_at):
    """Weights bit for bit, across epochs, with dropout and with states that are carried."""
    settings = {"batch_size": 7, "seq_length": 4, "dropout": 0.3, "num_layers": 2, "max_epochs": 2.5}
    whole, parts, resumed = (make_trainer(few, **settings) for _ in range(3))
    whole.fit()
    assert whole.progress.epoch > 1
    next(event for event in parts if isinstance(event, Stepped) and event.step == left_at)
    assert isinstance(parts.progress.position, int)
    parts._gathered = parts._state
    resumed.model.load_state_dict(parts.model.state_dict())
    resumed.load_state_dict(
        asdict(parts.progress), {name: tensor.clone() for name, tensor in parts.state_dict().items()}
    )
    resumed.fit()
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_evaluation_reads_each_document_from_an_empty_state(split):
    model = make_trainer(split).model
    with torch.no_grad():
        expected = alone(model, split).sum().item() / (len(split[0]) - 1)
    assert evaluate(model, split[0], end=split[1]) == pytest.approx(expected, rel=1e-6)


def test_options_that_documents_exclude_are_errors(few):
    with pytest.raises(ConfigError, match="seq-length-start"):
        make_trainer(few, seq_length_start=2)
    with pytest.warns(UserWarning, match="60 documents, so batch_size is 60"):
        make_trainer(few, batch_size=1000)
    tokens = np.array([8, *[0] * 90, 8, 0, 8, 0, 8, 0, 8], np.uint8)
    with pytest.warns(UserWarning, match="of each step is padding"):
        make_trainer((tokens, 8))


# ---------------------------------------------------------------------------------------------------- generation


@pytest.fixture
def ending() -> TextGenerator:
    """An untrained model that draws its end token every sixth time or so."""
    tokenizer = DocumentTokenizer(CharTokenizer("aeilmnor"))
    model = build_model(RunConfig().override({"model_type": "gru", "hidden_size": 16}).model, 9, seed=3)
    with torch.no_grad():
        model.head.bias[8] = 1.0
    return TextGenerator(model, tokenizer)


@pytest.mark.parametrize("path", ["numba", "plain"])
def test_a_text_ends_where_the_end_token_is_drawn(ending, monkeypatch, path):
    if path == "plain":
        monkeypatch.setattr(ending, "_parts", lambda: None)
    prompts = ["", "emma", "", "liam", *[""] * 36]
    texts = ending.generate_batch(prompts, 100, seed=1)
    assert all(text.startswith(prompt) for text, prompt in zip(texts, prompts, strict=True))
    assert 0 < np.mean([len(text) - len(prompt) for text, prompt in zip(texts, prompts, strict=True)]) < 15
    for i in (0, 1, 2, 3):
        assert ending.generate(prompts[i], 100, seed=1 + i) == texts[i]
        assert "".join(ending.stream(prompts[i], 100, seed=1 + i)) == texts[i]
        assert "".join(ending.stream(prompts[i], None, seed=1 + i)) == texts[i]
        short = ending.generate(prompts[i], 2, seed=1 + i)
        assert short == texts[i][: len(prompts[i]) + 2]
    reshaped = ending.generate_batch(prompts, 100, seed=1, repetition_penalty=1.1, allow="aeo")
    assert max(map(len, reshaped)) < 100
    assert all(set(text) <= set("aeo") for text in reshaped[4:])


def test_a_text_is_what_the_tokens_up_to_the_end_say(ending):
    """The prompt is read after an end token, and what a text is drawn from is the model alone."""
    text = ending.generate("emma", 100, temperature=0)
    tokens = [8, *ending.tokenizer.encode("emma")]
    with torch.no_grad():
        while len(tokens) < 105 and (drawn := int(ending.model(torch.tensor([tokens]))[0][0, -1].argmax())) != 8:
            tokens.append(drawn)
    assert ending.tokenizer.decode(tokens) == text
    assert ending.encode_prompt("").tolist() == [8]
    assert ending.encode_prompt("emma").tolist() == [8, *ending.tokenizer.encode("emma")]


def test_a_byte_that_no_end_completes_comes_out_as_unknown():
    text = GeneratedText(DocumentTokenizer(ByteTokenizer()), None, (), "")
    assert text.push([0xC3, 256, 65]) == "\ufffd"  # half of é, the end, and what was drawn in vain
    assert text.ended


def test_beams_end_at_the_end_token(ending):
    beams = ending.beam_search("em", length=30, width=5)
    assert any(beam.tokens < 30 for beam in beams)
    for beam in beams:
        if beam.tokens < 30:
            assert len(beam.text) - 2 == beam.tokens - 1  # the end token is one of the tokens, without text


def test_talk_goes_on_from_a_text_that_has_ended(ending):
    session = Session(ending, {**GenerationConfig(length=50).settings(), "seed": 1})
    text = "".join(session.write("emma"))
    assert len(text) < 54
    more = "".join(session.more())
    assert session.text == text + more == ending.generate(text, 50, top_p=0.9, seed=2)


# ------------------------------------------------------------------------------------------------- from end to end


def test_a_model_of_names_ends_its_names_itself(names, names_file, tmp_path, capsys):
    out = tmp_path / "run"
    settings = {**TINY, "model_type": "gru", "hidden_size": 32, "num_layers": 1, "dropout": 0, "batch_size": 32}
    settings |= {"seq_length": 20, "max_steps": 150, "learning_rate": 0.02, "eval_interval": 150, "tokenizer": "char"}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    assert main(["train", f"--data={names_file}", "--documents", *flags, f"--out={out}"]) == 0
    capsys.readouterr()
    generator = load_model(out)
    assert generator.tokenizer.end == 8
    texts = generator.generate_batch([""] * 100, 100, seed=1)
    assert max(map(len, texts)) <= 20
    assert np.mean(list(map(len, texts))) == pytest.approx(np.mean(list(map(len, names))), abs=1.5)
    assert main(["sample", str(out), "--num=3", "--quiet", "--seed=1", "--top-p=none"]) == 0
    assert capsys.readouterr().out == "\n".join(f"{text}\n" for text in texts[:3])
    result = charrnn.evaluate(generator)
    assert result.loss == pytest.approx(generator.training_state["val_loss"], rel=1e-6)
    assert result.characters < result.tokens  # names and their ends
    assert result.loss < 2.19  # chance alone is ln 9, 2.197; their length is uniform, which a model can know
    with pytest.raises(CheckpointError, match="its own seq_length"):
        Run.resume(out, {"seq_length": 10})
    with pytest.raises(CheckpointError, match="its own documents"):
        Run.resume(out, {"documents": False})
    assert Run.resume(out, {"max_steps": 151}).fit() is not None


def test_a_trained_model_learns_to_end(names_file, tmp_path, tiny):
    """The end token joins the vocabulary of a model of one text, and new characters come after it."""
    charrnn.save_model(charrnn.create_model(CharTokenizer("aeilmno\n"), hidden_size=8), tmp_path / "model")
    with pytest.warns(UserWarning, match="grows to 9, by 'r'"):
        run = Run.start(tiny.override({"data": str(names_file), "documents": True}), init_from=tmp_path / "model")
    tokenizer = run.generator.tokenizer
    assert (tokenizer.end, tokenizer.vocab_size) == (8, 10)
    assert tokenizer.encode("\nr").tolist() == [7, 9]
    run.fit()
