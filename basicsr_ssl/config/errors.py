"""What is wrong with an option file, said all at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Problem(NamedTuple):
    """One thing to mend: where it was written, at which key, and what is wrong."""

    keys: tuple[str, ...]
    message: str
    file: str = ''

    def __str__(self) -> str:
        return ': '.join(part for part in (self.file, ':'.join(self.keys), self.message) if part)


class OptionsError(ValueError):
    """Options that cannot be used; ``problems`` lists everything that was found, the message shows all of it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(dict.fromkeys(problems))
        head = '' if len(self.problems) == 1 else f'{len(self.problems)} errors in the options:\n  '
        super().__init__(head + '\n  '.join(map(str, self.problems)))
