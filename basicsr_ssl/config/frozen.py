"""Options that nobody can change: whoever holds them can rely on what was validated."""

from __future__ import annotations

import copy
from typing import Any, NoReturn


def freeze(tree: Any) -> Any:
    """A copy in which no mapping and no list can be changed; equal to the original, and JSON and pickle like it."""
    if isinstance(tree, dict):
        return FrozenDict({key: freeze(value) for key, value in tree.items()})
    return FrozenList(map(freeze, tree)) if isinstance(tree, (list, tuple)) else tree


class _Frozen:
    """Read-only. A deep copy is an ordinary container: BasicSR's builders copy their options and change the copy."""

    def _refuse(self, *args: object, **kwargs: object) -> NoReturn:
        raise TypeError('options are read-only: change the option file, or a copy (copy.deepcopy)')

    __setitem__ = __delitem__ = __ior__ = __iadd__ = __imul__ = _refuse
    append = clear = extend = insert = pop = popitem = remove = reverse = setdefault = sort = update = _refuse


class FrozenDict(_Frozen, dict):
    def __deepcopy__(self, memo: dict) -> dict:
        return {key: copy.deepcopy(value, memo) for key, value in self.items()}

    def __reduce__(self) -> Any:
        return type(self), (dict(self),)


class FrozenList(_Frozen, list):
    def __deepcopy__(self, memo: dict) -> list:
        return [copy.deepcopy(value, memo) for value in self]

    def __reduce__(self) -> Any:
        return type(self), (list(self),)
