"""Settings of generation: checked once, before any work, with a sentence that says what is wrong."""

import inspect
import math

import numpy as np
import pytest
import torch

import charrnn
from charrnn.cli import main as cli
from charrnn.config import GenerationConfig
from charrnn.data.tokenizer import CharTokenizer
from charrnn.errors import ConfigError
from charrnn.generation.generator import TextGenerator
from charrnn.generation.logits import COLDEST, repetition_penalty
from charrnn.generation.sampling_params import BeamSearchParams, SamplingParams
from charrnn.generation.text import TextStream
from charrnn.models.recurrent import CharLSTM


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(3)
    return TextGenerator(CharLSTM(12, 16), CharTokenizer("\n abcdefghij"))


def test_every_setting_is_named_once_for_all_ways_to_generate():
    assert set(GenerationConfig.model_fields) | {"seed"} == set(SamplingParams.model_fields)
    defaults = {name: field.default or None for name, field in SamplingParams.model_fields.items()}
    for method in (TextGenerator.generate, TextGenerator.stream, TextGenerator.generate_batch, TextStream.go_on):
        signature = inspect.signature(method).parameters
        own = set(signature) - set(defaults)
        assert own <= {"self", "prompts", "progress", "precision"}
        assert set(defaults) - set(signature) <= {"prompt"}
        assert {name: signature[name].default or None for name in set(signature) - own} == {
            name: value for name, value in defaults.items() if name in signature
        }
    signature = inspect.signature(TextGenerator.beam_search).parameters
    defaults = {name: field.default for name, field in BeamSearchParams.model_fields.items()}
    assert {name: parameter.default or () for name, parameter in signature.items() if name != "self"} == {
        name: value or () for name, value in defaults.items()
    }


WRONG = [
    ({"temperature": "0.8"}, "temperature: expected a valid number, got '0.8'"),
    ({"temperature": None}, "temperature: expected a valid number, got None"),
    ({"temperature": True}, "expected temperature not to be a boolean, got true"),
    ({"temperature": np.True_}, "expected temperature not to be a boolean, got true"),
    ({"temperature": math.nan}, "temperature: expected a finite number, got nan"),
    ({"top_k": "5"}, "top_k: expected a valid integer, got '5'"),
    ({"top_k": 2.5}, "top_k: expected a valid integer, got 2.5"),
    ({"top_k": math.inf}, "top_k: expected a valid integer, got inf"),
    ({"top_p": "1"}, "top_p: expected a valid number, got '1'"),
    ({"repetition_penalty": 1e308}, r"repetition_penalty: expected a value less than or equal to 1000000, got 1e\+308"),
    ({"seed": 1.0}, "seed: expected a valid integer, got 1.0"),
    ({"seed": -1}, "seed: expected a value greater than or equal to 0, got -1"),
    ({"seed": 2**32}, "seed: expected a value less than 4294967296, got 4294967296"),
    ({"length": 1.5}, "length: expected a valid integer, got 1.5"),
    ({"length": "5"}, "length: expected a valid integer, got '5'"),
    ({"stop": ["a", ""]}, "stop: expected at least 1 character, got ''"),
    ({"stop": b"a"}, "stop: expected a string or several strings, got b'a'"),
    ({"stop": 3}, "stop: expected a string or several strings, got 3"),
    ({"stop": [3]}, "stop: expected a valid string, got 3"),
    ({"forbid": 5}, "forbid: expected a valid string, got 5"),
    ({"temprature": 1}, "unknown key 'temprature'; did you mean 'temperature'?"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG, ids=str)
def test_a_wrong_setting_is_refused_before_anything_is_written(generator, settings, message):
    for ask in (generator.generate, generator.stream, lambda **rest: generator.generate_batch(["a", "b"], **rest)):
        with pytest.raises(ConfigError, match=message) as caught:
            ask(**settings)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prompt", [b"a", None, 5])
def test_a_prompt_is_a_string(generator, prompt):
    for ask in (generator.generate, generator.stream, generator.beam_search):
        with pytest.raises(ConfigError, match=r"prompt( 0)?: expected .*str.*, got (b'a'|None|5)"):
            ask(prompt)


@pytest.mark.parametrize("prompts", ["ROMEO", b"a", 5, [], ["a", None], iter(())])
def test_a_batch_of_prompts_is_several_strings(generator, prompts):
    with pytest.raises(ConfigError, match=r"^prompts?( 1)?: expected .*, got"):
        generator.generate_batch(prompts, 3)


def test_prompts_may_come_from_any_iterable(generator):
    expected = generator.generate_batch(["a", "b"], 9, seed=1)
    assert generator.generate_batch((letter for letter in "ab"), 9, seed=1) == expected
    assert generator.generate_batch(np.array(["a", "b"]), 9, seed=1) == expected


def test_numbers_of_numpy_are_numbers(generator):
    plain = {"length": 20, "temperature": 0.5, "top_k": 5, "top_p": 0.75, "seed": 7}
    types = {"length": np.int64, "temperature": np.float32, "top_k": np.uint8, "top_p": np.float64, "seed": np.uint32}
    assert generator.generate("a", **{name: types[name](value) for name, value in plain.items()}) == generator.generate(
        "a", **plain
    )
    assert len(generator.generate_batch(["a", "b"], np.int16(5), seed=np.uint32(7))[1]) == 6


def test_a_top_k_beyond_any_machine_number_keeps_all(generator):
    assert generator.generate("a", 20, top_k=10**30, seed=1) == generator.generate("a", 20, seed=1)


def test_the_seeds_of_a_batch_do_not_wrap_around(generator):
    last = 2**32 - 1
    assert len(generator.generate("a", 5, seed=last)) == 6
    with pytest.raises(ConfigError, match="seed: expected at most 4294967294 for 2 texts, got 4294967295"):
        generator.generate_batch(["a", "b"], 5, seed=last)


@pytest.mark.parametrize("value", [5e-324, 1e-320, 1e-300, COLDEST])
@pytest.mark.parametrize("rest", [{}, {"typical_p": 1.0}])  # the compiled draw and the plain one
def test_a_tiny_temperature_writes_the_likeliest(generator, value, rest):
    expected = generator.generate("ab", 40, temperature=0)
    assert generator.generate("ab", 40, temperature=value, seed=1, **rest) == expected
    assert generator.generate("ab", 40, temperature=lambda _: value, seed=1, **rest) == expected
    assert generator.generate_batch(["a", "ab"], 40, temperature=value, seed=1, **rest)[1] == expected


def test_the_largest_penalty_overflows_nothing(generator):
    generator.generate("a", 40, repetition_penalty=1e6, temperature=1e-300)  # warnings are errors here
    penalised = repetition_penalty(1e6, [0])(np.array([-3e38, 3e38]))
    assert np.isfinite(penalised).all()


def test_the_settings_of_a_beam_search_are_checked_likewise(generator):
    for settings in ({"width": "4"}, {"length": 1.5}, {"alpha": math.inf}, {"stop": b"x"}, {"width": 2.5}):
        with pytest.raises(ConfigError, match=f"^{next(iter(settings))}: expected"):
            generator.beam_search("a", **settings)
    assert generator.beam_search("a", np.int64(3), width=np.uint8(2))[0].tokens == 3


def test_a_seed_out_of_range_ends_the_command_before_it_writes(generator, tmp_path, capsys):
    charrnn.save_model(generator, tmp_path / "model")
    out = tmp_path / "out.txt"
    assert cli.main(["sample", str(tmp_path / "model"), "--seed", str(2**32), "--output", str(out)]) == 2
    assert "seed: expected a value less than 4294967296" in capsys.readouterr().err
    assert not out.exists()
