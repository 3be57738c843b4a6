"""Text that others wrote, file names included, made fit for a message: it must not steer the terminal, nor fill it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 300  # characters of one name, or of an error that quotes a file


def plain(text: object) -> str:
    """Text for a terminal: what a file or a server says in it must not steer the terminal."""
    return ''.join(char if char.isprintable() or char in '\n\t' else '?' for char in str(text))


def shortened(text: object, most: int = LONGEST) -> str:
    """The beginning and the end of a text that is longer than ``most`` characters."""
    text = str(text)
    return text if len(text) <= most else f'{text[:most * 2 // 3]}...{text[-most // 4:]}'


def listed(names: Iterable[str], most: int = 8) -> str:
    """Names out of a file, for a message: the first ones, and nothing in them that a terminal would act on."""
    names = list(names)
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(ascii(name[:200])[1:-1][:200] for name in names[:most]) + more


def suggest(word: object, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: the most similar known one, or all of them if none is similar."""
    by_lower = {name.lower(): name for name in sorted(known)}
    if close := difflib.get_close_matches(str(word).lower(), by_lower, n=1):
        return f'; did you mean {by_lower[close[0]]!r}?'
    return f'; known are {", ".join(by_lower.values())}' if by_lower else ''
