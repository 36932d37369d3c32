"""The same numbers, faster. Every function has a readable twin, most of them in `charrnn.models.cells`."""
