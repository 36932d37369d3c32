import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from charrnn.config import (
    RENAMED,
    RENAMED_BACKENDS,
    WITH_ESCAPES,
    RunConfig,
    config_fields,
    dump_config,
    escaped,
    load_config,
    parse_config,
    unescaped,
)
from charrnn.errors import ConfigError

CHECKED = ("encoding", "device")  # strings that are not free


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_are_those_of_the_issue():
    config = RunConfig()
    assert (config.model.type, config.model.hidden_size, config.model.num_layers, config.model.dropout) == (
        "lstm",
        128,
        2,
        0.2,
    )
    training = config.training
    assert (training.batch_size, training.seq_length, training.learning_rate) == (50, 50, 2e-3)
    assert (training.weight_decay, training.max_epochs, training.grad_clip) == (1e-5, 50, 5.0)
    assert (training.eval_interval, training.save_interval) == (1000, 1000)
    assert (config.data.name, config.data.train_frac, config.data.val_frac) == ("shakespeare", 0.9, 0.05)
    generation = config.generation
    assert (generation.temperature, generation.top_k, generation.top_p) == (1.0, None, 0.9)
    assert (generation.length, generation.prompt) == (1000, "")
    logging = config.logging
    assert (logging.log_dir, logging.checkpoint_dir) == ("logs", "checkpoints")
    assert (logging.log_interval, logging.tensorboard) == (100, False)
    assert (config.device.device, config.device.precision) == ("auto", "auto")


@pytest.mark.parametrize(
    ("text", "value"), [("1e-5", 1e-5), ("1E-5", 1e-5), ("2.5e-3", 2.5e-3), (".5e-2", 5e-3), ("3e+0", 3.0)]
)
def test_scientific_notation_is_a_number(tmp_path, text, value):
    config = load_config(write(tmp_path / "run.yaml", f"training: {{learning_rate: {text}}}"))
    assert config.training.learning_rate == value


@pytest.mark.parametrize(("text", "value"), [("0256", 256), ("0o17", 15), ("0x1F", 31), ("+7", 7), ("1:30", None)])
def test_whole_numbers_are_those_of_yaml_1_2(tmp_path, text, value):
    path = write(tmp_path / "run.yaml", f"training: {{max_steps: {text}}}")
    if value is not None:
        assert load_config(path).training.max_steps == value
        return
    with pytest.raises(ConfigError, match=rf"max_steps .*: expected a valid integer.*got '{text}'"):
        load_config(path)


@pytest.mark.parametrize("text", ["1e5.txt", "1:30", "1_000", "2024-01-01", "yes", "off", "=", "<<"])
def test_words_that_look_like_something_else_stay_words(tmp_path, text):
    assert load_config(write(tmp_path / "run.yaml", f"data: {{name: {text}}}")).data.name == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "model:\n  hidden_size: 3\n  dropout: 0\n  hidden_size: 4\n",
            "the key 'hidden_size' of line 2 again in line 4",
        ),
        ("model: {dropout: 0}\ndata: {}\nmodel: {num_layers: 1}\n", "the key 'model' of line 1 again in line 3"),
        ("model: {dropout: 0, 'dropout': 1}\n", "the key 'dropout' of line 1 again in line 1"),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_its_lines(tmp_path, text, message):
    with pytest.raises(ConfigError, match=f"run.yaml: expected YAML, got {message}$"):
        load_config(write(tmp_path / "run.yaml", text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {bath_size: 3}", r"run.yaml: unknown key 'training.bath_size'; did you mean 'batch_size'\?"),
        ("training: {clip_by: norm}", "unknown key 'training.clip_by'; it is now called 'grad_clip_mode'$"),
        ("device: {backend: native}", r"--backend\): expected 'auto', 'torch', .*, got 'native', now called 'torch'$"),
        ("trainin: {}", r"run.yaml: unknown key 'trainin'; did you mean 'training'\?"),
        ("zzz: 1", "run.yaml: unknown key 'zzz'; expected one of model, training"),
        (
            "model: {hidden_size: 0}",
            r"model.hidden_size \(--hidden-size\): expected a value greater than or equal to 1, got 0",
        ),
        ("model: {type: lstmm}", r"model.type \(--model-type\): expected 'lstm', 'gru' or 'rnn', got 'lstmm'"),
        ("training: {learning_rate: .nan}", "expected a finite number"),
        ("training: {learning_rate: fast}", "expected a valid number, got 'fast'"),
        ("training: {max_epochs: null}", "expected a budget, got none: set one of max_epochs, max_steps, max_seconds"),
        ("training: {warmup_frac: 0.6, hold_frac: 0.6}", "--warmup-frac . --hold-frac of at most 1, got 1.2"),
        ("data: {train_frac: 0.9, val_frac: 0.2}", "--train-frac . --val-frac of at most 1, got 1.1"),
        ("device: {device: tpu}", r"device.device \(--device\): expected auto, cpu, cuda, cuda:N or mps, got 'tpu'"),
        ("model: {hidden_size: true}", "model: expected hidden_size not to be a boolean, got true"),
        ("[1, 2]", "run.yaml: the configuration: expected a valid dictionary"),
        ("training: [1", "run.yaml: expected YAML"),
    ],
)
def test_a_wrong_file_is_one_sentence_that_names_the_place(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(write(tmp_path / "run.yaml", text))
    assert "\n" not in str(caught.value)


def test_an_empty_file_is_the_defaults(tmp_path):
    assert load_config(write(tmp_path / "run.yaml", "")) == RunConfig()
    assert load_config(write(tmp_path / "run.yaml", "training:\nmodel:\n")) == RunConfig()


def test_yaml_round_trip(tmp_path):
    config = RunConfig().override({"max_seconds": 9.5, "top_k": 3, "prompt": "é\n: #", "tensorboard": True})
    assert load_config(write(tmp_path / "run.yaml", dump_config(config))) == config


STRINGS = [(s, k) for s, k, _, f in config_fields() if f.annotation in (str, str | None) and k not in CHECKED]


@given(st.sampled_from(STRINGS), st.text(min_size=1))
@example(("generation", "prompt"), "1e5")
@example(("generation", "prompt"), "0o17")
@example(("generation", "stop"), "\\n\n\\\\\t\\x")
@example(("data", "name"), "\x85")
@example(("logging", "log_dir"), "\r\n\x85\u2028\ufeff\U0001f600")
def test_any_string_survives_a_file(tmp_path_factory, field, value):
    section, key = field
    config = parse_config({section: {key: value}})
    path = tmp_path_factory.getbasetemp() / "string.yaml"
    assert load_config(write(path, dump_config(config))) == config


@given(st.text(alphabet="\\nt\n\tx"))
def test_escapes_are_undone(text):
    assert unescaped(escaped(text)) == text
    assert "\n" not in escaped(text)


@pytest.mark.parametrize(
    ("typed", "meant"), [("\\n", "\n"), ("\\t", "\t"), ("\\\\n", "\\n"), ("\\x", "\\x"), ("\\", "\\")]
)
def test_an_escape_means_the_same_in_every_typed_setting(tmp_path, typed, meant):
    assert unescaped(typed) == meant
    for name in WITH_ESCAPES:
        section = next(section for section, key, _, _ in config_fields() if key == name)
        path = write(tmp_path / "run.yaml", f"{section}: {{{name}: '{typed}'}}")
        assert getattr(getattr(load_config(path), section), name) == meant
        assert getattr(getattr(RunConfig().override({name: typed}), section), name) == typed  # Python has its own


def test_a_config_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().model.hidden_size = 3


def test_a_budget_in_a_file_replaces_the_default_one():
    assert parse_config({"training": {"max_steps": 7}}).training.max_epochs is None
    both = parse_config({"training": {"max_steps": 7, "max_epochs": 2}}).training
    assert (both.max_steps, both.max_epochs) == (7, 2)


def test_a_budget_that_overrides_replaces_all_others():
    config = parse_config({"training": {"max_steps": 7, "max_epochs": 2}}).override({"max_seconds": 3})
    assert (config.training.max_steps, config.training.max_epochs, config.training.max_seconds) == (None, None, 3)


@given(
    st.sampled_from([("dropout", 0), ("tensorboard", False), ("weight_decay", 0.0), ("temperature", 0), ("prompt", "")])
)
def test_overriding_with_zero_or_false_counts(setting):
    name, value = setting
    start = RunConfig().override(
        {"dropout": 0.5, "tensorboard": True, "weight_decay": 1, "temperature": 2, "prompt": "x"}
    )
    section, key = next((section, key) for section, key, flag, _ in config_fields() if flag == name)
    assert getattr(getattr(start.override({name: value}), section), key) == value


def test_an_unknown_override_is_named():
    with pytest.raises(ConfigError, match="unknown setting 'hiden_size'; did you mean 'hidden_size'"):
        RunConfig().override({"hiden_size": 3})


def test_old_names_are_errors_that_give_the_new_ones():
    for old, new in RENAMED.items():
        with pytest.raises(ConfigError, match=f"unknown setting '{old}'; it is now called '{new}'$"):
            RunConfig().override({old: 1})
    for old, new in RENAMED_BACKENDS.items():
        with pytest.raises(ConfigError, match=f"got '{old}', now called '{new}'$"):
            RunConfig().override({"backend": old})


def test_flags_are_unique_and_described():
    names = [name for _, _, name, _ in config_fields()]
    assert len(set(names)) == len(names)
    assert all(field.description for *_, field in config_fields())


def test_default_yaml_documents_every_key_with_its_default(config_folder):
    text = (config_folder / "default.yaml").read_text(encoding="utf-8")
    assert load_config(config_folder / "default.yaml") == RunConfig()
    for section, key, _, field in config_fields():
        lines = [line for line in text.splitlines() if line.startswith(f"  {key}:")]
        assert len(lines) == 1, f"{section}.{key}"
        assert lines[0].endswith(f" # {field.description}"), f"{section}.{key}"


def test_every_shipped_file_lists_only_what_differs(config_folder):
    defaults = RunConfig().model_dump()
    for path in sorted(config_folder.glob("*.yaml")):
        load_config(path)
        if path.name != "default.yaml":
            tree = yaml.safe_load(path.read_text(encoding="utf-8"))
            same = [f"{s}.{k}" for s, values in tree.items() for k, value in values.items() if defaults[s][k] == value]
            assert not same, path.name


@pytest.fixture
def config_folder(request):
    return request.config.rootpath / "config"
