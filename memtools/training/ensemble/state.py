"""How far an ensemble is, in memory and in its checkpoint."""

import os
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict
from typing import Any

from torch import Tensor

from memtools.training.checkpoint import load_checkpoint, save_checkpoint
from memtools.training.ensemble.engines import Group
from memtools.training.ensemble.flat import Slots
from memtools.training.ensemble.member import Member, Settings
from memtools.training.ensemble.stack import Stack
from memtools.training.run import EpochResult

__all__ = ["State"]

SHARE = 0.05
"""Of the time, for writing checkpoints."""


class State:
    """How far the members are.

    Attributes:
        results: Results of each member.
        left: Which members have reached their goal.
        slots: States of the optimisers as of the last :meth:`collect`.
    """

    def __init__(
        self,
        members: Sequence[Member],
        settings: Settings,
        path: str | os.PathLike[str] | None,
    ) -> None:
        self.results: list[list[EpochResult]] = [[] for _ in members]
        self.left = [False] * len(members)
        self.slots: list[Slots | None] = [None] * len(members)
        self._members, self._settings, self._path = members, settings, path
        self._due = 0.0

    def rows(self, group: Group, stack: Stack) -> dict[int, int]:
        """Of the members of a stack that have not left: their rows in it, and numbers."""
        numbers = [group.numbers[place] for place in stack.places]
        return {row: number for row, number in enumerate(numbers) if not self.left[number]}

    def collect(self, group: Group) -> None:
        """Take the weights and the states of the optimisers out of the stacks of a group."""
        for stack in group.stacks:
            rows = self.rows(group, stack)
            stack.write_back(list(rows))
            for row, number in rows.items():
                self.slots[number] = stack.slots(row)

    def save(self, groups: Sequence[Group], epoch: int) -> None:
        """Write the checkpoint, unless that would take too much of the time."""
        is_over = epoch == self._settings.epochs or not any(group.stacks for group in groups)
        if self._path is None or (time.monotonic() < self._due and not is_over):
            return
        start = time.monotonic()
        for group in groups:
            self.collect(group)
        save_checkpoint(
            self._path,
            {
                "ensemble": self._described(),
                "epoch": epoch,
                "groups": [
                    {
                        "numbers": group.numbers,
                        "engine": group.engine,
                        "threads": group.threads,
                        "stacks": [stack.places for stack in group.stacks],
                        "wasted": group.wasted,
                    }
                    for group in groups
                ],
                "weights": [member.model.state_dict() for member in self._members],
                "slots": self.slots,
                "left": self.left,
                "results": [[asdict(result) for result in own] for own in self.results],
            },
        )
        end = time.monotonic()
        self._due = end + (end - start) / SHARE

    def resume(self, groups: Sequence[Group]) -> int:
        """Go on from the checkpoint, if there is one; the number of epochs that are done."""
        state = None if self._path is None else load_checkpoint(self._path)
        if state is None:
            return 0
        if not isinstance(state, dict) or not isinstance(state.get("ensemble"), dict):
            raise ValueError(
                f"checkpoint {self._path} holds something else than the state of an ensemble; "
                "name another file"
            )
        now = self._described()
        for name, before in state["ensemble"].items():
            if before != now.get(name):
                raise self._refusal(name, before, now.get(name))
        try:
            self._check(state, groups)
        except (AttributeError, LookupError, TypeError) as error:
            raise self._damaged(error) from error
        weights = [deepcopy(member.model.state_dict()) for member in self._members]
        self._load_weights(state["weights"])
        self.slots, self.left = state["slots"], state["left"]
        try:
            for group, saved in zip(groups, state["groups"], strict=True):
                group.engine, group.threads = saved["engine"], saved["threads"]
                # Those who have left included: what is computed for the others stays the same.
                group.build(saved["stacks"], [self.slots[number] for number in group.numbers])
                group.wasted = saved["wasted"]
        except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError) as error:
            for member, own in zip(self._members, weights, strict=True):
                member.model.load_state_dict(own)
            raise self._damaged(error) from error
        self.results = [
            [
                result
                for values in own
                if self._settings.is_evaluated((result := EpochResult.of(values)).epoch)
            ]
            for own in state["results"]
        ]
        return state["epoch"]

    def _check(self, state: dict[str, Any], groups: Sequence[Group]) -> None:
        """Refuse what another run has written, or somebody else."""
        if [g["numbers"] for g in state["groups"]] != [g.numbers for g in groups]:
            raise ValueError(
                f"checkpoint {self._path} was made with other models; "
                "go on with the same, remove it to start anew, or name another file"
            )
        for name in ("weights", "slots", "left", "results"):
            if not isinstance(state[name], list) or len(state[name]) != len(self._members):
                raise TypeError(f"{name} must be a list of one entry for each member")
        if not all(isinstance(v, Tensor) for own in state["weights"] for v in own.values()):
            raise TypeError("weights must hold tensors by name")
        if not all(isinstance(left, bool) for left in state["left"]):
            raise TypeError("left must hold yes or no for each member")
        if not isinstance(state["epoch"], int):
            raise TypeError(f"epoch must be a number, got {state['epoch']!r}")
        for own in state["results"]:
            for values in own:
                EpochResult.of(values)

    def _damaged(self, error: Exception) -> ValueError:
        return ValueError(
            f"checkpoint {self._path} is damaged ({type(error).__name__}: {error}); remove it to "
            "start anew"
        )

    def _load_weights(self, weights: Sequence[dict[str, Tensor]]) -> None:
        """Give the models their weights, or leave them all as they are."""
        for number, (member, saved) in enumerate(zip(self._members, weights, strict=True)):
            own = {name: value.shape for name, value in member.model.state_dict().items()}
            if own != {name: value.shape for name, value in saved.items()}:
                raise ValueError(
                    f"checkpoint {self._path} does not fit the model of members[{number}], whose "
                    "weights have other names or shapes; go on with the same, remove it to start "
                    "anew, or name another file"
                )
        for member, saved in zip(self._members, weights, strict=True):
            member.model.load_state_dict(saved)

    def _described(self) -> dict[str, object]:
        """What a checkpoint must agree with, for the resumed run to be the same run."""
        members = self._members
        return {
            "number of members": len(members),
            "seed": [int(m.seed) for m in members],
            "learning_rate": [float(m.learning_rate) for m in members],
            "weight_decay": [float(m.weight_decay) for m in members],
            "training examples": [len(m.train) for m in members],
            **self._settings.described(),
        }

    def _refusal(self, name: str, before: object, now: object) -> ValueError:
        where = ""
        if isinstance(before, list) and isinstance(now, list):
            number = next(i for i, (a, b) in enumerate(zip(before, now, strict=True)) if a != b)
            where, before, now = f" of members[{number}]", before[number], now[number]
        return ValueError(
            f"checkpoint {self._path} was made with {name}{where} {before}, got {now}; "
            "go on with the same, remove it to start anew, or name another file"
        )
