import pytest
import torch
import torch.nn.functional as F

import charrnn
from charrnn import lab
from charrnn.models.recurrent import CharGRU, CharLSTM, CharModel, CharRNN


@pytest.fixture
def tokens():
    return torch.randint(9, (5, 13), generator=torch.Generator().manual_seed(1))


def small(kind: type[CharModel], layers: int = 1) -> CharModel:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return kind(9, hidden_size=6, num_layers=layers)


# --------------------------------------------------------------------------------------------------------- gradients


def test_state_gradients_are_those_of_the_jacobian(tokens):
    model, lags = small(CharRNN), 8
    weight = model.layers[0].weight_hh_l0.detach()
    directions = F.normalize(torch.randn(5, 6, generator=torch.Generator().manual_seed(3)))
    states, state = [], None
    for token in tokens.split(1, dim=1):
        _, state = model(token, state)
        states.append(state[0].detach())
    gradients = [directions]  # (B, H) each
    for h in states[: -lags - 1 : -1]:
        gradients.append((gradients[-1] * (1 - h**2)) @ weight)
    expected = torch.stack([gradient.norm(dim=1).log().mean().exp() for gradient in gradients])
    assert torch.allclose(lab.state_gradients(model, tokens, lags, seed=3), expected, rtol=1e-4)


@pytest.mark.parametrize("kind", [CharRNN, CharGRU, CharLSTM])
@pytest.mark.parametrize("layers", [1, 2])
def test_gradients_of_every_kind_begin_where_they_should_and_leave_the_model_alone(kind, layers, tokens):
    model = small(kind, layers)
    by_state = lab.state_gradients(model, tokens, lags=12)
    by_character = lab.character_gradients(model, tokens, lags=11)
    assert by_state.shape == (13,)
    assert by_character.shape == (12,)
    assert by_state[0].item() == pytest.approx(1)
    assert (by_state > 0).all()
    assert (by_character > 0).all()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_character_gradients_add_up_to_that_of_the_embedding():
    model = small(CharLSTM)
    tokens = torch.tensor([[0, 1, 2, 3, 4, 5]])  # each character once, so each row of the embedding is one place
    logits, _ = model(tokens[:, :-1])
    logits[0, -1].log_softmax(-1)[5].backward()
    expected = model.embedding.weight.grad[[4, 3, 2, 1, 0]].norm(dim=1)
    assert torch.allclose(lab.character_gradients(model, tokens, lags=4), expected, rtol=1e-4)


# ----------------------------------------------------------------------------------------------------------- contexts


def test_a_context_as_long_as_the_text_is_no_cut(tokens):
    model = small(CharGRU)
    losses = lab.context_losses(model, tokens, [1, 4, 12])
    logits, _ = model(tokens[:, :-1])
    expected = F.cross_entropy(logits[:, -1], tokens[:, -1], reduction="none")
    assert torch.allclose(losses[12], expected)
    shorter = lab.context_losses(model, tokens[:, -5:], [1, 4])
    assert all(torch.allclose(shorter[k], losses[k]) for k in (1, 4))


def test_a_paired_difference_knows_what_both_have_in_common():
    first = torch.tensor([1.0, 100.0, -7.0, 20.0])
    mean, error = lab.paired_difference(first + torch.tensor([1.0, 1.0, 2.0, 2.0]), first)
    assert (mean, error) == pytest.approx((1.5, (1 / 12) ** 0.5))


def test_measures_are_drawn_side_by_side():
    curves = {"LSTM": {1: 1.0, 2: 0.5, 4: 0.25}, "RNN": {1: 1.0, 2: 0.1, 4: 0.01}}
    figure = lab.plot_measures({"state: gradient": curves, "loss": curves})
    gradient, loss = figure.figure.axes
    assert (gradient.get_yscale(), loss.get_yscale()) == ("log", "linear")
    for axes in (gradient, loss):
        lstm, rnn = axes.lines
        assert rnn.get_xydata().tolist() == [[1, 1.0], [2, 0.1], [4, 0.01]]
        assert (lstm.get_linestyle(), lstm.get_marker()) != (rnn.get_linestyle(), rnn.get_marker())
    assert "state: gradient, RNN: 1 at 1 to 0.01 at 4" in figure.alt
    assert figure.png().startswith(b"\x89PNG")


# --------------------------------------------------------------------------------------------------------------- copy


class Oracle(torch.nn.Module):
    """Predict the next letter of a known text, and a wrong one elsewhere and in the first line."""

    def __init__(self, vocab_size: int, knows: bool):
        super().__init__()
        self.vocab_size, self.knows = vocab_size, knows

    def forward(self, tokens):
        following = tokens.roll(-1, dims=1)
        wrong = (following + 1) % self.vocab_size
        named = torch.cat([wrong[:, :8], (following if self.knows else wrong)[:, 8:]], dim=1)
        return F.one_hot(named, self.vocab_size).float(), None


@pytest.mark.parametrize(("knows", "share"), [(True, 1.0), (False, 0.0)])
def test_the_share_of_copied_letters(knows, share):
    corpus = charrnn.load_corpus(f"copy:delay=3,width=2,symbols=4,length={40 * 8}")
    assert lab.copied_share(Oracle(corpus.tokenizer.vocab_size, knows), corpus, delay=3, width=2) == share


def test_a_new_network_guesses():
    corpus = charrnn.load_corpus(f"copy:delay=3,width=2,symbols=4,length={400 * 8}")
    model = charrnn.create_model(corpus.tokenizer, "rnn", hidden_size=8, num_layers=1).model
    assert 0.1 < lab.copied_share(model, corpus, delay=3, width=2) < 0.4
