"""Models: `(tokens, state)` to `(logits, state)`."""
