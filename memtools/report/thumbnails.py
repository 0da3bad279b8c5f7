"""Small pictures of training examples."""

import base64
import io
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from memtools.extras import require
from memtools.studies.folder import RunFolder
from memtools.studies.memorization import Config, Data, corrupt
from memtools.studies.memorization.conditions import Condition
from memtools.studies.memorization.recorder import NORM

__all__ = ["Example", "extremes", "png_uri"]


@dataclass(frozen=True)
class Example:
    """One training example as the report shows it.

    Attributes:
        image: Data URI of a PNG.
        label: Name of the label it was trained with.
        clean_label: Name of the label it came with.
        prediction: Name of the class predicted after training.
        score: Mean input-gradient norm.
        is_corrupted: Whether noise was put into it.
    """

    image: str
    label: str
    clean_label: str
    prediction: str
    score: float
    is_corrupted: bool


def extremes(
    folder: RunFolder, config: Config, data: Data, condition: Condition, number: int
) -> tuple[list[Example], list[Example]]:
    """The examples of highest and of lowest mean sensitivity, for the first seed.

    Args:
        folder: The finished run folder.
        config: Its settings.
        data: Its data.
        condition: Which training.
        number: How many of each.

    Returns:
        The sharpest ones, then the mildest ones.
    """
    seed = config.seeds[0]
    path = folder.path / "examples" / f"{condition.key}-seed{seed}.parquet"
    table = require("pyarrow.parquet").read_table(path).to_pydict()
    train = corrupt(config, data, condition, seed)
    order = np.argsort(table[NORM], kind="stable")
    names = data.split.class_names

    def example(i: int) -> Example:
        return Example(
            png_uri(train.inputs[i]),
            names[table["label"][i]],
            names[table["clean_label"][i]],
            names[table["prediction"][i]],
            table[NORM][i],
            table["is_corrupted"][i],
        )

    return [example(i) for i in order[::-1][:number]], [example(i) for i in order[:number]]


def png_uri(image: Tensor) -> str:
    """An image of shape ``(1 or 3, height, width)`` in [0, 1] as the data URI of a PNG."""
    from torchvision.transforms.functional import to_pil_image

    packed = io.BytesIO()
    to_pil_image(image.clamp(0, 1).mul(255).round().to(torch.uint8)).save(packed, "PNG")
    return "data:image/png;base64," + base64.b64encode(packed.getvalue()).decode()
