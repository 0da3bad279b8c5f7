"""The networks of Arpit et al. (2017), with every setting that the paper leaves open as a field."""

from collections.abc import Sequence
from math import inf, prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memtools.batch import check_whole

__all__ = ["MLP", "NAMES", "GaussianNoise", "SmallAlexNet", "TinyMLP", "build"]


class GaussianNoise(nn.Module):
    """Adds independent ``N(0, std^2)`` noise in train mode; does nothing in eval mode.

    Args:
        std: Standard deviation, in the units of what it is added to.

    Raises:
        ValueError: If it is negative, infinite or NaN.
    """

    def __init__(self, std: float) -> None:
        super().__init__()
        if not 0 <= std < inf:
            raise ValueError(f"std must be finite and not negative, got {std}")
        self.std = std

    def forward(self, x: Tensor) -> Tensor:
        """``x`` plus noise in train mode, ``x`` in eval mode."""
        return x + self.std * torch.randn_like(x) if self.training else x

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"std={self.std}"


class MLP(nn.Module):
    """Fully connected ReLU network: the paper's has 2 hidden layers of 4096 units.

    Args:
        input_shape: Shape of one input; it is flattened.
        num_classes: Number of logits.
        width: Units of each hidden layer.
        depth: Number of hidden layers.
        dropout: Probability of dropping a hidden unit.
        input_dropout: Probability of dropping an input.
        input_noise: Standard deviation of Gaussian noise on the inputs, in their units.
        hidden_noise: Standard deviation of Gaussian noise on the hidden activations.

    Raises:
        ValueError: If a setting is out of range.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        width: int = 4096,
        depth: int = 2,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        input_noise: float = 0.0,
        hidden_noise: float = 0.0,
    ) -> None:
        super().__init__()
        _check_sizes(width=width, depth=depth, num_classes=num_classes)
        layers: list[nn.Module] = [
            *_disturb(input_dropout=input_dropout, input_noise=input_noise),
            nn.Flatten(),
        ]
        features = prod(input_shape)
        for _ in range(depth):
            layers += [nn.Linear(features, width), nn.ReLU()]
            layers += _disturb(dropout=dropout, hidden_noise=hidden_noise)
            features = width
        self.layers = nn.Sequential(*layers, nn.Linear(features, num_classes))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of shape ``(n, num_classes)``."""
        return self.layers(inputs)


class TinyMLP(MLP):
    """The paper's network for sensitivity through the training: 2 x 16 units on 14x14 inputs.

    Args:
        input_shape: Shape of one input ``(channels, height, width)``; images larger than 14x14
            are average-pooled to that size first.
        num_classes: Number of logits.
        width: Units of each hidden layer.
        depth: Number of hidden layers.

    Raises:
        ValueError: If a setting is out of range.
    """

    SIDE = 14

    def __init__(
        self, input_shape: Sequence[int], num_classes: int, *, width: int = 16, depth: int = 2
    ) -> None:
        channels, height, breadth = _image_shape(input_shape)
        self.sides = (min(height, self.SIDE), min(breadth, self.SIDE))
        super().__init__((channels, *self.sides), num_classes, width=width, depth=depth)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of shape ``(n, num_classes)``."""
        if tuple(inputs.shape[-2:]) != self.sides:
            inputs = F.adaptive_avg_pool2d(inputs, self.sides)
        return super().forward(inputs)


class SmallAlexNet(nn.Module):
    """The paper's small AlexNet-style network.

    Crop 2 pixels off each side, then ``depth`` times Conv 5x5, BatchNorm, ReLU, MaxPool 3x3, then
    two dense layers of 384 and 192 units with BatchNorm and ReLU, then the logits. The paper gives
    neither padding nor strides: convolutions keep the size (padding 2), pooling halves it (stride
    2, padding 1).

    Args:
        input_shape: Shape of one input ``(channels, height, width)``.
        num_classes: Number of logits.
        width: Channels of the convolutions; the dense layers shrink and grow with it.
        depth: Number of convolutional blocks.
        crop: Pixels cut off each side.
        dropout: Probability of dropping a unit of a dense layer.
        input_dropout: Probability of dropping an input.
        input_noise: Standard deviation of Gaussian noise on the inputs, in their units.
        hidden_noise: Standard deviation of Gaussian noise on the dense activations.

    Raises:
        ValueError: If a setting is out of range, or nothing is left of the image.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        width: int = 200,
        depth: int = 2,
        crop: int = 2,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        input_noise: float = 0.0,
        hidden_noise: float = 0.0,
    ) -> None:
        super().__init__()
        _check_sizes(width=width, depth=depth, num_classes=num_classes)
        channels, *sides = _image_shape(input_shape)
        sides = [side - 2 * crop for side in sides]
        if crop < 0 or min(sides) < 1:
            raise ValueError(
                f"crop must leave some of the image, got {crop} pixels off each side of "
                f"{tuple(input_shape)}"
            )
        self.crop = crop
        layers = _disturb(input_dropout=input_dropout, input_noise=input_noise)
        for _ in range(depth):
            layers += [
                nn.Conv2d(channels, width, 5, padding=2),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.MaxPool2d(3, stride=2, padding=1),
            ]
            channels = width
            sides = [(side + 1) // 2 for side in sides]
        layers.append(nn.Flatten())
        features = channels * prod(sides)
        for units in (384, 192):
            units = max(1, round(units * width / 200))
            layers += [nn.Linear(features, units), nn.BatchNorm1d(units), nn.ReLU()]
            layers += _disturb(dropout=dropout, hidden_noise=hidden_noise)
            features = units
        self.layers = nn.Sequential(*layers, nn.Linear(features, num_classes))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of shape ``(n, num_classes)``."""
        return self.layers(F.pad(inputs, [-self.crop] * 4) if self.crop else inputs)


MODELS = {"mlp": MLP, "tiny-mlp": TinyMLP, "small-alexnet": SmallAlexNet}
NAMES = tuple(MODELS)


def build(name: str, input_shape: Sequence[int], num_classes: int, **settings: float) -> nn.Module:
    """Build a model by name, with fresh weights from the global random state.

    Args:
        name: One of ``NAMES``.
        input_shape: Shape of one input.
        num_classes: Number of logits.
        **settings: Fields of the model; what is left out keeps its default.

    Returns:
        The model.

    Raises:
        ValueError: If the name is unknown or a setting is out of range.
    """
    if name not in MODELS:
        raise ValueError(f"model must be one of {', '.join(NAMES)}, got {name!r}")
    return MODELS[name](input_shape, num_classes, **settings)  # type: ignore[arg-type]


def _disturb(**settings: float) -> list[nn.Module]:
    """Dropout and noise by the names of their settings, so that an error can name them."""
    (dropout_name, dropout), (noise_name, noise) = settings.items()
    if not 0 <= dropout < 1:
        raise ValueError(f"{dropout_name} must be at least 0 and less than 1, got {dropout}")
    if not 0 <= noise < inf:
        raise ValueError(f"{noise_name} must be finite and not negative, got {noise}")
    disturbances: list[nn.Module] = []
    if noise:
        disturbances.append(GaussianNoise(noise))
    if dropout:
        disturbances.append(nn.Dropout(dropout))
    return disturbances


def _image_shape(input_shape: Sequence[int]) -> Sequence[int]:
    if len(input_shape) != 3:
        raise ValueError(
            "input_shape must be (channels, height, width) for this model, "
            f"got {tuple(input_shape)}"
        )
    return input_shape


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if check_whole(name, size) < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
