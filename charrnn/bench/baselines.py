"""The usual way: the parts of most char-rnn programs in PyTorch, written well. The measurements compare with them.

read_ids    read the whole file, `sorted(set(text))`, a list comprehension through a dict, one tensor
Windows     T tokens starting at each position of the text, for a `DataLoader` that shuffles them
PlainLSTM   an embedding, PyTorch's `nn.LSTM`, a linear head
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset


def read_ids(path: Path) -> Tensor:
    """Read a UTF-8 text file as ids `(N,)`, int64."""
    text = path.read_text(encoding="utf-8")
    ids = {character: i for i, character in enumerate(sorted(set(text)))}
    return torch.tensor([ids[character] for character in text])


class Windows(Dataset[tuple[Tensor, Tensor]]):
    """T tokens and their targets, `(T,)` each, from each position of the text `tokens`."""

    def __init__(self, tokens: Tensor, seq_length: int):
        self.tokens, self.seq_length = tokens, seq_length

    def __len__(self) -> int:
        return len(self.tokens) - self.seq_length

    def __getitem__(self, start: int) -> tuple[Tensor, Tensor]:
        end = start + self.seq_length
        return self.tokens[start:end], self.tokens[start + 1 : end + 1]


class PlainLSTM(nn.Module):
    """The network of `CharLSTM` in PyTorch's own layers; its embedding also starts as one-hot."""

    def __init__(self, vocab_size: int, hidden_size: int, num_layers: int):
        super().__init__()
        self.vocab_size = vocab_size
        self.embedding = nn.Embedding(vocab_size, vocab_size)
        self.lstm = nn.LSTM(vocab_size, hidden_size, num_layers, batch_first=True)
        self.head = nn.Linear(hidden_size, vocab_size)
        nn.init.eye_(self.embedding.weight)

    def forward(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Return the logits `(B, T, V)` for `tokens` `(B, T)`, and the state."""
        outputs, state = self.lstm(self.embedding(tokens), state)
        return self.head(outputs), state
