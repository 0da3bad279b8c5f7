"""The same network on real labels, random labels and random inputs, side by side.

What Arpit et al. (2017) look at while networks train, sections 3 and 4: how fast they fit, how
they generalise, how unequally the examples pull (Gini coefficient of the sensitivities), how many
examples have a decision boundary close by (critical sample ratio).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from memtools import models, seeds
from memtools.batch import check_logits
from memtools.critical import critical_sample_ratio
from memtools.data import Split, Tensors, in_memory, load, random_inputs, random_labels
from memtools.extras import require
from memtools.files import replace_atomically
from memtools.gradients import input_gradient_norms
from memtools.guard import untouched
from memtools.inequality import gini
from memtools.ledger import Ledger
from memtools.studies.folder import RunFolder
from memtools.training import Callback, EpochResult, Run, Trainer, resolve_device

__all__ = ["CONDITIONS", "Condition", "Config", "Data", "Progress", "cells", "prepare", "run"]

NORM = "input_gradient_norm"
CHUNK = 1024


def _setting(default: Any, help: str, **extra: Any) -> Any:
    return field(default=default, metadata={"help": help, **extra})


@dataclass(frozen=True)
class Config:
    """Every setting of the study; :meth:`suited` has defaults that suit the data set and model."""

    dataset: str = _setting("digits", "digits, fashion-mnist, mnist, cifar10, or folder")
    data_dir: str | None = _setting(None, "where the files of the data set are (./data)")
    download: bool = _setting(False, "download the data set if it is not there")
    train_size: int | None = _setting(None, "training examples, drawn at random (all)")
    validation_size: int | None = _setting(None, "examples held out (all)")
    image_size: int = _setting(32, "side to which the images of a folder are resized, in pixels")
    data_seed: int = _setting(0, "fixes which examples are drawn and held out")
    seeds: tuple[int, ...] = _setting((0, 1, 2), "one network per seed and condition")
    model: str = _setting("mlp", "mlp, tiny-mlp or small-alexnet")
    width: int = _setting(256, "units (mlp) or channels (small-alexnet) of a hidden layer")
    depth: int = _setting(2, "hidden layers (mlp) or convolutions (small-alexnet)")
    dropout: float = _setting(0.0, "probability of dropping a hidden unit (not tiny-mlp)")
    epochs: int = _setting(50, "times through the training set")
    batch_size: int = _setting(64, "examples of an update")
    learning_rate: float = _setting(0.1, "step size of SGD")
    momentum: float = _setting(0.9, "momentum of SGD")
    weight_decay: float = _setting(0.0, "weight decay of SGD")
    label_noise: str = _setting(
        "uniform", "random labels are drawn from all classes (uniform), the other ones, or permuted"
    )
    input_noise: str = _setting(
        "all", "random inputs have mean and variance of all values, of each channel or element"
    )
    radius: float = _setting(
        1 / 16, "half-width of the box of a critical sample; inputs are in [0, 1]"
    )
    csr_steps: int = _setting(10, "steps of the search for critical samples")
    csr_examples: int = _setting(
        200, "examples searched, of the training set and of those held out"
    )
    device: str = _setting("auto", "cpu, cuda, cuda:1, mps, or auto")
    precision: str = _setting("float32", "float32, float64, bfloat16 or float16 (autocast)")
    threads: int = _setting(1, "CPU threads; small networks are fastest on one")

    @classmethod
    def suited(cls, **settings: Any) -> "Config":
        """The defaults for the data set and the model that are named, changed by what is given."""
        dataset = settings.get("dataset", "digits")
        defaults = {} if dataset == "digits" else dict(IMAGES)
        if dataset == "folder":  # it may hold fewer
            del defaults["train_size"], defaults["validation_size"]
        if settings.get("model") in WIDTHS:
            defaults["width"] = WIDTHS[settings["model"]]
        return cls(**defaults | settings)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seeds", tuple(self.seeds))
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be different numbers, got {list(self.seeds)}")
        for name, choices in (
            ("label_noise", ("uniform", "other", "permuted")),
            ("input_noise", ("all", "channel", "element")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )
        for name in ("epochs", "batch_size", "csr_steps", "csr_examples", "threads", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "radius"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("momentum", "weight_decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


IMAGES: dict[str, Any] = {
    "train_size": 5000,
    "validation_size": 2000,
    "width": 512,
    "epochs": 100,
    "batch_size": 64,
    "learning_rate": 0.02,
    "radius": 8 / 255,
}
"""Defaults for sets larger than the digits: a subset that a CPU can train on."""

WIDTHS = {"tiny-mlp": 16, "small-alexnet": 200}
"""The paper's widths, where they are the default; its MLP has 4096 units."""


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

    def apply(self, train: Tensors, config: Config, seed: int, num_classes: int) -> Tensors:
        """The training set with this condition's noise in it."""
        noisy: Any = train
        if self.labels:
            noisy = random_labels(
                noisy,
                self.labels,
                mode=config.label_noise,  # type: ignore[arg-type]
                seed=seed,
                num_classes=num_classes,
            )
        if self.inputs:
            noisy = random_inputs(
                noisy,
                self.inputs,
                statistics=config.input_noise,  # type: ignore[arg-type]
                seed=seed,
            )
        return in_memory(noisy)


CONDITIONS = (
    Condition("real", "real labels"),
    Condition("random-labels-20", "20% random labels", labels=0.2),
    Condition("random-labels-40", "40% random labels", labels=0.4),
    Condition("random-labels-100", "all labels random", labels=1.0),
    Condition("random-inputs-100", "all inputs random", inputs=1.0),
)

Progress = Callable[[str, int], None]
"""Called with a line on what is going on and the number of epochs just finished."""


@dataclass(frozen=True)
class Data:
    """What a configuration needs, ready to be trained on."""

    split: Split
    train: Tensors
    validation: Tensors
    device: torch.device


def cells(config: Config) -> list[tuple[int, Condition]]:
    """All trainings of the study, in order."""
    return [(seed, condition) for seed in config.seeds for condition in CONDITIONS]


def prepare(config: Config) -> Data:
    """Load the data and try out every setting, before anything is written.

    Raises:
        ValueError: If a setting cannot be used.
        FileNotFoundError: If the data are not there.
    """
    for module in ("pyarrow", "matplotlib"):
        require(module)
    device = resolve_device(config.device)
    split = load(
        config.dataset,
        data_dir=config.data_dir,
        download=config.download,
        train_size=config.train_size,
        validation_size=config.validation_size,
        image_size=config.image_size,
        seed=config.data_seed,
    )
    data = Data(split, in_memory(split.train), in_memory(split.validation), device)
    probe = data.train.subset(torch.arange(1))
    for condition in CONDITIONS:
        condition.apply(probe, config, 0, len(split.class_names))
    model = _build(config, split, seed=0)
    with untouched(model, evaluating=True) as forward, torch.no_grad():
        check_logits(forward(probe.inputs))
    normalises = any(isinstance(module, nn.BatchNorm1d) for module in model.modules())
    if normalises and len(data.train) % config.batch_size == 1:
        raise ValueError(
            f"batch_size {config.batch_size} leaves a last batch of one of the {len(data.train)} "
            f"examples, which the BatchNorm of {config.model} cannot normalise; choose another"
        )
    _trainer(config, model)
    return data


def run(
    config: Config, out: Path, *, data: Data | None = None, progress: Progress | None = None
) -> RunFolder:
    """Train all networks of the study, or those that are not finished yet.

    A run that was killed goes on from the last finished epoch and ends in the same files.

    Args:
        config: All settings.
        out: The run folder.
        data: What :func:`prepare` gave, if it has been called.
        progress: Told about every epoch.

    Returns:
        The run folder with ``config.json``, ``metrics.jsonl``, ``examples/`` and ``ledgers/``.

    Raises:
        ValueError: If a setting cannot be used, or the folder belongs to another run.
        FileNotFoundError: If the data are not there.
        FloatingPointError: If a training diverges.
    """
    data = prepare(config) if data is None else data
    settings = {f.name: _as_json(getattr(config, f.name)) for f in fields(config)}
    folder = RunFolder.open(out, "memorization", settings, str(data.device))
    for name in ("checkpoints", "examples", "ledgers"):
        (out / name).mkdir(exist_ok=True)
    with _threads(config.threads):
        for seed, condition in cells(config):
            _train(folder, config, data, seed, condition, progress or (lambda line, epochs: None))
    (out / "checkpoints").rmdir()
    return folder


def _train(
    folder: RunFolder, config: Config, data: Data, seed: int, condition: Condition, tell: Progress
) -> None:
    name = f"{condition.key}-seed{seed}"
    title = f"{condition.title}, seed {seed}"
    checkpoint = folder.path / "checkpoints" / f"{name}.pt"
    examples = folder.path / "examples" / f"{name}.parquet"
    if examples.exists():
        checkpoint.unlink(missing_ok=True)
        tell(title, config.epochs)
        return
    tell(title, 0)
    train = condition.apply(data.train, config, seed, len(data.split.class_names))
    model = _build(config, data.split, seed)
    recorder = _Recorder(folder, config, data.validation, seed, condition, train, tell)
    trainer = _trainer(config, model, seed, [recorder], checkpoint)
    trainer.fit(train, data.validation)
    recorder.ledger.save(folder.path / "ledgers" / f"{name}.parquet")
    _write_examples(examples, model, recorder.train, recorder.ledger, condition, seed)
    checkpoint.unlink()


def _build(config: Config, split: Split, seed: int) -> nn.Module:
    settings: dict[str, Any] = {"width": config.width, "depth": config.depth}
    if config.dropout:
        if config.model == "tiny-mlp":
            raise ValueError(f"dropout must be 0 for tiny-mlp, got {config.dropout}")
        settings["dropout"] = config.dropout
    with seeds.seeded(seed, "weights"):
        return models.build(config.model, split.input_shape, len(split.class_names), **settings)


def _trainer(
    config: Config,
    model: nn.Module,
    seed: int = 0,
    callbacks: list[Callback] | None = None,
    checkpoint: Path | None = None,
) -> Trainer:
    return Trainer(
        model,
        partial(
            torch.optim.SGD,
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        ),
        epochs=config.epochs,
        batch_size=config.batch_size,
        seed=seed,
        device=config.device,
        precision=config.precision,  # type: ignore[arg-type]
        callbacks=callbacks or [],
        checkpoint=checkpoint,
    )


class _Recorder(Callback):
    """Measures after every epoch: a line in ``metrics.jsonl``, a presentation in the ledger."""

    def __init__(
        self,
        folder: RunFolder,
        config: Config,
        validation: Tensors,
        seed: int,
        condition: Condition,
        train: Tensors,
        tell: Progress,
    ) -> None:
        self.folder = folder
        self.config = config
        self.cell = {"condition": condition.key, "seed": seed}
        self.train = train
        self.probes = {
            part: _probe(inputs, config, part)
            for part, inputs in (("train", train.inputs), ("validation", validation.inputs))
        }
        self.ledger = Ledger(len(train))
        self.title = f"{condition.title}, seed {seed}"
        self.tell = tell

    def on_start(self, run: Run) -> None:
        self.train = run.train  # on the device by now
        weight = next(run.model.parameters())
        self.probes = {part: probe.to(weight) for part, probe in self.probes.items()}
        done = len(run.results)
        self.folder.drop_rows_from(
            lambda row: {k: row[k] for k in self.cell} == self.cell and row["epoch"] > done
        )
        self.tell(self.title, done)

    def on_epoch_end(self, run: Run, result: EpochResult) -> None:
        train = self.train
        logits = predict(run.model, train.inputs)
        with untouched(run.model, evaluating=True):
            norms = input_gradient_norms(run.model, train.inputs, train.targets, chunk_size=CHUNK)
        self.ledger.update(
            torch.arange(len(train)), logits=logits, targets=train.targets, **{NORM: norms}
        )
        mean_norms = torch.from_numpy(self.ledger.history(NORM)).double().mean(1)
        right = logits.argmax(1) == train.targets
        self.folder.append(
            self.cell
            | asdict(result)
            | {
                "corrupted_accuracy": _share(right[train.is_corrupted]),
                "gini_of_running_mean": float(gini(mean_norms)),
                "gini_instantaneous": float(gini(norms)),
            }
            | {f"csr_{part}": self._csr(run, part, result.epoch) for part in self.probes}
        )
        self.tell(self.title, 1)

    def _csr(self, run: Run, part: str, epoch: int) -> float:
        return float(
            critical_sample_ratio(
                run.model,
                self.probes[part],
                radius=self.config.radius,
                max_steps=self.config.csr_steps,
                generator=seeds.generator(self.cell["seed"], "csr", part, epoch),
                batch_size=CHUNK,
            )
        )

    def state_dict(self) -> dict[str, Any]:
        return self.ledger.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ledger.load_state_dict(state)


def predict(model: nn.Module, inputs: Tensor) -> Tensor:
    """Logits of a whole set in eval mode, by chunks."""
    with untouched(model, evaluating=True) as forward, torch.no_grad():
        return torch.cat([forward(chunk) for chunk in inputs.split(CHUNK)])


def _probe(inputs: Tensor, config: Config, part: str) -> Tensor:
    order = torch.randperm(
        len(inputs), generator=seeds.generator(config.data_seed, "csr examples", part)
    )
    return inputs[order[: config.csr_examples]]


def _write_examples(
    path: Path, model: nn.Module, train: Tensors, ledger: Ledger, condition: Condition, seed: int
) -> None:
    pa, parquet = require("pyarrow"), require("pyarrow.parquet")
    n = len(train)
    table = {
        "condition": [condition.key] * n,
        "seed": [seed] * n,
        "label": train.targets.cpu().numpy(),
        "clean_label": train.clean_targets.cpu().numpy(),
        "is_corrupted": train.is_corrupted.cpu().numpy(),
        "prediction": predict(model, train.inputs).argmax(1).cpu().numpy(),
        **ledger.scores(),
    }
    with replace_atomically(path) as temporary:
        parquet.write_table(pa.table(table), temporary, compression="zstd")


def _share(values: Tensor) -> float | None:
    return float(values.float().mean()) if len(values) else None


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
