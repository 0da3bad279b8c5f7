"""The regularisers that are compared."""

from typing import NamedTuple

__all__ = ["ADVERSARIAL", "DROPOUT", "INPUT_NOISE", "NONE", "REGULARIZERS", "WEIGHT_DECAY"]

NONE = "none"
DROPOUT = "dropout"
INPUT_NOISE = "input-noise"
WEIGHT_DECAY = "weight-decay"
ADVERSARIAL = "dropout-adversarial"


class Regularizer(NamedTuple):
    """One regulariser.

    Attributes:
        title: Its name for people.
        strengths: The setting that holds its strengths.
        field: The field of the model that a strength goes to; ``None`` for the optimiser's.
    """

    title: str
    strengths: str
    field: str | None


REGULARIZERS = {
    DROPOUT: Regularizer("dropout", "dropouts", "dropout"),
    "input-dropout": Regularizer("input dropout", "input_dropouts", "input_dropout"),
    INPUT_NOISE: Regularizer("input noise", "input_noises", "input_noise"),
    "hidden-noise": Regularizer("hidden noise", "hidden_noises", "hidden_noise"),
    WEIGHT_DECAY: Regularizer("weight decay", "weight_decays", None),
    ADVERSARIAL: Regularizer("dropout + adversarial training", "adversarial_dropouts", "dropout"),
}
"""By key, in the order of tables and legends."""
