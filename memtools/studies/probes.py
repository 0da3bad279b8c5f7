"""The examples around which a study searches for critical samples."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from memtools import seeds
from memtools.critical import critical_sample_ratio
from memtools.data import Tensors
from memtools.studies.data import CHUNK, Data
from memtools.studies.networks import SearchSettings

__all__ = ["Probes", "Sizes"]


@dataclass(frozen=True)
class Sizes:
    """Numbers of examples: held out, and searched for critical samples in either part."""

    held_out: int
    searched: int
    searched_train: int

    @classmethod
    def of(cls, config: SearchSettings, data: Data) -> "Sizes":
        """The sizes that a configuration comes to on its data."""
        held_out, train = len(data.validation), len(data.train)
        return cls(held_out, min(config.csr_examples, held_out), min(config.csr_examples, train))


class Probes:
    """Training and held-out examples drawn once: the same for all epochs, seeds and conditions.

    Args:
        config: All settings.
        train: The training set of one training, noise and all.
        validation: Examples held out.
        seed: Seed of that training; with the epoch it fixes the noise of the search.
    """

    def __init__(
        self,
        config: SearchSettings,
        train: Tensors,
        validation: Tensors,
        seed: int,
    ) -> None:
        self._config = config
        self._seed = seed
        self._inputs = {
            "train": self._drawn(train.inputs, "train"),
            "validation": self._drawn(validation.inputs, "validation"),
        }

    def ratios(self, model: nn.Module, epoch: int) -> dict[str, float]:
        """Critical sample ratio of either part, as the lines of a training have it."""
        weight = next(model.parameters())
        return {
            f"csr_{part}": float(
                critical_sample_ratio(
                    model,
                    inputs.to(weight),
                    radius=self._config.radius,
                    method=self._config.search,
                    # The other search stops by itself.
                    max_steps=self._config.csr_steps if self._config.search == "lass" else None,
                    generator=seeds.generator(self._seed, "csr", part, epoch),
                    batch_size=CHUNK,
                )
            )
            for part, inputs in self._inputs.items()
        }

    def _drawn(self, inputs: Tensor, part: str) -> Tensor:
        draw = seeds.generator(self._config.data_seed, "csr examples", part)
        order = torch.randperm(len(inputs), generator=draw)
        return inputs[order[: self._config.csr_examples]]
