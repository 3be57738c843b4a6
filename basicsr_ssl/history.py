"""The course of a training: ``history.jsonl``, a JSON object a line, in the order of iterations.

Every line has ``iter``. Those written with the log have ``losses`` (and what a method measures beside them), ``rates``
by parameter group, and in sparsity learning ``gates``: ``{'top': t, 'all': counts, 'selected': counts}``, histograms of
the magnitudes in equal bins from 0 to t. Those written after a validation have ``metrics`` by test set.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from basicsr.utils import get_root_logger

from basicsr_ssl.evaluation.result import to_json_line
from basicsr_ssl.files import write_text

NAME = 'history.jsonl'


class History:
    """What one process writes.

    Args:
        folder: of the run.
        start: the iteration after which it goes on; what is written of later ones belongs to a course that was left.
    """

    def __init__(self, folder: str | os.PathLike, start: int) -> None:
        self._path = Path(folder, NAME)
        kept = [entry for entry in read_history(folder) if entry['iter'] <= start] if start else []
        write_text(self._path, ''.join(map(to_json_line, kept)))
        self._failed = False

    def add(self, iteration: int, **entry: Any) -> None:
        """Write a line. If it cannot be written, the log says so, and training goes on without its history."""
        if self._failed:  # what followed half a line could not be read
            return
        try:
            with self._path.open('a', encoding='utf-8') as stream:
                stream.write(to_json_line({'iter': iteration, **entry}))
        except OSError as error:
            get_root_logger().warning(f'{self._path} cannot be written ({error}); training goes on without it')
            self._failed = True


def read_history(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """All lines, of a run of this version or none; a last one that is cut off, as by a full disk, is left out.

    Raises:
        OSError: it cannot be read.
        ValueError: it is something else; names the file.
    """
    path = Path(folder, NAME)
    if not path.is_file():
        return []
    entries = []
    lines = path.read_text(encoding='utf-8').splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            entries.append({'iter': int(entry['iter']), **entry})
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines) and not line.endswith('\n'):
                break
            raise ValueError(f'{path}, line {number} is not of a training ({error}): remove the file, a training '
                             'goes on without it') from error
    return entries
