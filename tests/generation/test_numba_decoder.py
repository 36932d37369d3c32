"""The fused path writes what the plain one writes, for every kind of model and every setting."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import charrnn
from charrnn.config import ModelConfig
from charrnn.data.tokenizer import CharTokenizer
from charrnn.generation.decoder import ModelDecoder
from charrnn.generation.generator import TextGenerator
from charrnn.generation.logits import cyclic, sample
from charrnn.generation.pipeline import LogitsPipeline
from charrnn.generation.sampling_params import SamplingParams
from charrnn.models.build import MODELS, build_model

pytest.importorskip("numba", reason="the fused path needs numba")

from charrnn.generation.batch_decoder import BatchDecoder
from charrnn.generation.numba_decoder import NumbaDecoder, pack_weights
from charrnn.kernels.numba_math import copy

TOKENIZER = CharTokenizer("\n abcdefghij")
KINDS = [
    {"type": "rnn"},
    {"type": "gru"},
    {"type": "lstm"},
    {"type": "lstm", "layer_norm": True},
    {"type": "lstm", "num_layers": 3, "residual": True},
    {"type": "gru", "num_layers": 1, "tie_weights": True},
    {"type": "lstm", "num_layers": 1, "embedding_dim": 5, "hidden_size": 9},
]
SETTINGS = [
    {},
    {"temperature": 0},
    {"temperature": 0.3, "top_k": 5},
    {"temperature": 1.7, "top_p": 0.8},
    {"top_k": 8, "top_p": 0.7, "min_p": 0.05},
    {"min_p": 0.2},
    {"top_k": 1},
    {"top_k": 99, "top_p": 1.0, "min_p": 0.0},
    {"temperature": cyclic(0.2, 1.5, 20)},
    {"forbid": "abc", "top_p": 0.9},
    {"allow": "abc \n"},
    {"typical_p": 0.6},
    {"repetition_penalty": 1.5, "temperature": 0.5},
]


def ids(options):
    return ",".join(f"{name}={getattr(value, '__qualname__', value)}" for name, value in options.items()) or "plain"


def made(options):
    config = ModelConfig(**{"hidden_size": 16, "num_layers": 2, "init": "orthogonal", **options})
    model = build_model(config, TOKENIZER.vocab_size, seed=3).eval()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and gains that are 0 or 1 would hide their being left out
            parameter.add_(torch.randn(parameter.shape, generator=random) * 0.3)
    return model


def packed(model):
    return pack_weights({name: weight.numpy() for name, weight in model.state_dict().items()}, model.config)


@pytest.fixture(params=KINDS, ids=ids, scope="module")
def model(request):
    return made(request.param)


@pytest.fixture
def plainly(monkeypatch):
    """Write with the plain path."""

    def write(generator, *arguments, **settings):
        with monkeypatch.context() as patch:
            patch.setattr("charrnn.generation.generator.numba_available", lambda: False)
            return generator.generate_batch(*arguments, **settings)

    return write


@pytest.mark.parametrize("settings", SETTINGS, ids=ids)
def test_one_text_in_every_setting(model, settings, plainly):
    generator = TextGenerator(model, TOKENIZER)
    for seed, prompt in enumerate(["", "abcj"], 1):
        expected = plainly(generator, [prompt], 50, seed=seed, **settings)[0]
        assert generator.generate(prompt, 50, seed=seed, **settings) == expected
        assert "".join(generator.stream(prompt, 50, seed=seed, **settings)) == expected
        assert generator.generate_batch(["b", prompt], 50, seed=seed - 1, **settings)[1] == expected


@pytest.mark.parametrize("decoder", [NumbaDecoder, BatchDecoder])
def test_logits_are_those_of_the_model(model, decoder):
    prompts = np.random.default_rng(0).integers(0, TOKENIZER.vocab_size, (1 if decoder is NumbaDecoder else 4, 30))
    ours, plain = decoder(packed(model)), ModelDecoder(model)
    np.testing.assert_allclose(ours.prefill(prompts), plain.prefill(prompts), atol=2e-5)
    for tokens in prompts.T[:10]:
        np.testing.assert_allclose(ours.decode(tokens), plain.decode(tokens), atol=2e-5)


@pytest.mark.parametrize("decoder", [NumbaDecoder, BatchDecoder])
@pytest.mark.parametrize("token", [-1, 12, 99])
def test_a_token_out_of_range_raises(model, decoder, token):
    ours = decoder(packed(model))
    with pytest.raises(IndexError, match="expected tokens from 0 to 11, got"):
        ours.prefill([np.array([1, token])])
    ours.prefill([np.array([1])])
    with pytest.raises(IndexError, match="expected tokens from 0 to 11, got"):
        ours.decode(np.array([token]))


def test_some_of_a_batch_go_on(model):
    prompts = np.random.default_rng(0).integers(0, TOKENIZER.vocab_size, (4, 10))
    ours, plain = BatchDecoder(packed(model)), ModelDecoder(model)
    for decoder in (ours, plain):
        decoder.prefill(prompts)
        decoder.reorder(np.array([2, 0, 2]))
    tokens = np.array([1, 2, 3])
    np.testing.assert_allclose(ours.decode(tokens), plain.decode(tokens), atol=2e-5)


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("size", [31, 47])
def test_texts_that_are_dealt_to_threads_are_those_alone(model, size, three_threads):
    generator = TextGenerator(model, TOKENIZER)
    prompts = ["abcdefghij"[i % 10] for i in range(size)]
    texts = generator.generate_batch(prompts, 60, temperature=0.8, seed=5)
    assert texts == [generator.generate(prompt, 60, temperature=0.8, seed=5 + i) for i, prompt in enumerate(prompts)]
    assert torch.get_num_threads() == 3
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 3


def test_many_texts_go_on_where_some_end(model, three_threads):
    prompts = np.random.default_rng(0).integers(0, TOKENIZER.vocab_size, (50, 3))
    ours, plain = BatchDecoder(packed(model)), ModelDecoder(model)
    for decoder in (ours, plain):
        decoder.prefill(prompts)
    for rows in (np.arange(50) % 37, np.array([7]), np.zeros(48, int)):
        for decoder in (ours, plain):
            decoder.reorder(rows)
        tokens = np.arange(len(rows)) % TOKENIZER.vocab_size
        for _ in range(2):
            np.testing.assert_allclose(ours.decode(tokens), plain.decode(tokens), atol=2e-5)
    assert len(ours._shards) == 3  # again, after all were one
    assert ours._pool.submit(torch.get_num_threads).result() == 1  # a core is not shared
    ours.prefill(prompts[:31])
    assert len(ours._shards) == 1  # too few to be dealt out


def test_a_prompt_longer_than_what_is_read_at_once(model, monkeypatch):
    prompt = np.random.default_rng(0).integers(0, TOKENIZER.vocab_size, 50)
    monkeypatch.setattr("charrnn.generation.numba_decoder.CHUNK", 7)
    logits = NumbaDecoder(packed(model)).prefill([prompt])
    np.testing.assert_allclose(logits, ModelDecoder(model).prefill([prompt]), atol=2e-5)


@pytest.mark.parametrize("prompts", [["a"], ["a", "b"]])
def test_texts_are_drawn_in_compiled_blocks_wherever_that_is_possible(prompts, monkeypatch):
    """One by one they are the same texts, but many times slower."""
    generator, steps = TextGenerator(made({"type": "lstm"}), TOKENIZER), []
    for decoder in (NumbaDecoder, BatchDecoder):
        monkeypatch.setattr(
            decoder, "decode", lambda self, tokens, plain=decoder.decode: steps.append(plain(self, tokens))
        )
    generator.generate_batch(prompts, 50, top_p=0.9)
    assert len(steps) <= 3  # compiling, and reading the prompts


EQUAL, TIES, TAIL = np.ones(12), np.array([2, 6, 3, 2, 6, 2, 2, 3, 2, 6, 1, 0]), np.array([1] * 11 + [1e-14])


@pytest.mark.parametrize("number", [0.0, 0.4, 0.7, 1 - 2**-53])
@pytest.mark.parametrize(
    ("weights", "settings"),
    [
        (TIES, {"temperature": 0}),
        (TIES, {"top_k": 2}),
        (TIES, {"top_k": 8}),
        (TIES, {"min_p": 1.0}),
        (TIES, {"forbid": "\n "}),
        (EQUAL, {"top_p": 3 / 12}),
        (EQUAL, {"top_p": np.nextafter(3 / 12, 1)}),
        (TAIL, {"min_p": 1e-20, "top_p": 1.0}),
    ],
)
def test_ties_and_borders_are_those_of_the_processors(weights, settings, number):
    """Tokens as likely as one another, a share that they fill exactly, the first and the last uniform number."""
    model = made({"type": "rnn"})
    with torch.no_grad(), np.errstate(divide="ignore"):
        model.head.weight.zero_()
        model.head.bias.copy_(torch.from_numpy(np.log(weights)))
    pipeline = LogitsPipeline(TOKENIZER, SamplingParams(**settings))
    expected = sample(pipeline(model.head.bias.detach().numpy()[None], 0), [number])
    for decoder in (NumbaDecoder(packed(model)), BatchDecoder(packed(model))):
        decoder.prefill([np.array([1])])
        assert decoder.decode_n(np.array([[number]]), pipeline, 0)[0] == expected


def test_what_trains_on_is_what_writes_next(model):
    generator = TextGenerator(model, TOKENIZER)
    before = generator.generate(length=50, seed=1)
    with torch.no_grad():
        model.head.bias[3] += 100
    try:
        assert generator.generate(length=50, seed=1) == TOKENIZER.decode([3]) * 50 != before
    finally:
        with torch.no_grad():
            model.head.bias[3] -= 100


def add_in_place(model):
    with torch.no_grad():
        model.head.bias[3] += 100


def add_to_data(model):  # which PyTorch's version counters do not see
    model.head.bias.data[3] += 100


def add_through_numpy(model):
    model.head.bias.detach().numpy()[3] += 100


def replace(model):
    bias = model.head.bias.detach().clone()
    bias[3] += 100
    model.head.bias = torch.nn.Parameter(bias)


def load(model):
    model.load_state_dict(model.state_dict() | {"head.bias": model.head.bias.detach() + 100 * torch.eye(12)[3]})


def train(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e4)
    logits, _ = model(torch.full((1, 9), 3))
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.full((9,), 3)).backward()
    optimizer.step()


@pytest.mark.parametrize("change", [add_in_place, add_to_data, add_through_numpy, replace, load, train])
def test_weights_are_packed_once_until_they_change(change, monkeypatch):
    packed = []
    monkeypatch.setattr(
        "charrnn.generation.numba_decoder.pack_weights",
        lambda *parts: packed.append(pack_weights(*parts)) or packed[-1],
    )
    generator = TextGenerator(made({"type": "lstm"}), TOKENIZER)
    for _ in range(3):
        generator.generate(length=5, seed=1)
        generator.generate_batch(["a", "b"], 5, seed=1)
        generator.next_logits("a")
    assert len(packed) == 1
    change(generator.model)
    fresh = TextGenerator(generator.model, TOKENIZER)
    np.testing.assert_array_equal(generator.next_logits("a"), fresh.next_logits("a"))
    assert generator.generate(length=5, temperature=0) == TOKENIZER.decode([3]) * 5
    assert len(packed) == 3  # once for each generator


def test_a_loaded_model_is_packed_once_before_and_after_it_is_made(tmp_path, model, monkeypatch):
    packed = []
    monkeypatch.setattr(
        "charrnn.generation.numba_decoder.pack_weights",
        lambda *parts: packed.append(pack_weights(*parts)) or packed[-1],
    )
    charrnn.save_model(TextGenerator(model, TOKENIZER), tmp_path / "m")
    loaded = charrnn.load_model(tmp_path / "m")
    before = loaded.generate(length=60, seed=2)
    assert loaded.model is loaded.model
    assert loaded.generate(length=60, seed=2) == before
    assert len(packed) == 1


def test_a_loaded_model_that_is_changed_writes_by_its_new_weights(tmp_path, model):
    charrnn.save_model(TextGenerator(model, TOKENIZER), tmp_path / "m")
    loaded = charrnn.load_model(tmp_path / "m")
    assert loaded.generate(length=60, seed=2) == TextGenerator(model, TOKENIZER).generate(length=60, seed=2)
    with torch.no_grad():
        loaded.model.head.bias[3] += 100
    assert loaded.generate(length=5, seed=2) == TOKENIZER.decode([3]) * 5


@pytest.mark.parametrize("prompts", [["a"], ["a", "b"], ["a"] * 40])
@pytest.mark.parametrize(("value", "message"), [(math.nan, "got NaN"), (math.inf, "got infinity")])
def test_damaged_weights_raise(prompts, value, message):
    model = made({"type": "lstm"})
    with torch.no_grad():
        model.head.bias[5] = value
    with pytest.raises(ValueError, match=message):
        TextGenerator(model, TOKENIZER).generate_batch(prompts, 3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["layers.0.weight_hh_l0", "layers.1.weight_ih_l0", "embedding.weight"])
def test_nan_of_any_bits_is_found(name, precision):
    model = made({"type": "lstm"})
    bits = model.state_dict()[name].view(torch.int32)
    bits[:] = -1  # as in a file that is all ones: a NaN that rounding could carry over into a number
    with pytest.raises(ValueError, match="got NaN"):
        TextGenerator(model, TOKENIZER).generate_batch(["a", "b"], 3, precision=precision)


def test_bf16_is_rounded_as_pytorch_does():
    random = np.random.default_rng(1).integers(0, 2**32, 10_000, dtype=np.uint32)
    ties = np.array([0x3F808000, 0x3F818000, 0x3F80FFFF, 0x7F7FFFFF, 0x80000000, 0x7F800000, 0xFF800000], np.uint32)
    numbers = np.concatenate([random, ties]).view(np.float32)
    bits, again = np.empty(len(numbers), np.uint16), np.empty(len(numbers), np.float32)
    copied = pytest.importorskip("numba").njit(lambda source, target: copy(source, target))
    copied(numbers, bits)
    copied(bits, again)
    np.testing.assert_array_equal(again, torch.from_numpy(numbers).bfloat16().float().numpy())


def test_a_course_of_temperatures_out_of_range_raises():
    with pytest.raises(ValueError, match="temperature: expected a value greater than or equal to 0, got -1"):
        TextGenerator(made({"type": "gru"}), TOKENIZER).generate(length=9, temperature=lambda step: 2 - step)


def test_a_batch_in_half_precision_says_much_the_same(model):
    whole, half = BatchDecoder(packed(model)), BatchDecoder(packed(model), "bf16")
    prompts = [np.array([1]), np.array([2])]
    np.testing.assert_array_equal(whole.prefill(prompts), half.prefill(prompts))
    for tokens in np.random.default_rng(0).integers(0, TOKENIZER.vocab_size, (5, 2)):
        np.testing.assert_allclose(half.decode(tokens), whole.decode(tokens), atol=0.25)
    texts = TextGenerator(model, TOKENIZER).generate_batch(["a", "b"], 40, seed=1, precision="bf16")
    assert [len(text) for text in texts] == [41, 41]
    with pytest.raises(ValueError, match="precision: expected fp32 or bf16, got 'fp8'"):
        TextGenerator(model, TOKENIZER).generate_batch(["a"], precision="fp8")


@pytest.mark.parametrize("vocab_size", [5, 2000])
@pytest.mark.parametrize("options", KINDS, ids=ids)
def test_the_shapes_are_those_of_the_model(options, vocab_size):
    config = ModelConfig(**{"hidden_size": 16, "num_layers": 2, **options})
    weights = build_model(config, vocab_size).state_dict()
    assert {name: tuple(weight.shape) for name, weight in weights.items()} == config.shapes(vocab_size)


def test_the_plain_path_computes_in_the_precision_that_is_asked_for():
    generator = TextGenerator(made({"type": "lstm"}), TOKENIZER)
    generator.model.register_forward_hook(lambda *_: None)
    whole, half = (generator._decoder(1, precision).prefill([np.array([1, 2])]) for precision in ("fp32", "bf16"))
    assert 0 < np.abs(whole - half).max() < 0.25


def test_other_models_take_the_plain_path():
    for change in (torch.nn.Module.double, torch.nn.Module.half):
        generator = TextGenerator(change(made({"type": "lstm"})), TOKENIZER)
        assert isinstance(generator._decoder(1), ModelDecoder)
    assert isinstance(TextGenerator(made({"type": "lstm"}), TOKENIZER)._decoder(1), NumbaDecoder)
    assert set(MODELS) == {options["type"] for options in KINDS}


def test_a_model_that_was_changed_takes_the_plain_path():
    class Louder(charrnn.CharLSTM):
        def forward(self, tokens, state=None):
            logits, state = super().forward(tokens, state)
            return logits * 2, state

    assert isinstance(TextGenerator(Louder(TOKENIZER.vocab_size, 8), TOKENIZER)._decoder(1), ModelDecoder)
    generator = TextGenerator(made({"type": "lstm"}), TOKENIZER)
    head = generator.model.head
    hook = head.register_forward_hook(lambda module, inputs, logits: logits * 0)
    assert np.all(generator.next_logits("a") == 0)
    hook.remove()
    hook = head.register_forward_pre_hook(lambda module, inputs: inputs[0] * 0)
    np.testing.assert_array_equal(generator.next_logits("a"), head.bias.detach())
    hook.remove()
    assert isinstance(generator._decoder(2), BatchDecoder)
    torch.nn.utils.parametrizations.weight_norm(generator.model.head)
    assert len(generator.generate("a", 5, seed=1)) == 6


@pytest.mark.parametrize("settings", [{"top_p": 0.9}, {"top_k": 40, "min_p": 0.01}, {"temperature": 0.7}])
def test_a_large_vocabulary(settings, plainly):
    tokenizer = CharTokenizer("".join(map(chr, range(0x4E00, 0x4E00 + 3000))))
    generator = TextGenerator(build_model(ModelConfig(hidden_size=8, num_layers=1), 3000, seed=1), tokenizer)
    prompt = tokenizer.decode([5])
    expected = plainly(generator, [prompt], 30, seed=3, **settings)[0]
    assert generator.generate(prompt, 30, seed=3, **settings) == expected
    assert generator.generate_batch([prompt, prompt], 30, seed=3, **settings)[0] == expected
