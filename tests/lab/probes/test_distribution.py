"""The probability of slips after a forced slip, and without one."""

import numpy as np
import torch

from charrnn.data.tokenizer import CharTokenizer
from charrnn.generation.generator import TextGenerator
from charrnn.lab.probes.distribution import tail_after_slip
from charrnn.models.recurrent import CharLSTM


def test_the_tail_after_a_slip_is_what_the_model_holds_there():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = TextGenerator(CharLSTM(6, 4), CharTokenizer("\n abcd"))
    slipped, plain = tail_after_slip(generator, texts=3, length=4, seed=1, tail=0.15)
    assert slipped.shape == plain.shape == (3, 4)
    assert ((slipped > 0) & (slipped < 1)).all()
    assert not np.allclose(slipped[:, 0], plain[:, 0])  # another token was read
    again, _ = tail_after_slip(generator, texts=3, length=4, seed=1, tail=0.15)
    assert np.array_equal(slipped, again)

    with torch.no_grad():
        generator.model.head.weight.zero_()
        generator.model.head.bias.copy_(torch.tensor([0.1, 0.1, 0.2, 0.2, 0.2, 0.2]).log())
    slipped, plain = tail_after_slip(generator, texts=2, length=3, seed=1, tail=0.15)  # nothing depends on the text
    assert np.allclose(slipped, 0.2)
    assert np.allclose(plain, 0.2)
