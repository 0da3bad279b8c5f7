"""The kinds of data that a network is trained on."""

from dataclasses import dataclass

__all__ = ["RANDOM_INPUTS", "RANDOM_LABELS", "REAL", "Condition"]


@dataclass(frozen=True)
class Condition:
    """One kind of data to train on.

    Attributes:
        key: Name in files.
        title: Name for people.
        labels: Share of the training labels that are random.
        inputs: Share of the training inputs that are random.
    """

    key: str
    title: str
    labels: float = 0.0
    inputs: float = 0.0


REAL = Condition("real", "real labels")
RANDOM_LABELS = Condition("random-labels-100", "all labels random", labels=1.0)
RANDOM_INPUTS = Condition("random-inputs-100", "all inputs random", inputs=1.0)
