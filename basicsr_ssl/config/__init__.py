"""Option files: read, merged, validated, and handed on as plain nested dicts with all defaults filled in.

``sections`` holds every key with its type and meaning, ``registered`` the keys of what stands in BasicSR's registries,
``files`` reading and merging, ``stages`` what must fit together, ``schema`` the JSON schema, ``errors`` how problems
are reported: all at once, each with the file and the key where it was written.

An option file is one stage, or a recipe: ``stages:``, each merged over the top level.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from basicsr_ssl import zoo
from basicsr_ssl.config.errors import OptionsError, Problem
from basicsr_ssl.config.files import (
    FORCE,
    Tree,
    expand_variables,
    get,
    has,
    leaves,
    merge,
    parse_overrides,
    read_layers,
    write_yaml,
)
from basicsr_ssl.config.schema import json_schema
from basicsr_ssl.config.sections import NETWORK_LABEL, Path, Recipe, Stage
from basicsr_ssl.config.stages import check_recipe, check_single, check_stages

__all__ = ['NETWORK_LABEL', 'OptionsError', 'Problem', 'check_files', 'digest', 'fetch_files', 'json_schema',
           'load_options', 'save_options', 'stage_options']


def load_options(path: str | os.PathLike, overrides: Iterable[str] = (), debug: bool = False,
                 auto_resume: bool = False) -> dict[str, Any]:
    """Read an option file.

    Args:
        path: YAML file.
        overrides: BasicSR's ``--force_yml``, e.g. ``train:total_iter=100`` or ``stages:finetune:train:total_iter=100``.
        debug: BasicSR's ``--debug``.
        auto_resume: BasicSR's ``--auto_resume``.

    Returns:
        A single stage: complete, with all defaults. A recipe: the common keys and ``report`` with all defaults, the
        other sections and ``stages`` as written (with ``_base_`` and overrides merged in), since only a stage is
        complete; ``stage_options`` gives those.

    Raises:
        OptionsError: lists everything that is wrong with the file, and with each of its stages.
    """
    layers = read_layers(path)
    tree: Tree = {}
    for _, content in layers:
        tree = merge(tree, content)
    forced, problems = parse_overrides(overrides, tree)
    # after merging: a variable that only a replaced value needs need not be set
    tree, unset = expand_variables(merge(tree, forced))
    if auto_resume:
        tree['auto_resume'] = True
    if debug:
        tree['debug'] = True

    if tree.get('stages') is None:
        tree.pop('stages', None)
        options, more = check_single(tree)
    else:
        options, more = check_recipe(tree)
    if problems := [*problems, *unset, *more]:
        main = layers[-1][0]
        layers.append((FORCE, forced))
        raise OptionsError([problem._replace(file=problem.file or _origin(problem.keys, layers, main))
                            for problem in problems])
    assert options is not None
    return options


def _origin(keys: tuple[str, ...], layers: list[tuple[str, Tree]], main: str) -> str:
    """The file that wrote a key last; of a key that is missing, the main file."""
    return next((file for file, content in reversed(layers) if keys and has(content, keys)), main)


def stage_options(options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The complete single-stage options of every stage of a recipe, in order.

    A stage is the top level with the stage's own keys merged over it. Its name is ``<recipe>/<stage>``, and it starts
    from the output of the stage before it (``path.pretrain_network_g: stage://<previous>``) unless it says otherwise.
    Sections that its kind does not use are None; a pruning stage trains for 0 iterations.

    Raises:
        OptionsError: as ``load_options``.
    """
    stages, problems = check_stages(options)
    if problems:
        raise OptionsError(problems)
    return stages


def check_files(options: Mapping[str, Any]) -> None:
    """Check that every file and folder that the options name is there, before anything starts.

    ``zoo://NAME`` need not be there if it can be downloaded, see ``fetch_files``.

    Args:
        options: of one stage or a recipe, as ``load_options`` gives them.

    Raises:
        OptionsError: names all that are missing, and the keys to set.
    """
    named: list[tuple[tuple[str, ...], Any, str]] = []  # key, file, how to get the file
    for name, stage in stage_options(options).items() if 'stages' in options else [('', options)]:
        trained_on = get(stage, 'datasets', 'train', 'name')
        dense = f'options/train/BasicVSR/train_BasicVSR*{f"_{trained_on}" if trained_on else ""}_dense_*.yml'
        files = [(('datasets', *keys), value, 'datasets/README.md says what goes where, DATA_ROOT says where that is')
                 for keys, value in leaves(stage['datasets'])
                 if keys[-1].startswith('dataroot') or keys[-1] == 'meta_info_file']
        files += [(keys, get(stage, *keys), remedy) for keys, remedy in (
            (('path', 'pretrain_network_g'), f'download it (see experiments/README.md), or train it with {dense}'),
            (('path', 'pretrain_network_teacher'), f'it is the dense network, trained with {dense}'),
            (('path', 'resume_state'), '--auto_resume finds the newest state'),
            (('network_g', 'spynet_path'), 'download it, see experiments/README.md'))]
        named += [(('stages', name, *keys) if has(get(options, 'stages', name), keys) else keys, value, remedy)
                  for keys, value, remedy in files]
    named += [(('report', 'rows', label), value, 'another recipe makes it, or download it')
              for label, value in (get(options, 'report', 'rows') or {}).items()]

    missing: dict[str, tuple[str, dict[tuple[str, ...], None]]] = {}  # each file once, with all keys that name it
    for keys, value, remedy in named:
        if not isinstance(value, str) or value.startswith('stage://') or value == 'bicubic':
            continue
        if value.startswith(zoo.PREFIX):
            entry = zoo.find(value)
            there, remedy = entry.is_at_hand(), f'no program can download it: {entry.by_hand()}'
        else:
            there = os.path.exists(value)
        if not there:
            missing.setdefault(value, (remedy, {}))[1][keys] = None
    if missing:
        raise OptionsError([
            Problem(first, f'{file} does not exist: {remedy}; or set this key' + ''.join(
                f', {":".join(keys)}' for keys in more))
            for file, (remedy, (first, *more)) in missing.items()])


def fetch_files(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with a local file in place of every ``zoo://NAME``, which is downloaded if needed.

    Args:
        options: of one stage or a recipe, as ``load_options`` gives them.

    Raises:
        DownloadError: a file could not be had; says how to get it by hand.
    """
    return {key: _fetched(value) for key, value in options.items()}


def _fetched(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _fetched(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_fetched(value) for value in tree]
    return zoo.resolve(tree) if isinstance(tree, str) else tree


def save_options(options: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Save options so that ``load_options`` of the file gives them back. The file appears whole or not at all.

    Keys that the training code has added are left out.

    Raises:
        OSError: the file could not be written.
    """
    known = {**Stage.model_fields, **Recipe.model_fields}
    tree = {key: value for key, value in options.items() if key in known}
    tree['path'] = {key: value for key, value in options['path'].items() if key in Path.model_fields}
    write_yaml(path, tree, 'All options of this run, with defaults filled in.')


# What decides a stage's output. Validation, logging and the way data are loaded do not.
_DECISIVE = ('model_type', 'scale', 'manual_seed', 'network_g', 'train', 'sparsity', 'pruning')
_LOADING = ('name', 'io_backend', 'num_worker_per_gpu', 'dataset_enlarge_ratio', 'prefetch_mode',
            'num_prefetch_queue', 'pin_memory', 'persistent_workers')


def digest(options: Mapping[str, Any]) -> str:
    """SHA-256, in hex digits, of everything in a stage's options that decides its output.

    The files that a stage starts from count by their content, not by their names: add their SHA-256. Keys that the
    training code adds make no difference.
    """
    decisive: Tree = {key: options.get(key) for key in _DECISIVE}
    decisive['path'] = {key: get(options, 'path', key) for key in ('param_key_g',)}
    if options.get('model_type') != 'PruningModel':
        data = get(options, 'datasets', 'train') or {}
        decisive['data'] = {key: value for key, value in data.items() if key not in _LOADING}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
