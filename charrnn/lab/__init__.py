"""What the notebooks need beyond the library: figures, baselines, a live plot, widgets, and the size of the work."""

from charrnn.lab.figures import (
    Picture,
    next_character_probabilities,
    plot_curve,
    plot_losses,
    plot_next_character,
    plot_real_words,
)
from charrnn.lab.live import LivePlot
from charrnn.lab.ngrams import NgramModel, ngram_ladder
from charrnn.lab.setting import Profile, check_machine, profile
from charrnn.lab.texts import plot_frequencies, plot_ladder, plot_streams, plot_zipf, window_table
from charrnn.lab.widgets import GenerationPanel, StreamsPanel

__all__ = [
    "GenerationPanel",
    "LivePlot",
    "NgramModel",
    "Picture",
    "Profile",
    "StreamsPanel",
    "check_machine",
    "next_character_probabilities",
    "ngram_ladder",
    "plot_curve",
    "plot_frequencies",
    "plot_ladder",
    "plot_losses",
    "plot_next_character",
    "plot_real_words",
    "plot_streams",
    "plot_zipf",
    "profile",
    "window_table",
]
