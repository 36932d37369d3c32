"""Build a model from its config."""

import torch
from torch import nn

from charrnn.config import ModelConfig
from charrnn.models.recurrent import CharGRU, CharLSTM, CharModel, CharRNN

MODELS: dict[str, type[CharModel]] = {model.kind: model for model in (CharLSTM, CharGRU, CharRNN)}


def build_model(config: ModelConfig, vocab_size: int, seed: int = 0) -> CharModel:
    """Build the model that `config` describes, with weights drawn from `seed`; the global random state is unchanged."""
    options = config.model_dump(exclude={"type"})
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return MODELS[config.type](vocab_size, **options)


def with_vocabulary(model: CharModel, vocab_size: int) -> CharModel:
    """Copy `model` for a vocabulary that has grown to `vocab_size` at its end; return it as it is if it has not.

    A new token starts as the mean of the old ones, in embedding and head, so that it changes their probabilities
    little (Hewitt, 2021, "Initializing New Word Embeddings for Pretrained Language Models").
    """
    old = model.vocab_size
    if vocab_size == old:
        return model
    config = model.config.model_copy(update={"embedding_dim": model.embedding.embedding_dim})
    grown = build_model(config, vocab_size)
    weights = {}
    for name, value in model.state_dict().items():
        if name.startswith(("embedding.", "head.")):  # a row, or a bias, for each token
            new = value.mean(dim=0, keepdim=True).expand(vocab_size - old, *value.shape[1:])
            value = torch.cat([value, new])
        weights[name] = value
    grown.load_state_dict(weights)
    return grown


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
