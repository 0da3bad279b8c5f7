"""Optional packages, imported when they are used."""

import importlib
from types import ModuleType

__all__ = ["require"]


def require(module: str, extra: str = "study") -> ModuleType:
    """Import an optional package, or say how to install it.

    Args:
        module: Name of the module.
        extra: Extra of memtools that brings it.

    Returns:
        The module.

    Raises:
        ModuleNotFoundError: If its package is not installed; the message holds the command.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.split(".")[0]
        if error.name is None or error.name.split(".")[0] != package:
            raise
        raise ModuleNotFoundError(
            f'{package} is not installed; run: pip install "memtools[{extra}]"', name=package
        ) from None
