"""What studies share that train a network of some size and look at it after its epochs."""

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import nn

from memtools import models, seeds
from memtools.batch import check_logits
from memtools.data import Split, Tensors
from memtools.studies.cells import Cell, Progress, Tell, run_cells
from memtools.studies.config import Settings, setting
from memtools.studies.data import Data, corrupt, predict, read
from memtools.studies.folder import RunFolder
from memtools.training import Callback, EpochResult, Run, Trainer

__all__ = [
    "EpochRecorder",
    "NetworkSettings",
    "SearchSettings",
    "TrainingSettings",
    "build_network",
    "prepare",
    "run_networks",
    "trainer_for",
]

Recorded = TypeVar("Recorded", bound="EpochRecorder")

WIDTHS = {"tiny-mlp": 16, "small-alexnet": 200}
"""The paper's widths, where they are the default; its MLP has 4096 units."""


@dataclass(frozen=True)
class TrainingSettings(Settings):
    """Settings of networks of any width and their optimiser."""

    validation_size: int | None = setting(None, "examples held out (all)")
    model: str = setting("mlp", "mlp, tiny-mlp or small-alexnet")
    depth: int = setting(2, "hidden layers (mlp) or convolutions (small-alexnet)")
    dropout: float = setting(0.0, "probability of dropping a hidden unit (not tiny-mlp)")
    momentum: float = setting(0.9, "momentum of SGD")
    weight_decay: float = setting(0.0, "weight decay of SGD")
    precision: str = setting("float32", "float32, float64, bfloat16 or float16 (autocast)")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("momentum", "weight_decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True)
class NetworkSettings(TrainingSettings):
    """Settings of a network of one width and its optimiser."""

    width: int = setting(256, "units (mlp) or channels (small-alexnet) of a hidden layer")

    @classmethod
    def suited(cls, size: str = "default", **settings: Any) -> Self:
        """The defaults for the data set and the model that are named, changed by what is given."""
        if settings.get("model") in WIDTHS:
            settings = {"width": WIDTHS[settings["model"]]} | settings
        return super().suited(size, **settings)


@dataclass(frozen=True)
class SearchSettings(NetworkSettings):
    """Settings of the search for critical samples as well."""

    radius: float = setting(
        1 / 16, "half-width of the box of a critical sample; inputs are in [0, 1]"
    )
    search: str = setting(
        "lass", "search for critical samples: lass, the paper's, or auto, a more thorough one"
    )
    csr_steps: int = setting(10, "steps of that search (lass)")
    csr_examples: int = setting(200, "examples searched, of the training set and of those held out")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._one_of("search", ("lass", "auto"))
        self._at_least_one("csr_steps", "csr_examples")
        self._positive("radius")

    @property
    def search_in_words(self) -> str:
        """The search for critical samples as the beginning of a sentence goes on."""
        return f"a search of {self.csr_steps} steps" if self.search == "lass" else "a search"


class EpochRecorder(Callback):
    """Appends a line to the log of a training after an epoch; a study says what more is in it.

    Args:
        folder: The run folder.
        cell: The training.
        tell: Told how many epochs are newly done.
        epochs: Epochs that have a line.
    """

    def __init__(self, folder: RunFolder, cell: Cell, tell: Tell, epochs: Collection[int]) -> None:
        self.folder = folder
        self.log = folder.log(cell.name)
        self.cell = cell
        self.tell = tell
        self.epochs = frozenset(epochs)

    def measure(self, run: Run, result: EpochResult) -> dict[str, Any]:
        """What the line has beyond training, condition and :class:`EpochResult`."""
        raise NotImplementedError

    def on_start(self, run: Run) -> None:
        """Forget the lines of epochs that a kill undid."""
        done = len(run.results)
        self.log.cut(lambda row: row["epoch"] > done)
        if len(self.log.rows()) < sum(epoch <= done for epoch in self.epochs):
            raise ValueError(
                f"{self.log.path} lacks lines that were there when "
                f"{self.folder.path / 'checkpoints'} was written; remove that folder to train anew"
            )
        self.tell(done)

    def on_epoch_end(self, run: Run, result: EpochResult) -> None:
        """Measure, and append what was measured."""
        if result.epoch in self.epochs:
            measured = self.measure(run, result)
            self.log.append(self.cell.values | asdict(result) | measured)
        self.tell(1)


def prepare(config: TrainingSettings, widths: Sequence[int] | None = None) -> Data:
    """Load the data and try out every setting, before anything is written.

    Args:
        config: All settings.
        widths: Widths of the networks; ``None`` is the configuration's own.

    Returns:
        The data.

    Raises:
        ValueError: If a setting cannot be used.
        FileNotFoundError: If the data are not there.
    """
    data = read(config, validation_size=config.validation_size)
    for width in [getattr(config, "width", None)] if widths is None else widths:
        try:
            model = build_network(config, data.split, seed=0, width=width)
        except RuntimeError as error:
            raise ValueError(
                f"width {width} with depth {config.depth} cannot be built: {error}"
            ) from error
        check_logits(predict(model, data.train.inputs[:1]))
        _check(config, data, model)
    return data


def _check(config: TrainingSettings, data: Data, model: nn.Module) -> None:
    normalises = any(isinstance(module, nn.BatchNorm1d) for module in model.modules())
    if normalises and (config.batch_size == 1 or len(data.train) % config.batch_size == 1):
        raise ValueError(
            f"batch_size {config.batch_size} makes a batch of one of the {len(data.train)} "
            f"examples, which the BatchNorm of {config.model} cannot normalise; choose another"
        )
    trainer_for(config, model)


def run_networks(
    study: str,
    config: NetworkSettings,
    out: Path,
    data: Data,
    cells: Sequence[Cell],
    recorder: Callable[[RunFolder, Cell, Tensors, Tell], Recorded],
    *,
    lines: int,
    results: Sequence[str] = (),
    finish: Callable[[RunFolder, Cell, Recorded, nn.Module, Tensors], None] | None = None,
    progress: Progress | None = None,
) -> RunFolder:
    """Train one network for each cell, or those that are not finished yet, epoch by epoch.

    Args:
        study: Name of the study.
        config: All settings.
        out: The run folder.
        data: What :func:`prepare` gave.
        cells: The trainings, in order.
        recorder: Makes what measures one training, from the noisy training set.
        lines: Lines in the log of a training.
        results: Folders in which a finished training has a Parquet file.
        finish: Writes those files.
        progress: Told about every epoch.

    Returns:
        The run folder.

    Raises:
        ValueError: If a setting cannot be used, or the folder belongs to another run.
        FloatingPointError: If a training diverges.
    """
    folder = RunFolder.open(out, study, config.as_json(), str(data.device))
    for name in ("checkpoints", *results):
        (out / name).mkdir(exist_ok=True)

    def checkpoint(cell: Cell) -> Path:
        return out / "checkpoints" / f"{cell.name}.pt"

    def scratch(cell: Cell) -> list[Path]:
        """The checkpoint, and what a kill while it was written left of the next."""
        path = checkpoint(cell)
        return [path, *path.parent.glob(f".{path.name}*")]

    def train(cell: Cell, tell: Tell) -> None:
        noisy = corrupt(config, data, cell.condition, cell.seed)
        model = build_network(config, data.split, cell.seed)
        measuring = recorder(folder, cell, noisy, tell)
        trainer_for(config, model, cell.seed, [measuring], checkpoint(cell)).fit(
            noisy, data.validation
        )
        if finish is not None:
            finish(folder, cell, measuring, model, noisy)

    run_cells(
        folder,
        cells,
        train,
        lines=lines,
        results=lambda cell: [out / name / f"{cell.name}.parquet" for name in results],
        scratch=scratch,
        epochs=config.epochs,
        threads=config.threads,
        progress=progress,
    )
    with suppress(OSError):  # somebody's own file in it
        (out / "checkpoints").rmdir()
    return folder


def build_network(
    config: TrainingSettings,
    split: Split,
    seed: int,
    *,
    width: int | None = None,
    **regularization: float,
) -> nn.Module:
    """The network of a configuration, with the weights of a seed.

    Args:
        config: All settings.
        split: The data, for the shape of an input and the number of classes.
        seed: Seed of the weights.
        width: In place of the configuration's.
        **regularization: Fields of the model, such as ``dropout``, in place of the configuration's.

    Returns:
        The network.

    Raises:
        ValueError: If a setting cannot be used.
    """
    settings: dict[str, Any] = {"depth": config.depth}
    settings["width"] = getattr(config, "width", None) if width is None else width
    if config.dropout:
        if config.model == "tiny-mlp":
            raise ValueError(f"dropout must be 0 for tiny-mlp, got {config.dropout}")
        settings["dropout"] = config.dropout
    settings |= regularization
    with seeds.seeded(seed, "weights"):
        return models.build(config.model, split.input_shape, len(split.class_names), **settings)


def trainer_for(
    config: TrainingSettings,
    model: nn.Module,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
    checkpoint: Path | None = None,
    epochs: int | None = None,
) -> Trainer:
    """What trains it; ``epochs`` takes the place of the configuration's."""
    return Trainer(
        model,
        partial(
            torch.optim.SGD,
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        ),
        epochs=config.epochs if epochs is None else epochs,
        batch_size=config.batch_size,
        seed=seed,
        device=config.device,
        precision=config.precision,  # type: ignore[arg-type]
        callbacks=callbacks,
        checkpoint=checkpoint,
    )
