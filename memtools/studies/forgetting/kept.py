"""What is kept of one task when so much of the other has been learnt."""

import numpy as np

from memtools.studies.claims import Values

__all__ = ["kept_at"]


def kept_at(accuracy_a: Values, accuracy_b: Values, goal: float) -> float:
    """Accuracy on task A when that on task B first reaches a goal.

    Between epochs both are taken to go along a straight line.

    Args:
        accuracy_a: Accuracy on task A before training on task B and after each epoch of it.
        accuracy_b: The same on task B.
        goal: Accuracy on task B.

    Returns:
        The accuracy on task A; NaN if the goal is never reached.

    Example:
        >>> import numpy as np
        >>> kept_at(np.array([1.0, 0.8, 0.6]), np.array([0.1, 0.5, 0.9]), 0.75)
        0.675
    """
    reached = np.flatnonzero(accuracy_b >= goal)
    if not len(reached):
        return float("nan")
    last = int(reached[0])
    if last == 0:
        return float(accuracy_a[0])
    before, after = accuracy_b[last - 1], accuracy_b[last]
    share = (goal - before) / (after - before)
    return float(accuracy_a[last - 1] + share * (accuracy_a[last] - accuracy_a[last - 1]))
