"""What a run is: typed, frozen, validated; YAML in and out.

A `RunConfig` has six sections. Each field says once what it is, what it may be and what it starts as; the command
line's flags and help, the errors and `config/default.yaml` all follow from here.
"""

import codecs
import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from shlex import quote
from typing import Any, ClassVar, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from charrnn.errors import ConfigError


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, values: Any) -> Any:
        for name, value in values.items() if isinstance(values, Mapping) else ():
            if isinstance(value, bool) and name in cls.model_fields and cls.model_fields[name].annotation is not bool:
                raise ValueError(f"expected {name} to be anything but {str(value).lower()}")
        return values


LARGEST_ONE_HOT = 1024  # vocabulary size


class ModelConfig(_Section):
    """The network: how many units of which kind."""

    type: Literal["lstm", "gru", "rnn"] = Field(
        "lstm", description="kind of cell", json_schema_extra={"flag": "model-type"}
    )
    hidden_size: int = Field(128, ge=1, le=2**16, description="units in each layer")
    num_layers: int = Field(2, ge=1, le=100, description="layers, one above the other")
    dropout: float = Field(0.2, ge=0, lt=1, description="share of units dropped between layers while training")
    embedding_dim: int | None = Field(
        None,
        ge=1,
        le=2**16,
        description="size of a token's vector; null: one-hot, free to move (above 1024 tokens: hidden_size)",
    )
    forget_bias: float = Field(
        0.0,
        description="bias that an LSTM's forget gates start with, in total; the usual 1 is worse with a carried state",
    )
    init: Literal["torch", "uniform", "orthogonal"] = Field(
        "torch",
        description="torch: ±1/sqrt(hidden_size); uniform: ±0.08 as in 2015; orthogonal: Xavier input, orthogonal "
        "recurrent, no bias",
    )
    layer_norm: bool = Field(False, description="normalise an LSTM's products and cell (Ba et al., 2016)")
    residual: bool = Field(False, description="add the input of each layer but the first to its output")
    tie_weights: bool = Field(False, description="the head reads with the embedding's vectors (Press & Wolf, 2017)")
    input_dropout: float = Field(0.0, ge=0, lt=1, description="share of the embedding's units dropped while training")
    output_dropout: float = Field(0.0, ge=0, lt=1, description="share of the top layer's units dropped for the head")
    variational_dropout: bool = Field(
        False, description="drop the same units at every step of a window (Gal & Ghahramani, 2016)"
    )

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
        """Whether a token's vector starts as one-hot."""
        return self.embedding_dim is None and vocab_size <= LARGEST_ONE_HOT and not self.tie_weights

    def width(self, vocab_size: int) -> int:
        """Size E of a token's vector."""
        return vocab_size if self.one_hot(vocab_size) else self.embedding_dim or self.hidden_size

    def shapes(self, vocab_size: int) -> dict[str, tuple[int, ...]]:
        """The shape of each weight of such a model, by its name in the state_dict."""
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
    """The loop: how much, how fast, when to look. Of several budgets the one that is used up first ends the run."""

    batch_size: int = Field(50, ge=1, le=2**20, description="parallel streams of text")
    seq_length: int = Field(
        50, ge=1, le=2**20, description="tokens a gradient flows back through; context is carried beyond it"
    )
    seq_length_start: int | None = Field(
        None, ge=1, description="tokens in the first windows, which double up to seq_length; null: all are that long"
    )
    seq_length_warmup_epochs: float = Field(
        0.25, gt=0, description="epochs in which the windows grow from seq_length_start to seq_length"
    )
    micro_batches: int = Field(
        1, ge=1, description="parts that the streams of a step are computed in, one after another, to save memory"
    )
    optimizer: Literal["adamw", "adam", "muon", "rmsprop", "sgd"] = Field(
        "adamw", description="adamw, adam, rmsprop, sgd, or muon: Muon for the layers' matrices, AdamW for the rest"
    )
    learning_rate: float = Field(2e-3, gt=0, description="peak learning rate")
    muon_learning_rate: float = Field(0.02, gt=0, description="peak learning rate of Muon, for its matrices")
    beta1: float = Field(0.9, ge=0, lt=1, description="share kept of the mean gradient: Adam's beta1, SGD's momentum")
    beta2: float = Field(0.999, ge=0, lt=1, description="share kept of its mean square: Adam's beta2, RMSprop's alpha")
    weight_decay: float = Field(
        1e-5, ge=0, description="shrinks the matrices of layers and head; decoupled with adamw and muon, else L2"
    )
    grad_clip: float | None = Field(
        5.0, gt=0, description="largest norm of the whole gradient; longer ones are scaled down; null: no clipping"
    )
    grad_clip_mode: Literal["norm", "value"] = Field(
        "norm", description="value: grad_clip bounds each entry of the gradient, as in 2015"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of a target given to all tokens alike; never in a reported loss"
    )
    ema_decay: float = Field(
        0.0, ge=0, lt=1, description="share kept at each step by the mean of the weights that is evaluated; 0: no mean"
    )
    schedule: Literal["cosine", "onecycle", "plateau", "step", "constant"] = Field(
        "cosine",
        description="cosine, onecycle, plateau, step or constant: how the rate goes over the budget, whichever",
    )
    warmup_frac: float = Field(
        0.02, ge=0, le=1, description="share of the budget in which the learning rate climbs; onecycle wants 0.3"
    )
    hold_frac: float = Field(
        0.0, ge=0, le=1, description="share of the budget at the peak before the cosine falls to 0"
    )
    decay: float = Field(0.5, gt=0, le=1, description="factor at each fall of the schedules step and plateau")
    decay_every: float = Field(5.0, gt=0, description="epochs from one fall to the next with the schedule step")
    decay_after: float = Field(5.0, ge=0, description="epochs before the first fall with the schedule step")
    decay_patience: int = Field(
        2, ge=1, description="evaluations without a better loss before a fall with the schedule plateau"
    )
    patience: int | None = Field(
        None, ge=1, description="evaluations without a better loss that end the run; null: it is never ended early"
    )
    min_delta: float = Field(0.0, ge=0, description="nats by which a loss must be lower to count as better for these")
    max_epochs: float | None = Field(50, gt=0, description="budget: passes over the training text")
    max_steps: int | None = Field(None, ge=1, description="budget: updates")
    max_seconds: float | None = Field(
        None, gt=0, description="budget: seconds of training, evaluations included, pauses of the process not"
    )
    eval_interval: int = Field(1000, ge=1, description="steps between evaluations on the whole validation split")
    save_interval: int = Field(1000, ge=1, description="steps between checkpoints to resume from")

    @model_validator(mode="before")
    @classmethod
    def _budget_given_replaces_default(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and "max_epochs" not in values and any(values.get(b) for b in BUDGETS):
            return {**values, "max_epochs": None}
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        if all(getattr(self, budget) is None for budget in BUDGETS):
            raise ValueError(f"expected a budget, got none: set one of {', '.join(BUDGETS)}")
        if self.schedule == "cosine" and self.warmup_frac + self.hold_frac > 1:
            raise ValueError(
                f"expected --warmup-frac + --hold-frac of at most 1, got {self.warmup_frac + self.hold_frac:g}"
            )
        return self


WITH_ESCAPES = ("separator", "allow", "forbid", "stop", "prompt")  # settings in which a newline can be typed

ESCAPES = r"\n is a newline, \t a tab, \\ a backslash"

TOKENS = ("tokenizer", "vocab_size", "min_frequency")  # the settings that a trained model's vocabulary decides

BUDGETS = ("max_epochs", "max_steps", "max_seconds")


class DataConfig(_Section):
    """The text, how it is cut into tokens and splits; what train_frac and val_frac leave is the test split."""

    name: str = Field(  # no min_length: pydantic would then refuse names that are not Unicode
        "shakespeare",
        description="corpus name, or path of a text file, a folder or a glob of them; - for standard input",
        json_schema_extra={"flag": "data"},
    )
    tokenizer: Literal["char", "byte", "word", "bpe"] = Field("char", description="what a token is")
    vocab_size: int = Field(
        4096,
        ge=2,
        le=2**24,
        description="largest vocabulary of char, word and bpe; what is rarer is unknown or spelled",
    )
    min_frequency: int = Field(
        1, ge=1, description="characters and words that occur less often are unknown; bpe joins no such pairs"
    )
    documents: bool = Field(
        False,
        description="each file of a folder or glob is a text of its own, of any other text each part between two "
        "separators; where they end is learned",
    )
    separator: str = Field(
        "\n",
        description=f"text between the files of a folder or glob, or between the documents in one file; {ESCAPES}",
    )
    encoding: str = Field("utf-8", description="encoding of the files; byte tokens take them as they are")
    decode_errors: Literal["strict", "replace"] = Field(
        "strict", description="bytes that are no text: strict refuses, replace makes them U+FFFD"
    )
    train_frac: float = Field(0.9, gt=0, le=1, description="share of the text to train on, from its beginning")
    val_frac: float = Field(0.05, ge=0, lt=1, description="share to choose by, right after it")
    val_data: str | None = Field(
        None, min_length=1, description="a text of its own to choose by, named as data is; val_frac is not used then"
    )

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not name:
            raise ValueError("expected the name of a corpus or a path, got ''")
        return name

    @property
    def raw(self) -> bool:
        """Whether files are read as bytes: a byte tokenizer needs no encoding, unless one is named."""
        return (self.tokenizer, self.encoding, self.decode_errors) == ("byte", "utf-8", "strict")

    @field_validator("encoding")
    @classmethod
    def _check_encoding(cls, encoding: str) -> str:
        try:
            codecs.getincrementaldecoder(encoding)
            "x".encode(encoding)
        except LookupError as error:
            raise ValueError(
                f"expected a text encoding that Python knows, as utf-8 or latin-1, got {encoding!r}"
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
        if self.val_data is None and self.train_frac + self.val_frac > 1 + 1e-9:
            raise ValueError(
                f"expected --train-frac + --val-frac of at most 1, got {self.train_frac + self.val_frac:g}"
            )
        return self


LONGEST_STOP = 1000  # characters


class GenerationConfig(_Section):
    """How text is sampled."""

    temperature: float = Field(
        1.0, ge=0, description="divides the logits: below 1 safer, above 1 wilder, 0 the likeliest"
    )
    top_k: int | None = Field(None, ge=1, description="sample among the k likeliest tokens only")
    top_p: float | None = Field(
        0.9, gt=0, le=1, description="sample among the likeliest tokens that hold this probability"
    )
    min_p: float | None = Field(
        None, ge=0, le=1, description="leave out tokens less likely than this share of the likeliest"
    )
    typical_p: float | None = Field(
        None, gt=0, le=1, description="sample among the tokens of the most typical surprisal that hold this probability"
    )
    repetition_penalty: float | None = Field(
        None,
        ge=1,
        le=1e6,
        description="multiplies the log-probability of the last 32 tokens; above 1 they are less likely",
    )
    allow: str | None = Field(None, min_length=1, description=f"write with these characters only; {ESCAPES}")
    forbid: str | None = Field(None, min_length=1, description=f"write without these characters; {ESCAPES}")
    stop: str | None = Field(
        None,
        min_length=1,
        max_length=LONGEST_STOP,
        description=f"end right after this string; its beginning may be in the prompt; {ESCAPES}",
    )
    length: int = Field(1000, ge=0, description="characters to generate, at most; 0: until stopped")
    prompt: str = Field("", description=f"text to go on from; {ESCAPES}")

    def settings(self) -> dict[str, Any]:
        """The same as `TextGenerator.stream` takes them."""
        return self.model_dump() | {"length": self.length or None}


class LoggingConfig(_Section):
    """What is written down, where and how often."""

    log_dir: str = Field("logs", description="folder for TensorBoard's files")
    checkpoint_dir: str = Field("checkpoints", description="folder that a run's own folder is made in")
    log_interval: int = Field(100, ge=1, description="steps between reports of the training loss")
    tensorboard: bool = Field(False, description="write TensorBoard files, too")
    save_top_k: int = Field(
        0, ge=0, description="best checkpoints kept beside best/, in folders such as lm_lstm_step4000_epoch10.00_1.2345"
    )


class DeviceConfig(_Section):
    """Where it runs and from which seed."""

    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="arithmetic of the large products; auto: the fastest that is safe here"
    )
    backend: Literal["auto", "torch", "numba", "fused", "reference"] = Field(
        "auto",
        description="what trains the layers: PyTorch's own, our kernels (compiled: an LSTM's, on a CPU) or the "
        "equations step by step; auto: the fastest",
    )
    threads: int | None = Field(None, ge=1, description="CPU threads; null: PyTorch's choice")
    seed: int = Field(1337, ge=0, lt=2**32, description="start of every random number")

    @field_validator("device")
    @classmethod
    def _check(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:(0|[1-9][0-9]?))?", device):
            raise ValueError(f"expected auto, cpu, cuda, cuda:N or mps, got {device!r}")
        return device


class RunConfig(_Section):
    """Everything a run is made of."""

    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    data: DataConfig = DataConfig()
    generation: GenerationConfig = GenerationConfig()
    logging: LoggingConfig = LoggingConfig()
    device: DeviceConfig = DeviceConfig()

    def override(self, values: Mapping[str, Any]) -> Self:
        """A copy with the fields in `values`, named as on the command line (`hidden_size`, `model_type`, `data`).

        A budget given here replaces the budgets that were there.

        Raises:
            ConfigError: an unknown name, a value out of range, or `val_frac` beside the `val_data` that replaces it.
        """
        fields = {name: (section, key) for section, key, name, _ in config_fields()}
        tree = self.model_dump()
        if values.get("val_data") and values.get("val_frac"):
            raise ConfigError("data.val_frac (--val-frac): expected to be left out with val_data (--val-data)")
        if any(values.get(budget) is not None for budget in BUDGETS):
            tree["training"].update(dict.fromkeys(BUDGETS))
        for name, value in values.items():
            if name not in fields:
                raise ConfigError(f"unknown setting {name!r}{_nearest(name, fields)}")
            section, key = fields[name]
            tree[section][key] = value
        return parse_config(tree)


# names of earlier versions: checkpoints that have them are read, and errors about them give the new name
RENAMED = {
    "variational": "variational_dropout",
    "start_length": "seq_length_start",
    "growth": "seq_length_warmup_epochs",
    "accumulation": "micro_batches",
    "clip_by": "grad_clip_mode",
    "keep_best": "save_top_k",
}
RENAMED_BACKENDS = {"native": "torch", "compiled": "numba", "readable": "reference"}


def config_fields(*sections: str) -> Iterator[tuple[str, str, str, FieldInfo]]:
    """(section, key, name on the command line, field) of every setting, or of those in `sections`."""
    for section, section_field in RunConfig.model_fields.items():
        if not sections or section in sections:
            for key, field in section_field.annotation.model_fields.items():
                flag = (field.json_schema_extra or {}).get("flag", key)
                yield section, key, flag.replace("-", "_"), field


def load_config(path: str | Path) -> RunConfig:
    """The run that a YAML file describes; what it leaves out has its default.

    Numbers are those of YAML 1.2. The settings in `WITH_ESCAPES` are read with `unescaped`.

    Raises:
        ConfigError: not YAML, a duplicate or unknown key, a value out of range; names the file and the key.
        OSError: the file cannot be read.
    """
    try:
        tree = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: expected settings in YAML, got no text; to train on it, use --data {quote(str(path))}"
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}: expected YAML, got {getattr(error, 'problem', error)}{line}") from error
    if isinstance(tree, str):
        raise ConfigError(
            f"{path}: expected settings in YAML, got plain text; to train on it, use --data {quote(str(path))}"
        )
    return parse_config({} if tree is None else _with_each_text(unescaped, tree), str(path))


def dump_config(config: RunConfig) -> str:
    """Every setting of `config` as YAML that `load_config` reads back."""
    tree = _with_each_text(escaped, config.model_dump())
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def unescaped(typed: str) -> str:
    r"""A text as it is meant: `\n` is a newline, `\t` a tab, `\\` a backslash; any other backslash is itself."""
    return re.sub(r"\\([nt\\])", lambda match: {"n": "\n", "t": "\t"}.get(match[1], "\\"), typed)


def escaped(text: str) -> str:
    r"""A text as it can be typed in one line, for `unescaped` to read."""
    return text.replace("\\", r"\\").replace("\n", r"\n").replace("\t", r"\t")


def _with_each_text(change: Callable[[str], str], tree: Any) -> Any:
    """The same tree with `change` applied to the settings in `WITH_ESCAPES`."""
    if not isinstance(tree, Mapping):
        return tree
    return {
        section: {k: change(v) if k in WITH_ESCAPES and isinstance(v, str) else v for k, v in values.items()}
        if isinstance(values, Mapping)
        else values
        for section, values in tree.items()
    }


def with_new_names(tree: Any) -> Any:
    """The configuration in a checkpoint, which may be of an earlier version, under today's names."""
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


def parse_config(tree: Any, source: str = "") -> RunConfig:
    """The run that nested dictionaries describe; `source` is named in errors.

    Raises:
        ConfigError: an unknown key or a value out of range, in one sentence.
    """
    if isinstance(tree, Mapping):  # a section with nothing under it is all defaults
        tree = {section: {} if values is None else values for section, values in tree.items()}
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        where = f"{source}: " if source else ""
        raise ConfigError(where + _explain(error)) from error


def _explain(error: ValidationError) -> str:
    """One sentence about the first thing that pydantic found wrong with a configuration."""
    location = [str(part) for part in error.errors()[0]["loc"]]
    key = ".".join(location)
    section = RunConfig.model_fields[location[0]].annotation if len(location) > 1 else RunConfig
    name = next((n for section, k, n, _ in config_fields() if [section, k] == location[:2]), None)
    where = f"{key} (--{name.replace('_', '-')})" if name else key or "the configuration"
    return explain(error, section.model_fields, where)


def explain(error: ValidationError, known: Mapping[str, Any], where: str = "") -> str:
    """One sentence about the first thing that pydantic found wrong, among the `known` fields, at `where`."""
    problem = error.errors()[0]
    if problem["type"] == "extra_forbidden":
        key = ".".join(map(str, problem["loc"]))
        return f"unknown key {key!r}{_nearest(str(problem['loc'][-1]), known)}"
    where = where or ".".join(map(str, problem["loc"][:1])) or "settings"
    if problem["type"] == "value_error":
        return f"{where}: {problem['ctx']['error']}"
    message = problem["msg"].replace("Input should be ", "expected ").replace("or instance of ", "or section ")
    message = message.replace("String should have", "expected").split(", unable to parse")[0]
    for comparison in ("greater", "less"):
        message = message.replace(f"expected {comparison}", f"expected a value {comparison}")
    got = repr(problem["input"])
    return f"{where}: {message}, got {got if len(got) <= 60 else got[:60] + '…'}"


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    if name in RENAMED:
        return f"; it is now called {RENAMED[name]!r}"
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; expected one of {', '.join(known)}"


class _Loader(yaml.SafeLoader):
    """Scalars as in the core schema of YAML 1.2, where plain PyYAML reads 1e-5 as a string, 0256 as 174, 1:30 as 90."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in lines:
                problem = f"the key {key.value!r} of line {lines[key.value]} again"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would not read as a string, and what cannot be seen."""

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

EPS = 1e-5  # added to a variance before it divides
