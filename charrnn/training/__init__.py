"""Training: streams to events."""
