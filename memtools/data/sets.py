"""Data sets by name: the bundled digits, torchvision's, a folder of images."""

import gzip
import shutil
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from memtools import seeds
from memtools.data.tensors import Tensors
from memtools.extras import require

__all__ = ["NAMES", "Indexed", "Split", "load"]

IDX_FILES = [
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
]
HOW_TO_GET = "give their folder as data_dir, or allow the download (--data-dir DIR, --download)"
IMAGE_FOLDERS = {"train": ("train",), "validation": ("validation", "valid", "val", "test")}


class Indexed(Dataset[tuple[Any, int, int]]):
    """Some examples of a data set that stays where it is; items are ``(input, target, index)``.

    Args:
        base: Map-style, items ``(input, target)``.
        targets: Labels of all of ``base``.
        positions: Which of its examples, in this order; they are numbered anew from 0.
    """

    def __init__(self, base: Any, targets: Tensor, positions: Tensor) -> None:
        self.base = base
        self.positions = positions
        self.targets = targets[positions]

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> tuple[Any, int, int]:
        return self.base[int(self.positions[index])][0], int(self.targets[index]), index


@dataclass(frozen=True)
class Split:
    """A data set in two parts, inputs in [0, 1] and of shape ``(channels, height, width)``.

    Attributes:
        train: Examples to train on; items ``(input, target, index)``.
        validation: Examples held out; for sets that come with a test part, drawn from that.
        class_names: What the classes are called, by number.
        input_shape: Shape of one input.
    """

    train: Tensors | Indexed
    validation: Tensors | Indexed
    class_names: tuple[str, ...]
    input_shape: tuple[int, ...]


def load(
    name: str,
    *,
    data_dir: str | Path | None = None,
    download: bool = False,
    train_size: int | None = None,
    validation_size: int | None = None,
    image_size: int = 32,
    seed: int = 0,
) -> Split:
    """Load a data set: as tensors, or from a folder of images one by one.

    Args:
        name: ``"digits"`` (scikit-learn's 1,797 of 8x8, needs no files), ``"fashion-mnist"``,
            ``"mnist"``, ``"cifar10"``, or ``"folder"`` (one folder of images per class, all
            together or under ``train`` and ``val``; without a ``val``, a fifth is held out).
        data_dir: Where the files are, or go when they are downloaded; ``None`` is ``./data``.
            IDX files may lie there directly, gzipped or not, or as torchvision keeps them.
        download: Whether torchvision may download what is missing.
        train_size: Number of training examples, drawn at random; ``None`` takes all.
        validation_size: The same for the examples held out.
        image_size: Height and width to which the images of a folder are resized.
        seed: Fixes which examples are drawn and held out.

    Returns:
        A :class:`Split`.

    Raises:
        ValueError: If the name is unknown, a size cannot be had, or a file is damaged.
        FileNotFoundError: If files are missing; the message says where and what would help.
        ModuleNotFoundError: If the digits are asked for without scikit-learn.
    """
    if name not in LOADERS:
        raise ValueError(f"dataset must be one of {', '.join(NAMES)}, got {name!r}")
    root = Path("data" if data_dir is None else data_dir).expanduser()
    if data_dir is not None and not root.is_dir() and not download:
        raise FileNotFoundError(f"data_dir {root} is not a folder")
    (train, validation), class_names = LOADERS[name](root, download, image_size, seed)
    train = train(_draw(len(train.targets), train_size, "train_size", seed))
    validation = validation(
        _draw(len(validation.targets), validation_size, "validation_size", seed)
    )
    return Split(train, validation, class_names, tuple(train[0][0].shape))


@dataclass(frozen=True)
class _Part:
    """All examples of a part, of which some will be taken; pixels stay bytes until then."""

    targets: Tensor
    pixels: Tensor | None = None
    scale: int = 255
    images: Any = None

    def __call__(self, positions: Tensor) -> Tensors | Indexed:
        if self.pixels is None:
            return Indexed(self.images, self.targets, positions)
        return Tensors(self.pixels[positions].float() / self.scale, self.targets[positions])

    def take(self, positions: Tensor) -> "_Part":
        pixels = None if self.pixels is None else self.pixels[positions]
        images = None if self.images is None else Indexed(self.images, self.targets, positions)
        return _Part(self.targets[positions], pixels, self.scale, images)


_Loaded = tuple[tuple[_Part, _Part], tuple[str, ...]]


def _draw(n: int, size: int | None, argument: str, seed: int) -> Tensor:
    if size is None or size == n:
        return torch.arange(n)
    if not 0 < size <= n:
        raise ValueError(f"{argument} must lie between 1 and {n}, the number there is, got {size}")
    return torch.randperm(n, generator=seeds.generator(seed, argument))[:size]


def _hold_out(everything: _Part, seed: int) -> tuple[_Part, _Part]:
    n = len(everything.targets)
    order = torch.randperm(n, generator=seeds.generator(seed, "held out"))
    return everything.take(order[n // 5 :]), everything.take(order[: n // 5])


def _digits(root: Path, download: bool, image_size: int, seed: int) -> _Loaded:
    bunch = require("sklearn.datasets").load_digits()
    pixels = torch.from_numpy(bunch.images)[:, None]
    everything = _Part(torch.from_numpy(bunch.target).long(), pixels, scale=16)
    return _hold_out(everything, seed), tuple(str(name) for name in bunch.target_names)


def _idx(torchvision_class: str) -> Callable[[Path, bool, int, int], _Loaded]:
    def loader(root: Path, download: bool, image_size: int, seed: int) -> _Loaded:
        from torchvision import datasets

        kind = getattr(datasets, torchvision_class)
        found = _find_idx(root, torchvision_class)
        if found is None:
            if not download:
                raise FileNotFoundError(
                    f"no {torchvision_class} files ({IDX_FILES[0]}[.gz] and three more) in {root}; "
                    f"{HOW_TO_GET}"
                )
            parts = [_download(kind, root, train) for train in (True, False)]
        else:
            with tempfile.TemporaryDirectory() as scratch:
                raw = Path(scratch, torchvision_class, "raw")
                raw.mkdir(parents=True)
                for file in IDX_FILES:
                    _unpack(found[file], raw / file)
                parts = [
                    _read_idx(kind, scratch, train, [found[f] for f in files])
                    for train, files in ((True, IDX_FILES[:2]), (False, IDX_FILES[2:]))
                ]
        train, test = (_Part(part.targets, part.data[:, None]) for part in parts)
        return (train, test), tuple(parts[0].classes)

    return loader


def _find_idx(root: Path, torchvision_class: str) -> dict[str, Path] | None:
    for folder in (root, root / torchvision_class / "raw", root / "raw"):
        candidates = {
            file: [path for path in (folder / file, folder / f"{file}.gz") if path.is_file()]
            for file in IDX_FILES
        }
        if all(candidates.values()):
            return {file: paths[0] for file, paths in candidates.items()}
    return None


def _unpack(source: Path, target: Path) -> None:
    try:
        reader = gzip.open if source.suffix == ".gz" else open
        with reader(source, "rb") as packed, target.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{source} cannot be read ({error}); fetch it again") from error


def _read_idx(kind: Any, folder: str, train: bool, sources: list[Path]) -> Any:
    names = " and ".join(map(str, sources))
    try:
        part = kind(folder, train=train)
    except Exception as error:  # torchvision parses by hand and raises whatever it trips over
        raise ValueError(f"{names} are no images and labels in the format of MNIST") from error
    if len(part.data) != len(part.targets):
        raise ValueError(
            f"{names} do not belong together: {len(part.data)} images, {len(part.targets)} labels"
        )
    return part


def _cifar10(root: Path, download: bool, image_size: int, seed: int) -> _Loaded:
    from torchvision import datasets

    # torchvision compares checksums before it unpickles a file.
    try:
        parts = [datasets.CIFAR10(root, train=train) for train in (True, False)]
    except RuntimeError as error:
        if not download:
            raise FileNotFoundError(
                f"no intact CIFAR-10 (cifar-10-batches-py) in {root}; {HOW_TO_GET}"
            ) from error
        parts = [_download(datasets.CIFAR10, root, train) for train in (True, False)]
    train, test = (
        _Part(torch.tensor(p.targets), torch.from_numpy(p.data).movedim(3, 1)) for p in parts
    )
    return (train, test), tuple(parts[0].classes)


def _download(kind: Any, root: Path, train: bool) -> Any:
    try:
        return kind(root, train=train, download=True)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"{kind.__name__} could not be downloaded into {root} ({error}); "
            "fetch the files yourself and name their folder as data_dir"
        ) from error


def _folder(root: Path, download: bool, image_size: int, seed: int) -> _Loaded:
    from torchvision import datasets, transforms

    to_tensor = transforms.Compose(
        [transforms.Resize((image_size, image_size)), transforms.ToTensor()]
    )

    def read(folder: Path) -> tuple[_Part, tuple[str, ...]]:
        try:
            images = datasets.ImageFolder(folder, to_tensor, loader=_read_image)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{folder} must hold one folder for each class, with at least one image in each"
            ) from error
        return _Part(torch.tensor(images.targets), images=images), tuple(images.classes)

    # A folder with images right in it is a class, whatever its name ("train", the vehicle).
    parts = {
        part: next((root / n for n in names if _has_folders(root / n)), None)
        for part, names in IMAGE_FOLDERS.items()
    }
    if parts["train"] is None and parts["validation"] is not None:
        raise FileNotFoundError(
            f"{root} holds {parts['validation'].name} but no train; add train beside it, "
            "or put the folders of the classes right into data_dir"
        )
    if parts["train"] is None or parts["validation"] is None:
        everything, classes = read(parts["train"] or root)
        return _hold_out(everything, seed), classes
    train, classes = read(parts["train"])
    validation, validation_classes = read(parts["validation"])
    if classes != validation_classes:
        raise ValueError(
            f"{parts['train']} and {parts['validation']} must hold the same classes, "
            f"got {', '.join(classes)} and {', '.join(validation_classes)}"
        )
    return (train, validation), classes


def _read_image(path: str) -> Any:
    from torchvision.datasets.folder import default_loader

    try:
        return default_loader(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read as an image ({error}); remove it") from error


def _has_folders(folder: Path) -> bool:
    return folder.is_dir() and any(entry.is_dir() for entry in folder.iterdir())


LOADERS: dict[str, Callable[[Path, bool, int, int], _Loaded]] = {
    "digits": _digits,
    "fashion-mnist": _idx("FashionMNIST"),
    "mnist": _idx("MNIST"),
    "cifar10": _cifar10,
    "folder": _folder,
}
NAMES = tuple(LOADERS)
