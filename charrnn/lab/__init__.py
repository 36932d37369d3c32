"""What the notebooks need beyond the library: figures, baselines, a live plot, widgets, and the size of the work."""

from charrnn.lab.chooser import ChooserPanel, plot_choice
from charrnn.lab.curves import plot_curves
from charrnn.lab.differences import plot_differences
from charrnn.lab.distribution import DistributionPanel, entropy, next_distribution, plot_distribution
from charrnn.lab.draws import (
    plot_draw,
    plot_following,
    plot_frontier,
    plot_kept,
    plot_measures_over,
    plot_profiles,
    tail_after_slip,
)
from charrnn.lab.figures import (
    Picture,
    next_character_probabilities,
    plot_curve,
    plot_losses,
    plot_next_character,
    plot_real_words,
)
from charrnn.lab.gates import (
    busiest_units,
    correlations,
    gate_activations,
    line_positions,
    plot_by_position,
    plot_gates,
    plot_saturation,
    plot_unit,
    read_gates,
    run_lengths,
    saturation,
)
from charrnn.lab.gates_panel import GatesPanel
from charrnn.lab.gradients import cliff_loss, gradient_norms, log_slope, plot_descents, plot_norms, recurrent_matrix
from charrnn.lab.gradients_panel import GradientsPanel, plot_radius
from charrnn.lab.ingredients import INGREDIENTS, plot_ingredients, recipes
from charrnn.lab.ingredients_panel import IngredientsPanel, plot_attempt
from charrnn.lab.learning import plot_learning
from charrnn.lab.live import LivePlot
from charrnn.lab.memory import (
    character_gradients,
    context_losses,
    copied_share,
    paired_difference,
    plot_measures,
    state_gradients,
)
from charrnn.lab.ngrams import NgramModel, ngram_ladder
from charrnn.lab.overfitting import plot_overfitting
from charrnn.lab.playground import Playground
from charrnn.lab.rates import plot_plateau, plot_schedules
from charrnn.lab.runs import learning_rate_picture, run_picture
from charrnn.lab.setting import Profile, check_machine, profile
from charrnn.lab.small_runs import SMALL, losses_of, recorded, records_of, small_trainer, train_on_windows
from charrnn.lab.speedrun import plot_speedrun
from charrnn.lab.states import (
    Components,
    character_kinds,
    plot_matrix,
    plot_reading,
    plot_states,
    principal_components,
    read_states,
    share_between,
    word_places,
)
from charrnn.lab.states_panel import StatesPanel
from charrnn.lab.surprise import (
    SurprisePanel,
    logits_along,
    plot_surprise,
    surprise_and_entropy,
    surprise_and_entropy_at,
    surprise_to_html,
    tokens_of,
)
from charrnn.lab.texts import plot_frequencies, plot_ladder, plot_streams, plot_zipf, window_table
from charrnn.lab.truncated import plot_reach, plot_truncated
from charrnn.lab.unrolled import plot_unrolled
from charrnn.lab.widgets import GenerationPanel, StreamsPanel

__all__ = [
    "INGREDIENTS",
    "SMALL",
    "ChooserPanel",
    "Components",
    "DistributionPanel",
    "GatesPanel",
    "GenerationPanel",
    "GradientsPanel",
    "IngredientsPanel",
    "LivePlot",
    "NgramModel",
    "Picture",
    "Playground",
    "Profile",
    "StatesPanel",
    "StreamsPanel",
    "SurprisePanel",
    "busiest_units",
    "character_gradients",
    "character_kinds",
    "check_machine",
    "cliff_loss",
    "context_losses",
    "copied_share",
    "correlations",
    "entropy",
    "gate_activations",
    "gradient_norms",
    "learning_rate_picture",
    "line_positions",
    "log_slope",
    "logits_along",
    "losses_of",
    "next_character_probabilities",
    "next_distribution",
    "ngram_ladder",
    "paired_difference",
    "plot_attempt",
    "plot_by_position",
    "plot_choice",
    "plot_curve",
    "plot_curves",
    "plot_descents",
    "plot_differences",
    "plot_distribution",
    "plot_draw",
    "plot_following",
    "plot_frequencies",
    "plot_frontier",
    "plot_gates",
    "plot_ingredients",
    "plot_kept",
    "plot_ladder",
    "plot_learning",
    "plot_losses",
    "plot_matrix",
    "plot_measures",
    "plot_measures_over",
    "plot_next_character",
    "plot_norms",
    "plot_overfitting",
    "plot_plateau",
    "plot_profiles",
    "plot_radius",
    "plot_reach",
    "plot_reading",
    "plot_real_words",
    "plot_saturation",
    "plot_schedules",
    "plot_speedrun",
    "plot_states",
    "plot_streams",
    "plot_surprise",
    "plot_truncated",
    "plot_unit",
    "plot_unrolled",
    "plot_zipf",
    "principal_components",
    "profile",
    "read_gates",
    "read_states",
    "recipes",
    "recorded",
    "records_of",
    "recurrent_matrix",
    "run_lengths",
    "run_picture",
    "saturation",
    "share_between",
    "small_trainer",
    "state_gradients",
    "surprise_and_entropy",
    "surprise_and_entropy_at",
    "surprise_to_html",
    "tail_after_slip",
    "tokens_of",
    "train_on_windows",
    "window_table",
    "word_places",
]
