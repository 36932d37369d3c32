"""Text to tokens, splits, streams and batches."""
