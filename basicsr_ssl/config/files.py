"""Option files as nested dicts: reading, merging, overriding, writing. Nothing here knows what the keys mean."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from basicsr_ssl.config.errors import OptionsError, Problem
from basicsr_ssl.files import write_text
from basicsr_ssl.terminal import suggest

Tree = dict[str, Any]
BASE, REPLACE = '_base_', '_replace_'
FORCE = '--force_yml'

# ${NAME} and ${NAME:-default} in texts: variables of the environment, as in the shell.
_VARIABLE = re.compile(r'\$\{([A-Za-z_]\w*)(?::-([^${}]*))?\}')

# YAML 1.2's floats: PyYAML follows YAML 1.1, where 1e-4 lacks a dot and is a string.
_FLOAT = re.compile(r'[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$')


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-4 as a number and refuses a key that is written twice (PyYAML keeps the last)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else '<<'
            if key != '<<' and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f'the key {key!r} is written twice',
                                                        key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes what ``_Loader`` reads back unchanged: no references, and quotes around text that looks like 1e-4."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver('tag:yaml.org,2002:float', _FLOAT, list('-+.0123456789'))


def read_layers(path: str | os.PathLike) -> list[tuple[str, Tree]]:
    """An option file and everything it is based on: ``(file, content)``, to be merged in this order.

    Raises:
        OptionsError: a file that does not exist, is no YAML mapping, or is based on itself.
    """
    return _layers(os.path.normpath(path), ())


def _layers(file: str, chain: tuple[str, ...]) -> list[tuple[str, Tree]]:
    if file in chain:
        circle = ' -> '.join([*chain, file])
        raise OptionsError([Problem((BASE,), f'files are based on each other in a circle: {circle}', chain[-1])])
    if not os.path.isfile(file):
        raise OptionsError([Problem((BASE,), f'{file} does not exist (paths are relative to the file that names them)',
                                    chain[-1]) if chain else Problem((), f'there is no option file {file}')])
    try:
        content = yaml.load(Path(file).read_text(encoding='utf-8'), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise OptionsError([Problem((), f'no valid YAML: {error}', file)]) from error
    if not isinstance(content, dict):
        raise OptionsError([Problem((), 'an option file consists of "key: value" lines, this one does not', file)])
    bases = content.pop(BASE, None) or []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise OptionsError([Problem((BASE,), 'should be a file or a list of files', file)])
    folder = os.path.dirname(file)
    return [layer for base in bases for layer in _layers(os.path.normpath(os.path.join(folder, base)), (*chain, file))
            ] + [(file, content)]


def merge(base: Mapping[str, Any], own: Mapping[str, Any]) -> Tree:
    """Merge ``own`` over ``base``: mappings key by key, everything else (lists too) is replaced.

    A mapping in ``own`` that holds ``_replace_: true`` takes the place of the base's whole mapping. The mark stays, so
    that it works again when a stage is merged over the top level; ``unmark`` removes it in the end.
    """
    if own.get(REPLACE) is True:
        return copy.deepcopy(dict(own))
    result = copy.deepcopy(dict(base))
    for key, value in own.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            result[key] = merge(old, value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def unmark(tree: Any) -> Any:
    """A copy without the ``_replace_`` marks."""
    if isinstance(tree, dict):
        return {key: unmark(value) for key, value in tree.items() if key != REPLACE}
    return copy.deepcopy(tree)


def expand_variables(tree: Any, keys: tuple[str, ...] = ()) -> tuple[Any, list[Problem]]:
    """A copy with the variables of the environment filled in, in every text: ``${NAME}``, ``${NAME:-default}``.

    As in the shell, the default stands in for a variable that is not set or empty; without a default that is a problem.
    What is filled in stays text, and is not expanded again.
    """
    if isinstance(tree, str):
        return _expanded(tree, keys)
    if isinstance(tree, list):
        pairs = [expand_variables(value, keys) for value in tree]
        return [value for value, _ in pairs], [problem for _, found in pairs for problem in found]
    if isinstance(tree, dict):
        named = {key: expand_variables(value, (*keys, str(key))) for key, value in tree.items()}
        return ({key: value for key, (value, _) in named.items()},
                [problem for _, found in named.values() for problem in found])
    return tree, []


def _expanded(text: str, keys: tuple[str, ...]) -> tuple[str, list[Problem]]:
    if '${' in _VARIABLE.sub('', text):
        return text, [Problem(keys, f'{text!r}: variables are written ${{NAME}} or ${{NAME:-default}}')]
    unset = [match[1] for match in _VARIABLE.finditer(text) if match[2] is None and not os.environ.get(match[1])]
    if unset:
        return text, [Problem(keys, f'{text!r} needs the environment variable {name}, which is not set: run `export '
                                    f'{name}=...` first, or write a default, ${{{name}:-...}}')
                      for name in dict.fromkeys(unset)]
    return _VARIABLE.sub(lambda match: os.environ.get(match[1]) or match[2], text), []


def get(tree: Any, *keys: str) -> Any:
    """The value at a path, None where there is none."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def has(tree: Any, keys: Sequence[str]) -> bool:
    """Whether a path exists, its value may be None."""
    return not keys or (isinstance(tree, dict) and keys[0] in tree and has(tree[keys[0]], keys[1:]))


def put(tree: Tree, keys: Sequence[str], value: Any) -> None:
    """Set the value at a path, making the mappings on the way."""
    for key in keys[:-1]:
        below = tree.get(key)
        tree[key] = tree = below if isinstance(below, dict) else {}
    tree[keys[-1]] = value


def parse_overrides(overrides: Iterable[str], tree: Tree) -> tuple[Tree, list[Problem]]:
    """Turn ``train:total_iter=100`` into a layer to merge over ``tree``.

    Keys that the file does not write may be set; whether they exist is for the validation to say. But the names that
    a user chooses (of stages, datasets, metrics, report rows) must be there already.

    An override of the top level also reaches every stage that sets the same key itself, since it would have no effect
    otherwise; except under ``path``, which connects the stages.
    """
    layer: Tree = {}
    problems = []
    for entry in overrides:
        name, equals, text = entry.partition('=')
        keys = tuple(key.strip() for key in name.split(':'))
        try:
            value = None if text.strip().lower() == 'none' else yaml.load(text, _Loader)
        except yaml.YAMLError:
            value = text.strip()  # e.g. a Windows path, or anything else with a colon and a space
        if not equals or not all(keys):
            problems.append(Problem((), f'{entry!r} should look like train:total_iter=100', FORCE))
            continue
        if wrong := _unknown_name(keys, tree):
            problems.append(wrong)
            continue
        put(layer, keys, value)
        if keys[0] not in ('stages', 'path'):
            for stage, content in (get(tree, 'stages') or {}).items():
                if has(content, keys):
                    put(layer, ('stages', stage, *keys), value)
    return layer, problems


def _unknown_name(keys: tuple[str, ...], tree: Tree) -> Problem | None:
    for i, key in enumerate(keys[:-2]):
        if key not in ('stages', 'datasets', 'metrics', 'rows'):
            continue
        places = [keys[:i + 1]]
        if keys[0] == 'stages' and i > 1:
            places.append(keys[2:i + 1])  # what the stage takes from the top level
        names = {str(name) for place in places if isinstance(known := get(tree, *place), dict) for name in known}
        if keys[i + 1] not in names:
            return Problem(keys, f'there is no {keys[i + 1]!r} in {":".join(keys[:i + 1])}'
                           + suggest(keys[i + 1], names), FORCE)
    return None


def write_yaml(path: str | os.PathLike, tree: Mapping[str, Any], comment: str = '') -> None:
    """Write a tree as YAML, whole or not at all.

    Raises:
        OSError: the file could not be written.
    """
    write_text(path, ''.join(f'# {line}\n' for line in comment.splitlines())
               + yaml.dump(dict(tree), Dumper=_Dumper, sort_keys=False, width=120))


def leaves(tree: Any) -> Iterable[tuple[tuple[str, ...], Any]]:
    """``(path, value)`` of everything in a tree that is no mapping or list."""
    if not isinstance(tree, (dict, list)):
        yield (), tree
        return
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        for path, leaf in leaves(value):
            yield (str(key), *path), leaf
