"""What studies share that train many networks of one shape at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from memtools.data import Tensors
from memtools.studies.cells import Cell, Progress, Tell, run_cells
from memtools.studies.config import setting
from memtools.studies.data import Data
from memtools.studies.folder import RunFolder
from memtools.studies.networks import TrainingSettings
from memtools.training import EpochResult, Member, train_ensemble

__all__ = ["EnsembleSettings", "run_ensembles", "train_members"]


@dataclass(frozen=True)
class EnsembleSettings(TrainingSettings):
    """Settings of networks that are trained together."""

    engine: str = setting(
        "fused",
        "how networks are trained together: fused (mlp only), vmap, loop; they differ in rounding",
    )

    @classmethod
    def suited(cls, size: str = "default", **settings: Any) -> Self:
        """The defaults for the data set and the model that are named, changed by what is given."""
        if settings.get("model", "mlp") != "mlp":
            settings = {"engine": "loop"} | settings
        return super().suited(size, **settings)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._one_of("engine", ("fused", "vmap", "loop"))
        if self.engine == "fused" and self.model != "mlp":
            raise ValueError(f"engine must be vmap or loop for model {self.model}, got 'fused'")
        self._one_of("precision", ("float32", "float64"))


def train_members(
    config: EnsembleSettings,
    data: Data,
    members: Sequence[Member],
    *,
    validation: Tensors | None = None,
    progress: Tell | None = None,
    **options: Any,
) -> list[list[EpochResult]]:
    """Train networks together by the settings of a study.

    Args:
        config: All settings.
        data: The data of the study.
        members: The networks and what each is trained on.
        validation: Examples evaluated on; ``None`` takes those that are held out.
        progress: Told about every epoch.
        **options: Further arguments of :func:`memtools.training.train_ensemble`, in place of the
            configuration's.

    Returns:
        The results of each.

    Raises:
        FloatingPointError: If a training diverges.
    """
    settings: dict[str, Any] = {
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "momentum": config.momentum,
        "engine": config.engine,
        "device": config.device,
        "precision": config.precision,
        "validation": data.validation if validation is None else validation,
        "progress": progress,
    }
    return train_ensemble(members, **settings | options)


def run_ensembles(
    study: str,
    config: EnsembleSettings,
    out: Path,
    data: Data,
    cells: Sequence[Cell],
    train: Callable[[Cell, Tell], Sequence[dict[str, Any]]],
    *,
    lines: int | Callable[[Cell], int],
    results: Sequence[str] = (),
    progress: Progress | None = None,
) -> RunFolder:
    """Do what each cell stands for, or those that are not finished yet.

    Args:
        study: Name of the study.
        config: All settings.
        out: The run folder.
        data: The data of the study.
        cells: What is to be done, in order.
        train: Does one and returns its lines, without what all of them begin with.
        lines: How many there are of each; a function of the cell where they differ.
        results: Folders in which ``train`` leaves a Parquet file.
        progress: Told about every epoch.

    Returns:
        The run folder.

    Raises:
        ValueError: If the folder belongs to another run.
        FloatingPointError: If a training diverges.
    """
    folder = RunFolder.open(out, study, config.as_json(), str(data.device))
    for name in results:
        (out / name).mkdir(exist_ok=True)

    def do(cell: Cell, tell: Tell) -> None:
        log = folder.log(cell.name)
        log.cut()
        # All lines at once: a cell that was killed is done again.
        log.append(*(cell.values | row for row in train(cell, tell)))

    run_cells(
        folder,
        cells,
        do,
        lines=lines,
        results=lambda cell: [out / name / f"{cell.name}.parquet" for name in results],
        epochs=config.epochs,
        threads=config.threads,
        progress=progress,
    )
    return folder
