"""Rules that choose an epoch from curves, none of which is about test examples.

Each looks at the whole training and then says which epoch's network to keep. None has a parameter
but the smoothing, which is the same for all rules without labels. ``csr_minimum`` and the form of
``gini_turn`` were settled when the curves of one training for each share of noise, of seed 0 on the
digits, had been seen, but no regret; the other rules without labels were given before. The lowest
Gini coefficient is no rule: there it was that of the first epochs.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["LABEL_FREE", "RULES", "Rule", "smoothed"]

Curve = NDArray[np.float64]
Curves = Mapping[str, Curve]


class Rule(NamedTuple):
    """A way to choose an epoch.

    Attributes:
        title: What it is called.
        curves: Names of the curves that it sees.
        choose: The place of the epoch, from these curves; smoothed if the rule is label-free.
        kind: What it stands for: ``"label-free"`` rules are judged, ``"labels"`` and ``"control"``
            are what they are compared with.
    """

    title: str
    curves: tuple[str, ...]
    choose: Callable[..., int]
    kind: str

    def __call__(self, curves: Curves, smoothing: int) -> int:
        """Place of the epoch that the rule chooses, among all epochs.

        Args:
            curves: Curves of one training by name, each of shape ``(epochs,)``.
            smoothing: Epochs that are averaged for a rule that needs no labels.
        """
        window = smoothing if self.kind == "label-free" else 1
        return self.choose(*(smoothed(curves[name], window) for name in self.curves))


def smoothed(curve: Curve, window: int) -> Curve:
    """Centred mean over a window, as much of it as there is at the ends."""
    reach = window // 2
    return np.array([curve[max(i - reach, 0) : i + reach + 1].mean() for i in range(len(curve))])


def _highest(curve: Curve) -> int:
    """The first of the highest."""
    return int(curve.argmax())


def _lowest(curve: Curve) -> int:
    """The first of the lowest."""
    return int(curve.argmin())


def _before_largest_rise(curve: Curve) -> int:
    """The epoch before the largest rise from one epoch to the next."""
    return int(np.diff(curve).argmax())


def _first_turn(curve: Curve) -> int:
    """The first epoch after which the curve does not go on as it began; else the last."""
    steps = np.diff(curve)
    against = np.flatnonzero(steps * np.sign(steps[0]) <= 0)
    return int(against[0]) if len(against) else len(curve) - 1


def _elbow(curve: Curve) -> int:
    """Where the curve is farthest below the straight line from its first point to its last."""
    line = np.linspace(curve[0], curve[-1], len(curve))
    return int((line - curve).argmax())


def _last(curve: Curve) -> int:
    return len(curve) - 1


def _rule(title: str, curve: str, choose: Callable[[Any], int], kind: str = "label-free") -> Rule:
    return Rule(title, (curve,), choose, kind)


RULES = {
    "last": _rule("last epoch", "loss", _last, "control"),
    "validation": _rule("validation accuracy", "validation_accuracy", _highest, "labels"),
    "few": _rule("validation accuracy, few labels", "few_accuracy", _highest, "labels"),
    "csr_jump": _rule(
        "critical share held out: before its largest rise", "csr_validation", _before_largest_rise
    ),
    "csr_minimum": _rule("critical share held out: lowest", "csr_validation", _lowest),
    "csr_train_maximum": _rule("critical share in training: highest", "csr_train", _highest),
    "gini_turn": _rule("Gini of the moment: first turn", "gini_instantaneous", _first_turn),
    "gini_maximum": _rule("Gini of the moment: highest", "gini_instantaneous", _highest),
    "mean_gini_maximum": _rule("Gini of the means: highest", "gini_of_running_mean", _highest),
    "loss_elbow": _rule("training loss: elbow", "loss", _elbow, "control"),
}
"""All rules by key."""

LABEL_FREE = tuple(key for key, rule in RULES.items() if rule.kind == "label-free")
"""Those that are judged."""
