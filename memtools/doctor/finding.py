"""One line of a diagnosis."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding"]


@dataclass(frozen=True)
class Finding:
    """What was found out about one thing.

    Attributes:
        part: What kind of thing it is: the heading it stands under.
        name: The thing.
        words: What there is to say of it.
        state: ``"ok"``, ``"missing"`` for what can be done without, or ``"failed"``.
    """

    part: str
    name: str
    words: str
    state: Literal["ok", "missing", "failed"] = "ok"
