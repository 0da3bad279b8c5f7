"""Text that a terminal shows and does not obey: names in files may be anybody's."""

import unicodedata

__all__ = ["plain"]

TURNS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
"""Kinds of characters that turn the direction in which others are shown."""


def plain(text: str) -> str:
    r"""Control characters written out, line breaks and tabs aside.

    Args:
        text: What is to be shown.

    Returns:
        The same, with ``\x1b`` in the place of an escape character.

    Example:
        >>> plain("a" + chr(27) + "[31mb")
        'a\\x1b[31mb'
    """
    return "".join(_written_out(c) if _commands(c) else c for c in text)


def _commands(character: str) -> bool:
    is_control = unicodedata.category(character) == "Cc" and character not in "\n\t"
    return is_control or unicodedata.bidirectional(character) in TURNS


def _written_out(character: str) -> str:
    return character.encode("unicode_escape").decode()
