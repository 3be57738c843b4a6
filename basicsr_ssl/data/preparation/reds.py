"""REDS with its validation clips as the clips 240 to 269 of the training folder, as BasicSR expects it.

The clips are linked there; what was downloaded stays where it is.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from basicsr_ssl.data.catalog import TRAINING_SETS

_FIRST_VALIDATION_CLIP = 240


def locate_clips(reds: Path, subset: str) -> dict[str, Path]:
    """Where the clips of a subset lie now, by their number among the 270.

    Args:
        reds: the folder ``REDS``.
        subset: below the training folder, ``'train_sharp'`` or ``'train_sharp_bicubic/X4'``.
    """
    found = {}
    for number, clip in enumerate(TRAINING_SETS['reds'].clips or ()):
        places = [reds / subset / clip]
        if number < _FIRST_VALIDATION_CLIP:
            places.append(reds / 'train' / subset / clip)
        else:
            name = f'{number - _FIRST_VALIDATION_CLIP:03d}'
            validation = subset.replace('train_', 'val_', 1)
            places += [reds / 'val' / validation / name, reds / validation / name]
        if place := next((place for place in places if place.is_dir()), None):
            found[clip] = place
    return found


def link_clip(place: Path, target: Path) -> None:
    """Make the folder ``place`` appear as ``target``: by a relative link, else by hard links or copies of the files.

    Raises:
        OSError: not possible, for lack of permission, say.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink():  # one that leads nowhere, or the clip would have been found there
        target.unlink()
    try:
        # seen from where the folder really is, should a part of its path be a link
        target.symlink_to(os.path.relpath(place.absolute(), target.parent.resolve()), target_is_directory=True)
    except OSError:
        temporary = target.with_name(f'.{target.name}.tmp')
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            shutil.copytree(place, temporary, copy_function=_hard_link_or_copy)
            temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _hard_link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
