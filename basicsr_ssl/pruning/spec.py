"""A network as data: everything needed to build it, except its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

FORMAT = 2  # the newest that is read; what older versions can read too is written as 1


@dataclass(frozen=True)
class Spec:
    """What to build: an arch, its arguments, and the width of every prunable group.

    Attributes:
        arch: name in BasicSR's arch registry.
        args: constructor arguments of the dense network (JSON values only).
        widths: units kept, by group name; groups that are not named keep all their units.
        index: which units of the full layer are kept, ascending, by group name. Only for groups whose network
            gathers or scatters (``Group.indexed``) and that are not full; other groups need no index, because the
            layers before and after them shrank together.
        gates: kind of the gates that the layers carry (``pruning/gates.py``); empty for none. Gates of units go with
            full widths only, masks with any.
    """

    arch: str
    args: Mapping[str, Any] = field(default_factory=dict)
    widths: Mapping[str, int] = field(default_factory=dict)
    index: Mapping[str, Sequence[int]] = field(default_factory=dict)
    gates: str = ''

    @property
    def form(self) -> str:
        """``'gated'`` (of any kind), ``'compact'`` (some group lost units) or ``'dense'``."""
        return 'gated' if self.gates else 'compact' if self.widths else 'dense'

    def to_json(self) -> str:
        older = self.gates in ('', 'scale')
        return json.dumps({
            'format': 1 if older else 2,
            'arch': self.arch,
            'args': dict(self.args),
            'widths': dict(self.widths),
            'index': {name: list(units) for name, units in self.index.items()},
            **({'gated': bool(self.gates)} if older else {'gates': self.gates}),
        })

    @classmethod
    def from_json(cls, text: str) -> Spec:
        """Inverse of ``to_json``.

        Raises:
            ValueError: the text is no spec, or of a format newer than this version reads.
        """
        try:
            data = json.loads(text)
            version = data.pop('format')
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError('not a network spec: expected a JSON object with the keys '
                             'format, arch, args, widths, index, gated') from error
        if version not in (1, FORMAT):
            raise ValueError(f'the network spec has format {version}, this version of basicsr_ssl reads format '
                             f'{FORMAT}: install a newer basicsr_ssl')
        fields = {'arch': str, 'args': dict, 'widths': dict, 'index': dict,
                  **({'gated': bool} if version == 1 else {'gates': str})}
        wrong = [key for key, kind in fields.items() if not isinstance(data.get(key), kind)]
        if wrong or set(data) != set(fields):
            names = ', '.join(wrong) or ', '.join(sorted(set(data) - set(fields)))
            raise ValueError(f'damaged network spec: missing, unknown or ill-typed entries: {names}')
        numbers = [('widths', [*data['widths'].values()]), *(('index', units) for units in data['index'].values())]
        for key, values in numbers:
            if not isinstance(values, list) or not all(type(value) is int for value in values):
                raise ValueError(f'damaged network spec: {key} should hold integers only')
        if version == 1:
            data['gates'] = 'scale' if data.pop('gated') else ''
        return cls(**data)

    def build_arguments(self) -> dict[str, Any]:
        """Keyword arguments for the arch's constructor."""
        form = {'gates': self.gates, 'widths': dict(self.widths), 'index': dict(self.index)}
        return {**self.args, **{key: value for key, value in form.items() if value}}
