"""The kinds of data that a network is trained on, side by side."""

from dataclasses import dataclass
from typing import Any

from memtools.data import Tensors, in_memory, random_inputs, random_labels

__all__ = ["CONDITIONS", "Condition"]


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

    def apply(
        self,
        train: Tensors,
        *,
        num_classes: int,
        label_noise: Any,
        input_statistics: Any,
        seed: int,
    ) -> Tensors:
        """The training set with this condition's noise in it.

        Args:
            train: The training set; it is not changed.
            num_classes: Number of classes that random labels are drawn from.
            label_noise: ``mode`` of :func:`memtools.data.random_labels`.
            input_statistics: ``statistics`` of :func:`memtools.data.random_inputs`.
            seed: Fixes the noise.

        Returns:
            The noisy set, with the mask of what was touched.
        """
        noisy: Any = train
        if self.labels:
            noisy = random_labels(
                noisy, self.labels, mode=label_noise, seed=seed, num_classes=num_classes
            )
        if self.inputs:
            noisy = random_inputs(noisy, self.inputs, statistics=input_statistics, seed=seed)
        return in_memory(noisy)


CONDITIONS = (
    Condition("real", "real labels"),
    Condition("random-labels-20", "20% random labels", labels=0.2),
    Condition("random-labels-40", "40% random labels", labels=0.4),
    Condition("random-labels-100", "all labels random", labels=1.0),
    Condition("random-inputs-100", "all inputs random", inputs=1.0),
)
