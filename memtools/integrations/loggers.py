"""Where the values of a :class:`memtools.Probe` go: each logger as ``log(values, step)``.

None of the packages is imported here: what is passed is the user's own writer or run.
"""

from typing import Any, Protocol

from memtools.probe import Log

__all__ = ["to_tensorboard", "to_trackio", "to_wandb"]


class _Writer(Protocol):
    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> object: ...


class _Run(Protocol):
    def log(self, data: dict[str, Any], /, step: int) -> object: ...


class _Trackio(Protocol):
    def log(self, metrics: dict[str, Any], /, step: int) -> object: ...


def to_tensorboard(writer: _Writer) -> Log:
    """Log to TensorBoard.

    Args:
        writer: A ``torch.utils.tensorboard.SummaryWriter``, which stays the user's to close.

    Returns:
        ``log(values, step)``.

    Example:
        >>> class Writer:
        ...     def add_scalar(self, tag, scalar_value, global_step):
        ...         print(tag, scalar_value, global_step)
        >>> to_tensorboard(Writer())({"probe/loss": 0.5}, 3)
        probe/loss 0.5 3
    """

    def log(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return log


def to_wandb(run: _Run) -> Log:
    """Log to Weights & Biases.

    It drops what is logged with a smaller step than before: log everything else with steps of the
    same kind.

    Args:
        run: What ``wandb.init()`` returns.

    Returns:
        ``log(values, step)``.

    Example:
        >>> class Run:
        ...     def log(self, data, step):
        ...         print(data, step)
        >>> to_wandb(Run())({"probe/loss": 0.5}, 3)
        {'probe/loss': 0.5} 3
    """

    def log(values: dict[str, float], step: int) -> None:
        run.log(values, step=step)

    return log


def to_trackio(run: _Trackio) -> Log:
    """Log to trackio.

    Args:
        run: The module ``trackio`` after ``trackio.init(...)``, or what that returns.

    Returns:
        ``log(values, step)``.

    Example:
        >>> class Run:
        ...     def log(self, metrics, step):
        ...         print(metrics, step)
        >>> to_trackio(Run())({"probe/loss": 0.5}, 3)
        {'probe/loss': 0.5} 3
    """

    def log(values: dict[str, float], step: int) -> None:
        run.log(values, step=step)

    return log
