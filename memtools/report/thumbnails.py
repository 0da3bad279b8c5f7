"""Small pictures of training examples."""

import base64
import io
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from memtools.data import Tensors
from memtools.studies.cells import Cell
from memtools.studies.data import Data
from memtools.studies.folder import RunFolder, read_parquet

__all__ = ["Example", "extremes", "png_uri"]

NUMBER = 12


@dataclass(frozen=True)
class Example:
    """One training example as the report shows it.

    Attributes:
        image: Data URI of a PNG.
        label: Name of the label it was trained with.
        clean_label: Name of the label it came with.
        prediction: Name of the class predicted after training.
        score: Its score.
        is_corrupted: Whether noise was put into it.
    """

    image: str
    label: str
    clean_label: str
    prediction: str
    score: float
    is_corrupted: bool


def extremes(
    folder: RunFolder, cell: Cell, score: str, train: Tensors, data: Data
) -> tuple[list[Example], list[Example]]:
    """The examples of highest and of lowest score in one training.

    Args:
        folder: The finished run folder.
        cell: The training.
        score: Column of its file in ``examples/``.
        train: Its examples as they are to be shown, in [0, 1].
        data: The data of the study.

    Returns:
        The highest ones, then the lowest ones; none if the inputs are no pictures.
    """
    if len(data.split.input_shape) != 3 or data.split.input_shape[0] not in (1, 3):
        return [], []
    table = read_parquet(folder.path / "examples" / f"{cell.name}.parquet")
    order = np.argsort(table[score], kind="stable")
    names = data.split.class_names

    def example(i: int) -> Example:
        return Example(
            png_uri(train.inputs[i]),
            names[table["label"][i]],
            names[table["clean_label"][i]],
            names[table["prediction"][i]],
            table[score][i],
            table["is_corrupted"][i],
        )

    return [example(i) for i in order[::-1][:NUMBER]], [example(i) for i in order[:NUMBER]]


def png_uri(image: Tensor) -> str:
    """An image of shape ``(1 or 3, height, width)`` in [0, 1] as the data URI of a PNG."""
    from torchvision.transforms.functional import to_pil_image

    packed = io.BytesIO()
    to_pil_image(image.clamp(0, 1).mul(255).round().to(torch.uint8)).save(packed, "PNG")
    return "data:image/png;base64," + base64.b64encode(packed.getvalue()).decode()
