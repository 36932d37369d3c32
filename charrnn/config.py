"""The settings of a run: typed, frozen and validated; YAML in and out.

A `RunConfig` has six sections. Each field states its meaning, range and default once; the flags and help of the command
line, the errors and `config/default.yaml` follow from it.
"""

import codecs
import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from shlex import quote
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from charrnn.errors import ConfigError

EPS = 1e-5  # added to a variance before dividing by it, in layer normalisation

LARGEST_ONE_HOT = 1024  # vocabulary size

LONGEST_STOP = 1000  # characters

DEVICE_NAME = r"auto|cpu|mps|cuda(:(0|[1-9][0-9]?))?"

TOKENS = ("tokenizer", "vocab_size", "min_frequency")  # fixed by the vocabulary of a trained model

BUDGETS = ("max_epochs", "max_steps", "max_seconds")

WITH_ESCAPES = ("separator", "allow", "forbid", "stop", "prompt")  # settings that may be typed with `ESCAPES`

ESCAPES = r"\n is a newline, \t a tab, \\ a backslash"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_true_for_numbers(cls, values: Any) -> Any:
        for name, value in values.items() if isinstance(values, Mapping) else ():
            if isinstance(value, bool) and name in cls.model_fields and cls.model_fields[name].annotation is not bool:
                raise ValueError(f"expected {name} not to be a boolean, got {str(value).lower()}")
        return values


def _field(default: Any, description: str, flag: str | None = None, **limits: Any) -> Any:
    """A setting; `flag` is its name on the command line if that differs."""
    return Field(default, description=description, json_schema_extra={"flag": flag} if flag else None, **limits)


class ModelConfig(_Section):
    """The architecture."""

    type: Literal["lstm", "gru", "rnn"] = _field("lstm", "recurrent cell: lstm, gru or rnn", flag="model-type")
    hidden_size: int = _field(128, "units per layer", ge=1, le=2**16)
    num_layers: int = _field(2, "stacked layers", ge=1, le=100)
    dropout: float = _field(0.2, "dropout probability between layers", ge=0, lt=1)
    embedding_dim: int | None = _field(
        None, "embedding size; null: trainable one-hot, or hidden_size above 1024 tokens", ge=1, le=2**16
    )
    forget_bias: float = _field(0.0, "initial bias of an LSTM's forget gates; the usual 1 is worse with carried state")
    init: Literal["torch", "uniform", "orthogonal"] = _field(
        "torch", "initial weights: torch (±1/sqrt(hidden_size)), uniform (±0.08, as in 2015) or orthogonal"
    )
    layer_norm: bool = _field(False, "layer normalisation inside an LSTM (Ba et al., 2016)")
    residual: bool = _field(False, "residual connections around every layer except the first")
    tie_weights: bool = _field(False, "share the embedding's weights with the head (Press & Wolf, 2017)")
    input_dropout: float = _field(0.0, "dropout probability of the embeddings", ge=0, lt=1)
    output_dropout: float = _field(0.0, "dropout probability of the last layer's output", ge=0, lt=1)
    variational_dropout: bool = _field(False, "one dropout mask for all steps of a window (Gal & Ghahramani, 2016)")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.layer_norm and self.type != "lstm":
            raise ValueError(f"expected layer_norm with type lstm only, got type {self.type}")
        if self.tie_weights and self.embedding_dim not in (None, self.hidden_size):
            raise ValueError(
                f"expected tie_weights with an embedding_dim of hidden_size ({self.hidden_size}) or null, "
                f"got {self.embedding_dim}"
            )
        return self

    def one_hot(self, vocab_size: int) -> bool:
        """True if the embedding starts as one-hot vectors."""
        return self.embedding_dim is None and vocab_size <= LARGEST_ONE_HOT and not self.tie_weights

    def width(self, vocab_size: int) -> int:
        """Embedding size E."""
        return vocab_size if self.one_hot(vocab_size) else self.embedding_dim or self.hidden_size

    def shapes(self, vocab_size: int) -> dict[str, tuple[int, ...]]:
        """The shape of each weight, by its name in the state_dict."""
        size, width = self.hidden_size, self.width(vocab_size)
        gates = {"lstm": 4, "gru": 3, "rnn": 1}[self.type] * size
        biases = {"bias_ih_l0": (gates,), "bias_hh_l0": (gates,)}
        if self.layer_norm:
            gains = {"gain_ih_l0": (gates,), "gain_hh_l0": (gates,), "gain_c_l0": (size,), "bias_c_l0": (size,)}
            biases = {"bias_l0": (gates,), **gains}
        shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (vocab_size, width)}
        for i in range(self.num_layers):
            matrices = {"weight_ih_l0": (gates, size if i else width), "weight_hh_l0": (gates, size)}
            shapes |= {f"layers.{i}.{name}": shape for name, shape in {**matrices, **biases}.items()}
        return {**shapes, "head.weight": (vocab_size, size), "head.bias": (vocab_size,)}


class TrainingConfig(_Section):
    """The training loop. A run ends when the first of its budgets is used up."""

    batch_size: int = _field(50, "parallel streams of text", ge=1, le=2**20)
    seq_length: int = _field(50, "BPTT window in tokens; the state is carried across windows", ge=1, le=2**20)
    seq_length_start: int | None = _field(None, "first window of a sequence length warm-up; null: no warm-up", ge=1)
    seq_length_warmup_epochs: float = _field(0.25, "epochs in which the window doubles up to seq_length", gt=0)
    micro_batches: int = _field(1, "gradient accumulation: parts of a batch, computed in turn", ge=1)
    optimizer: Literal["adamw", "adam", "muon", "rmsprop", "sgd"] = _field(
        "adamw", "adamw, adam, rmsprop, sgd, or muon (Muon for the layers' matrices, AdamW for the rest)"
    )
    learning_rate: float = _field(2e-3, "peak learning rate", gt=0)
    muon_learning_rate: float = _field(0.02, "peak learning rate of Muon", gt=0)
    beta1: float = _field(0.9, "Adam's beta1; momentum of SGD", ge=0, lt=1)
    beta2: float = _field(0.999, "Adam's beta2; alpha of RMSprop", ge=0, lt=1)
    weight_decay: float = _field(1e-5, "weight decay of layers and head; an L2 penalty for adam, rmsprop and sgd", ge=0)
    grad_clip: float | None = _field(5.0, "gradient clipping threshold; null: no clipping", gt=0)
    grad_clip_mode: Literal["norm", "value"] = _field("norm", "clip the norm of the gradient or each value")
    label_smoothing: float = _field(0.0, "label smoothing (training loss only)", ge=0, lt=1)
    ema_decay: float = _field(0.0, "EMA decay; 0 disables it", ge=0, lt=1)
    schedule: Literal["cosine", "onecycle", "plateau", "step", "constant"] = _field(
        "cosine", "learning rate schedule: cosine, onecycle, plateau, step or constant"
    )
    warmup_frac: float = _field(0.02, "fraction of the budget for warm-up; 0.3 is usual for onecycle", ge=0, le=1)
    hold_frac: float = _field(0.0, "fraction of the budget at the peak before cosine decay", ge=0, le=1)
    decay: float = _field(0.5, "learning rate factor of the step and plateau schedules", gt=0, le=1)
    decay_every: float = _field(5.0, "epochs between decays of the step schedule", gt=0)
    decay_after: float = _field(5.0, "epochs before the first decay of the step schedule", ge=0)
    decay_patience: int = _field(2, "evaluations without improvement before a decay of the plateau schedule", ge=1)
    patience: int | None = _field(None, "evaluations without improvement before early stopping; null: never", ge=1)
    min_delta: float = _field(0.0, "smallest improvement, in nats, that both kinds of patience count", ge=0)
    max_epochs: float | None = _field(50, "budget in epochs", gt=0)
    max_steps: int | None = _field(None, "budget in steps", ge=1)
    max_seconds: float | None = _field(None, "budget in seconds of training and evaluation", gt=0)
    eval_interval: int = _field(1000, "steps between evaluations on the validation split", ge=1)
    save_interval: int = _field(1000, "steps between checkpoints to resume from", ge=1)

    @model_validator(mode="before")
    @classmethod
    def _given_budget_replaces_default(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and "max_epochs" not in values and any(values.get(b) for b in BUDGETS):
            return {**values, "max_epochs": None}
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        if all(getattr(self, budget) is None for budget in BUDGETS):
            raise ValueError(f"expected a budget, got none: set one of {', '.join(BUDGETS)}")
        if self.schedule == "cosine":
            _refuse_more_than_all("--warmup-frac + --hold-frac", self.warmup_frac + self.hold_frac)
        return self


def _refuse_more_than_all(names: str, total: float) -> None:
    if total > 1 + 1e-9:
        raise ValueError(f"expected {names} of at most 1, got {total:g}")


class DataConfig(_Section):
    """The text, its tokenizer and its splits. The test split is what train_frac and val_frac leave."""

    name: str = _field("shakespeare", "corpus name, text file, folder or glob; -: standard input", flag="data")
    tokenizer: Literal["char", "byte", "word", "bpe"] = _field("char", "char, byte, word or bpe")
    vocab_size: int = _field(4096, "largest vocabulary of char, word and bpe", ge=2, le=2**24)
    min_frequency: int = _field(1, "smallest count for a character, word or pair to become a token", ge=1)
    documents: bool = _field(
        False, "treat each file, or each part between separators, as a document with an end to learn"
    )
    separator: str = _field("\n", f"text between files or documents; {ESCAPES}")
    encoding: str = _field("utf-8", "text encoding; byte tokens are the raw bytes of a file")
    decode_errors: Literal["strict", "replace"] = _field(
        "strict", "invalid bytes: strict is an error, replace turns them into U+FFFD"
    )
    train_frac: float = _field(0.9, "training fraction, from the start of the text", gt=0, le=1)
    val_frac: float = _field(0.05, "validation fraction, taken after the training split", ge=0, lt=1)
    val_data: str | None = _field(None, "separate validation text, given like data; replaces val_frac", min_length=1)

    @property
    def raw(self) -> bool:
        """True if files are read as raw bytes: the byte tokenizer decodes them only with an encoding of the user's."""
        return (self.tokenizer, self.encoding, self.decode_errors) == ("byte", "utf-8", "strict")

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not name:
            raise ValueError("expected the name of a corpus or a path, got ''")
        return name

    @field_validator("encoding")
    @classmethod
    def _check_encoding(cls, encoding: str) -> str:
        try:
            codecs.getincrementaldecoder(encoding)
            "x".encode(encoding)
        except LookupError as error:
            raise ValueError(
                f"expected a text encoding that Python knows, such as utf-8 or latin-1, got {encoding!r}"
            ) from error
        return encoding

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.tokenizer == "bpe" and self.vocab_size < 256:
            raise ValueError(f"expected --vocab-size of at least the 256 bytes for bpe, got {self.vocab_size}")
        if self.documents and not self.separator:
            raise ValueError("expected a --separator with documents, got an empty one")
        if self.val_data == self.name:
            raise ValueError("expected another text for --val-data than for --data, got the same")
        if self.val_data is None:
            _refuse_more_than_all("--train-frac + --val-frac", self.train_frac + self.val_frac)
        return self


class GenerationConfig(_Section):
    """Sampling settings."""

    temperature: float = _field(1.0, "sampling temperature; 0 always takes the most likely token", ge=0)
    top_k: int | None = _field(None, "sample from the k most likely tokens", ge=1)
    top_p: float | None = _field(0.9, "sample from the most likely tokens of this total probability", gt=0, le=1)
    min_p: float | None = _field(None, "smallest probability of a token, relative to the most likely", ge=0, le=1)
    typical_p: float | None = _field(None, "sample from the most typical tokens of this total probability", gt=0, le=1)
    repetition_penalty: float | None = _field(
        None, "penalty for the last 32 tokens; above 1 makes them less likely", ge=1, le=1e6
    )
    allow: str | None = _field(None, f"generate only these characters; {ESCAPES}", min_length=1)
    forbid: str | None = _field(None, f"generate none of these characters; {ESCAPES}", min_length=1)
    stop: str | None = _field(
        None, f"stop after this string, which may begin in the prompt; {ESCAPES}", min_length=1, max_length=LONGEST_STOP
    )
    length: int = _field(1000, "largest number of characters to generate; 0: no limit", ge=0)
    prompt: str = _field("", f"text to continue; {ESCAPES}")

    def settings(self) -> dict[str, Any]:
        """The keyword arguments of `TextGenerator.stream`."""
        return self.model_dump() | {"length": self.length or None}


class LoggingConfig(_Section):
    """Logs, checkpoints and metrics: where and how often."""

    log_dir: str = _field("logs", "folder of TensorBoard logs")
    checkpoint_dir: str = _field("checkpoints", "folder in which each run gets a directory")
    log_interval: int = _field(100, "steps between reports of the training loss", ge=1)
    tensorboard: bool = _field(False, "write TensorBoard logs")
    save_top_k: int = _field(0, "best checkpoints to keep beside best/, as lm_lstm_step4000_epoch10.00_1.2345", ge=0)


class DeviceConfig(_Section):
    """Device, precision, backend and random seed."""

    device: str = _field("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = _field(
        "auto", "precision of the large matrix products; auto: the fastest that is safe here"
    )
    backend: Literal["auto", "torch", "numba", "fused", "reference"] = _field(
        "auto",
        "PyTorch's layers (torch), our kernels (fused; numba: LSTM on a CPU), equations (reference) or the fastest",
    )
    threads: int | None = _field(None, "CPU threads; null: PyTorch's default", ge=1)
    seed: int = _field(1337, "random seed", ge=0, lt=2**32)

    @field_validator("device")
    @classmethod
    def _check(cls, device: str) -> str:
        if not re.fullmatch(DEVICE_NAME, device):
            raise ValueError(f"expected auto, cpu, cuda, cuda:N or mps, got {device!r}")
        return device


class RunConfig(_Section):
    """All settings of a run."""

    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    data: DataConfig = DataConfig()
    generation: GenerationConfig = GenerationConfig()
    logging: LoggingConfig = LoggingConfig()
    device: DeviceConfig = DeviceConfig()

    def override(self, values: Mapping[str, Any]) -> "RunConfig":
        """A copy with the fields in `values`, named as on the command line (`hidden_size`, `model_type`, `data`).

        A budget in `values` replaces the old budgets.

        Raises:
            ConfigError: an unknown name, a value out of range, or `val_frac` beside the `val_data` that replaces it.
        """
        if not values:
            return self
        if values.get("val_data") and values.get("val_frac"):
            raise ConfigError("data.val_frac (--val-frac): expected to be left out with val_data (--val-data)")
        fields = {name: (section, key) for section, key, name, _ in config_fields()}
        tree = self.model_dump()
        if any(values.get(budget) is not None for budget in BUDGETS):
            tree["training"].update(dict.fromkeys(BUDGETS))
        for name, value in values.items():
            if name not in fields:
                raise ConfigError(f"unknown setting {name!r}{_nearest(name, fields)}")
            section, key = fields[name]
            tree[section][key] = value
        return parse_config(tree)


SECTIONS: dict[str, type[_Section]] = {name: type(field.default) for name, field in RunConfig.model_fields.items()}

Setting = tuple[str, str, str, FieldInfo]  # section, key, name on the command line, field


def config_fields(*sections: str) -> Iterator[Setting]:
    """Every setting, or those in `sections`."""
    for section in sections or SECTIONS:
        for key, field in SECTIONS[section].model_fields.items():
            extra = field.json_schema_extra
            flag = str(extra["flag"]) if isinstance(extra, dict) else key
            yield section, key, flag.replace("-", "_"), field


# ----------------------------------------------------------------------------------------------------------- old names

RENAMED = {  # read in saved runs; elsewhere an error that gives the new name
    "variational": "variational_dropout",
    "start_length": "seq_length_start",
    "growth": "seq_length_warmup_epochs",
    "accumulation": "micro_batches",
    "clip_by": "grad_clip_mode",
    "keep_best": "save_top_k",
}

RENAMED_BACKENDS = {"native": "torch", "compiled": "numba", "readable": "reference"}


def with_new_names(tree: Any) -> Any:
    """The configuration of a saved run, with the settings of earlier versions under their present names."""
    if not isinstance(tree, Mapping):
        return tree
    renamed = {
        section: {RENAMED.get(key, key): value for key, value in values.items()}
        for section, values in tree.items()
        if isinstance(values, Mapping)
    }
    if "backend" in (device := renamed.get("device", {})):
        device["backend"] = RENAMED_BACKENDS.get(device["backend"], device["backend"])
    return {**tree, **renamed}


# --------------------------------------------------------------------------------------------------------- YAML in, out


def load_config(path: str | Path) -> RunConfig:
    """The run that a YAML file describes, with defaults for what it leaves out.

    Numbers are those of YAML 1.2. The settings in `WITH_ESCAPES` are read with `unescaped`.

    Raises:
        ConfigError: not YAML, a duplicate or unknown key, a value out of range; names the file and the key.
        OSError: the file cannot be read.
    """
    try:
        tree = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
        got = "plain text" if isinstance(tree, str) else None
    except UnicodeDecodeError:
        got = "no text"
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}: expected YAML, got {getattr(error, 'problem', error)}{line}") from error
    if got:
        raise ConfigError(
            f"{path}: expected settings in YAML, got {got}; to train on it, use --data {quote(str(path))}"
        )
    return parse_config({} if tree is None else _map_texts(unescaped, tree), str(path))


def dump_config(config: RunConfig) -> str:
    """Every setting as YAML that `load_config` reads back."""
    return yaml.dump(_map_texts(escaped, config.model_dump()), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def unescaped(typed: str) -> str:
    r"""Replace the escapes in a typed text: `\n` by a newline, `\t` by a tab, `\\` by a backslash, nothing else."""
    return re.sub(r"\\([nt\\])", lambda match: {"n": "\n", "t": "\t"}.get(match[1], "\\"), typed)


def escaped(text: str) -> str:
    r"""A text in one line that `unescaped` reads back."""
    return text.replace("\\", r"\\").replace("\n", r"\n").replace("\t", r"\t")


def _map_texts(change: Callable[[str], str], tree: Any) -> Any:
    """Apply `change` to the settings in `WITH_ESCAPES`."""
    if not isinstance(tree, Mapping):
        return tree
    return {
        section: {k: change(v) if k in WITH_ESCAPES and isinstance(v, str) else v for k, v in values.items()}
        if isinstance(values, Mapping)
        else values
        for section, values in tree.items()
    }


class _Loader(yaml.SafeLoader):
    """Reads scalars by the core schema of YAML 1.2; plain PyYAML reads 1e-5 as a string, 0256 as 174, 1:30 as 90."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in lines:
                problem = f"the key {key.value!r} of line {lines[key.value]} again"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would not read as a string, and invisible characters."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')


def _whole_number(_: yaml.Loader, node: yaml.ScalarNode) -> int:
    return int(node.value, 0 if node.value[:2] in ("0o", "0x") else 10)


_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)

_Dumper.add_representer(str, _Dumper.represent_str)

for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
):
    for _yaml in (_Loader, _Dumper):
        _yaml.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"({_pattern})$"), _first)


# ---------------------------------------------------------------------------------------------------- checks and errors


def parse_config(tree: Any, source: str = "") -> RunConfig:
    """The run that nested dictionaries describe; errors name `source`.

    Raises:
        ConfigError: an unknown key or a value out of range, in one sentence.
    """
    if isinstance(tree, Mapping):  # an empty section has its defaults
        tree = {section: {} if values is None else values for section, values in tree.items()}
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        location = [str(part) for part in error.errors()[0]["loc"]]
        section = SECTIONS.get(location[0], RunConfig) if len(location) > 1 else RunConfig
        name = next((n for section, k, n, _ in config_fields() if [section, k] == location[:2]), None)
        key = ".".join(location) or "the configuration"
        where = f"{key} (--{name.replace('_', '-')})" if name else key
        said = explain(error, section.model_fields, where)
        raise ConfigError(f"{source}: {said}" if source else said) from error


def refuse_unknown(names: Iterable[str], section: type[BaseModel], kind: str) -> None:
    """Raise ConfigError if one of `names` is not a field of a section."""
    for name in names:
        if name not in section.model_fields:
            raise ConfigError(f"unknown {kind} {name!r}{_nearest(name, section.model_fields)}")


def explain(error: ValidationError, known: Mapping[str, Any], where: str = "") -> str:
    """One sentence about the first problem that pydantic found among the `known` fields, at `where`."""
    problem = error.errors()[0]
    if problem["type"] == "extra_forbidden":
        key = ".".join(map(str, problem["loc"]))
        return f"unknown key {key!r}{_nearest(str(problem['loc'][-1]), known)}"
    where = where or ".".join(map(str, problem["loc"][:1])) or "settings"
    if problem["type"] == "value_error":
        return f"{where}: {problem['ctx']['error']}"
    message = problem["msg"].replace("Input should be ", "expected ").replace("or instance of ", "or section ")
    message = message.replace("String should have", "expected").split(", unable to parse")[0]
    message = re.sub("expected (greater|less)", r"expected a value \1", message)
    got = repr(problem["input"])
    renamed = RENAMED_BACKENDS.get(str(problem["input"])) if problem["loc"][-1:] == ("backend",) else None
    return f"{where}: {message}, got {got[:60]}{'…' * (len(got) > 60)}" + (
        f", now called {renamed!r}" if renamed else ""
    )


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    if name in RENAMED:
        return f"; it is now called {RENAMED[name]!r}"
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; expected one of {', '.join(known)}"
