"""Generation: a model to text."""
