"""What the notebooks need beyond the library: figures, a live plot, widgets, and the size of the work."""

from charrnn.lab.figures import (
    Picture,
    next_character_probabilities,
    plot_losses,
    plot_next_character,
    plot_real_words,
)
from charrnn.lab.live import LivePlot
from charrnn.lab.setting import Profile, check_machine, profile
from charrnn.lab.widgets import GenerationPanel

__all__ = [
    "GenerationPanel",
    "LivePlot",
    "Picture",
    "Profile",
    "check_machine",
    "next_character_probabilities",
    "plot_losses",
    "plot_next_character",
    "plot_real_words",
    "profile",
]
