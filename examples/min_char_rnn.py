"""A character-level recurrent language model in one file: data, model, training, sampling.

    python examples/min_char_rnn.py FILE --cell lstm --steps 2000

The network reads a text character by character, keeps what it has read in its state, and predicts what comes next.
After Andrej Karpathy's min-char-rnn (2015), with the recurrent layers of PyTorch.

Letters used below: B streams read side by side, T characters in a window, V different characters, H hidden units.
"""

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

State = Tensor | tuple[Tensor, Tensor] | None  # h (layers, B, H), for an LSTM (h, c); None is all zeros


# ------------------------------------------------------------------------------------------------------------- data
#
#   text "abcdefghijklmnopqrs"  ->  stream 0: "abcdefghi"     window 0: "abcde", window 1: "fghi"
#                                   stream 1: "jklmnopqr"               "jklmn"            "opqr"
#
# A stream is a contiguous piece of the text, so the state after one of its windows is the right start for the next.
def windows(tokens: Tensor, batch_size: int, seq_length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch: inputs and targets `(B, T)`; each target is the character that follows its input."""
    stream_length = (len(tokens) - 1) // batch_size
    used = stream_length * batch_size
    inputs = tokens[:used].view(batch_size, stream_length)
    targets = tokens[1 : used + 1].view(batch_size, stream_length)
    for start in range(0, stream_length, seq_length):
        yield inputs[:, start : start + seq_length], targets[:, start : start + seq_length]


# ------------------------------------------------------------------------------------------------------------ model


class CharRNN(nn.Module):
    """Characters -> vectors -> recurrent layers -> a score for each possible next character."""

    def __init__(self, vocab_size: int, hidden_size: int = 128, num_layers: int = 1, cell: str = "lstm"):
        super().__init__()
        layer = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[cell]
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.layers = layer(hidden_size, hidden_size, num_layers, batch_first=True)
        self.head = nn.Linear(hidden_size, vocab_size)

    def forward(self, tokens: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Read `tokens` `(B, T)` from `state`; return logits `(B, T, V)` and the new state."""
        x, state = self.layers(self.embedding(tokens), state)  # (B, T, H)
        return self.head(x), state  # (B, T, V)


# --------------------------------------------------------------------------------------------------------- training


def detached(state: State) -> State:
    """The same numbers without their history: gradients stop at the border of a window."""
    return tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()


def train(
    model: CharRNN, tokens: Tensor, batch_size: int = 32, seq_length: int = 64, rate: float = 2e-3, clip: float = 5.0
) -> Iterator[float]:
    """Truncated backpropagation through time: one update for each window, as long as the caller asks for its loss."""
    assert len(tokens) > batch_size, f"expected a text longer than {batch_size} characters, got {len(tokens)}"
    optimizer = torch.optim.Adam(model.parameters(), rate)
    while True:
        state = None  # an epoch starts at the beginning of the streams
        for inputs, targets in windows(tokens, batch_size, seq_length):
            logits, state = model(inputs, state)
            state = detached(state)  # the state is carried on, the gradient is not
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())  # nats per character
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), clip)  # recurrent gradients can explode
            optimizer.step()
            yield loss.item()


# --------------------------------------------------------------------------------------------------------- sampling


@torch.no_grad()
def sample(model: CharRNN, prompt: Tensor, length: int, temperature: float = 1.0) -> list[int]:
    """Continue `prompt` `(T,)` by `length` tokens; a low temperature is cautious, 0 takes the likeliest each time."""
    state, inputs, tokens = None, prompt, []
    for _ in range(length):
        logits, state = model(inputs[None], state)  # the whole prompt first, then one token at a time
        logits = logits[0, -1]  # (V,)
        inputs = torch.multinomial(F.softmax(logits / temperature, -1), 1) if temperature else logits.argmax()[None]
        tokens.append(inputs.item())
    return tokens


def main() -> None:
    """Train on a file; show the loss and a sample as training goes on."""
    parser = argparse.ArgumentParser(description="Train a character-level recurrent language model.")
    parser.add_argument("file", type=Path, help="a text in UTF-8, at least a few hundred kilobytes for good results")
    parser.add_argument("--cell", choices=["rnn", "gru", "lstm"], default="lstm", help="kind of recurrent layer")
    parser.add_argument("--steps", type=int, default=2000, help="number of updates")
    parser.add_argument("--temperature", type=float, default=0.8, help="randomness of the samples")
    options = parser.parse_args()
    text = options.file.read_text(encoding="utf-8")
    characters = "".join(sorted(set(text)))
    tokens = torch.tensor([characters.index(character) for character in text])
    torch.manual_seed(1337)
    model = CharRNN(len(characters), cell=options.cell)
    for step, loss in enumerate(islice(train(model, tokens), options.steps), start=1):
        if step % 100 == 0 or step == options.steps:
            written = sample(model, tokens[:1], 200, options.temperature)
            print(f"--- step {step}, loss {loss:.3f}\n{''.join(characters[i] for i in written)}\n", flush=True)


if __name__ == "__main__":
    main()
