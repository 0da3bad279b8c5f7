"""A function that is named on the command line, and what it returns."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["call_factory"]


def call_factory(argument: str, name: str) -> Any:
    """Import a function and call it without arguments.

    Args:
        argument: What it is for, in errors: ``"model"`` or ``"data"``.
        name: ``package.module:function``, looked up in the current folder as well, or
            ``path/to/file.py:function``.

    Returns:
        What the function returns.

    Raises:
        ValueError: If there is no such function.
    """
    where, _, function = name.rpartition(":")
    if not where or not function.isidentifier():
        raise ValueError(
            f"{argument} must be package.module:function or path/to/file.py:function, got {name!r}"
        )
    module = _from_file(argument, Path(where)) if where.endswith(".py") else _named(argument, where)
    factory = getattr(module, function, None)
    if not callable(factory):
        raise ValueError(
            f"{argument} {name!r}: {where} has no function {function}; define it, without arguments"
        )
    return factory()


def _from_file(argument: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"{argument} {str(path)!r} is no file; name one that holds the function")
    _look_in(path.resolve().parent)
    name = f"memtools_factory_{path.resolve().stem}_{argument}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and annotations look their own module up
    spec.loader.exec_module(module)
    return module


def _named(argument: str, name: str) -> ModuleType:
    _look_in(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # what it imports itself is missing
        raise ValueError(
            f"{argument} module {name!r} cannot be imported ({error}); install its package, or "
            "call memtools in the folder that holds it"
        ) from error


def _look_in(folder: Path) -> None:
    # As Python does for a script; the command `memtools` is a script in another folder.
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
