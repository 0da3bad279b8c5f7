"""One call of a search: checked arguments, the model as a function, and what is found."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from memtools.batch import check_batch, check_whole
from memtools.critical.box import Bounds, Box
from memtools.critical.findings import Findings, lead
from memtools.critical.intervals import prove_uncritical
from memtools.critical.result import NEVER, CriticalSearch, Screening
from memtools.critical.searched import Searched
from memtools.critical.streams import seed_of, stream_keys
from memtools.critical.watch import Watch
from memtools.gradients.tokens import embedding_name
from memtools.guard import plain, untouched, unwrap

__all__ = ["Options", "Session"]

SAMPLE = 16
"""Examples on which rounding is measured."""


@dataclass(frozen=True)
class Options:
    """What all searches are given, see :func:`memtools.find_critical`.

    ``any_units`` takes a radius of any size.
    """

    radius: float | Tensor
    bounds: Bounds | None = None
    embedding: str | nn.Module | None = None
    generator: torch.Generator | None = None
    batch_size: int | None = None
    time_limit: float | None = None
    progress: bool = False
    any_units: bool = False


class Session:
    """What the parts of a search share.

    Attributes:
        searched: The model.
        box: The box around an example.
        batch_size: Examples a pass.
        everyone: Numbers of all examples.
        findings: What is known so far, from :meth:`begin` on.
    """

    findings: Findings

    def __init__(
        self, searched: Searched, box: Box, keys: Tensor, batch_size: int, watch: Watch
    ) -> None:
        self.searched = searched
        self.box = box
        self.batch_size = batch_size
        self.everyone = torch.arange(len(keys), device=keys.device)
        self._keys = keys
        self._watch = watch

    @classmethod
    @contextmanager
    def over(cls, model: nn.Module, inputs: Tensor, options: Options) -> Iterator["Session"]:
        """A session with the model in eval mode, which leaves no trace.

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If an argument is out of range, or the model is none that can be searched.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        check_batch(inputs, tokens=options.embedding is not None)
        if inputs[0].numel() == 0:
            raise ValueError(
                f"inputs have no elements, shape {tuple(inputs.shape)}; there is nothing to search"
            )
        size, limit = options.batch_size, options.time_limit
        if size is not None and check_whole("batch_size", size) < 1:
            raise ValueError(f"batch_size must be at least 1, got {size}; None chooses it")
        if limit is not None and not limit > 0:
            raise ValueError(f"time_limit must be a number of seconds above 0, got {limit}")
        layer = None
        if options.embedding is not None:
            name = embedding_name(unwrap(model), options.embedding)
            assert name is not None
            layer = unwrap(model).get_submodule(name)
        with (
            untouched(model, evaluating=True) as forward,
            torch.no_grad(),
            Watch.over(len(inputs), limit, options.progress) as watch,
        ):
            searched = Searched(forward, plain(inputs), layer)
            box = Box.around(searched.centres, options.radius, options.bounds)
            if layer is None and not options.any_units:
                box.check_units(searched.centres)
            searched.refuse_coupling()
            keys = stream_keys(plain(inputs), seed_of(options.generator))
            yield cls(searched, box, keys, size or searched.batch_size(), watch)
            forward.refuse_randomness()

    def begin(self, *, most_tried: int, most_spent: int = 2**62) -> None:
        """Forget what was found, and set how much may be tried for an example."""
        # The same examples in whatever order they come.
        sample = self._keys.argsort()[:SAMPLE]
        never = torch.full_like(self._keys, NEVER)
        self.findings = Findings(
            predicted=never,
            points=torch.empty_like(self.searched.centres),
            first_step=never.clone(),
            tried=torch.zeros_like(never),
            spent=torch.zeros_like(never),
            keys=self._keys,
            rounding=self.searched.rounding(sample),
            most_tried=most_tried,
            most_spent=most_spent,
            watch=self._watch,
            is_stuck=torch.zeros_like(never, dtype=torch.bool),
        )

    def result(
        self, screening: Screening | None = None, *, certify: bool = False
    ) -> CriticalSearch:
        """What was found, looked at once more, and what can be proved of the others."""
        findings = self.findings
        self._verify()
        others = (~findings.is_found).nonzero().flatten()
        for rows in others.split(self.batch_size):  # no second copy of all inputs
            findings.points[rows] = self.searched.centres[rows]
        if not self._watch.is_over:
            findings.given_up = len(others)
        findings.look(0)
        is_certified, uncertified = self._certify(others) if certify else (None, None)
        return CriticalSearch(
            is_critical=findings.is_found,
            points=findings.points,
            predicted=findings.predicted,
            first_step=findings.first_step,
            evaluations=self.searched.evaluations,
            max_steps=findings.most_tried,
            rounding=findings.rounding.relative,
            is_complete=not self._watch.is_over,
            screening=screening,
            is_certified=is_certified,
            uncertified=uncertified,
        )

    def _verify(self) -> None:
        """Forget each point that a plain forward pass does not find to be of another class."""
        findings = self.findings
        for rows in findings.is_found.nonzero().flatten().split(self.batch_size):
            points = self.box.pulled_in(findings.points[rows], self.searched.centres[rows])
            findings.points[rows] = points
            logits = self.searched.logits(points, rows)
            ahead = lead(logits, findings.predicted[rows])[0]
            failed = findings.rounding.explains(ahead, logits)
            findings.first_step[rows[failed]] = NEVER

    def _certify(self, rows: Tensor) -> tuple[Tensor, str | None]:
        is_certified = torch.zeros_like(self.everyone, dtype=torch.bool)
        for chunk in rows.split(self.batch_size):
            low, high = self.box.walls(self.searched.centres[chunk])
            # Rounding may have put a wall inside of the box.
            low = torch.nextafter(low, torch.full_like(low, -torch.inf))
            high = torch.nextafter(high, torch.full_like(high, torch.inf))
            proof = prove_uncritical(
                self.searched.forward,
                low,
                high,
                self.findings.predicted[chunk],
                partial(self.searched.outputs, rows=chunk),
            )
            if proof.unsupported is not None:
                return is_certified, proof.unsupported
            is_certified[chunk] = proof.is_proved
        return is_certified, None
