"""Option files: read, merged, validated, and handed on as plain nested dicts with all defaults filled in.

``sections`` holds every key with its type and meaning, ``registered`` the keys of what stands in BasicSR's registries,
``files`` reading and merging, ``stages`` what must fit together, ``schema`` the JSON schema, ``errors`` how problems
are reported: all at once, each with the file and the key where it was written.

An option file is one stage, or a recipe: ``stages:``, each merged over the top level.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
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
from basicsr_ssl.config.frozen import FrozenDict, freeze
from basicsr_ssl.config.registered import stage_kind
from basicsr_ssl.config.schema import json_schema
from basicsr_ssl.config.sections import NETWORK_LABEL, Recipe, Stage
from basicsr_ssl.config.stages import STAGE_REF, check_recipe, check_single

__all__ = ['NETWORK_LABEL', 'OptionsError', 'Problem', 'check_files', 'digest', 'fetch_files', 'json_schema',
           'load_options', 'save_options', 'stage_options', 'with_stage_outputs']


class RecipeOptions(FrozenDict):
    """Options of a recipe, with the complete ones of its stages, which were validated together."""

    stages: dict[str, FrozenDict]


def load_options(path: str | os.PathLike, overrides: Iterable[str] = (), debug: bool = False,
                 auto_resume: bool = False) -> FrozenDict:
    """Read an option file.

    Args:
        path: YAML file.
        overrides: BasicSR's ``--force_yml``, e.g. ``train:total_iter=100`` or ``stages:finetune:train:total_iter=100``.
        debug: BasicSR's ``--debug``.
        auto_resume: BasicSR's ``--auto_resume``.

    Returns:
        Read-only. A single stage: complete, with all defaults. A recipe: the common keys and ``report`` with all
        defaults, the other sections and ``stages`` as written (with ``_base_`` and overrides merged in), since only a
        stage is complete; ``stage_options`` gives those.

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

    stages: dict[str, Tree] = {}
    if tree.get('stages') is None:
        tree.pop('stages', None)
        options, more = check_single(tree)
    else:
        options, stages, more = check_recipe(tree)
    if problems := [*problems, *unset, *more]:
        main = layers[-1][0]
        layers.append((FORCE, forced))
        raise OptionsError([problem._replace(file=problem.file or _origin(problem.keys, layers, main))
                            for problem in problems])
    if not stages:
        return freeze(options)
    recipe = RecipeOptions(freeze(options))
    recipe.stages = {name: freeze(stage) for name, stage in stages.items()}
    return recipe


def _origin(keys: tuple[str, ...], layers: list[tuple[str, Tree]], main: str) -> str:
    """The file that wrote a key last; of a key that is missing, the main file."""
    return next((file for file, content in reversed(layers) if keys and has(content, keys)), main)


def stage_options(recipe: Mapping[str, Any]) -> dict[str, FrozenDict]:
    """The complete single-stage options of every stage of a recipe that ``load_options`` gave, in order.

    A stage is the top level with the stage's own keys merged over it. Its name is ``<recipe>/<stage>``, and it starts
    from the output of the stage before it (``path.pretrain_network_g: stage://<previous>``) unless it says otherwise.
    Sections that its kind does not use are None; a stage that does not train does so for 0 iterations.
    """
    assert isinstance(recipe, RecipeOptions)
    return dict(recipe.stages)


def with_stage_outputs(options: Mapping[str, Any], outputs: Mapping[str, str]) -> FrozenDict:
    """The options with the file that a stage left behind in place of every ``stage://NAME``."""
    return _replaced(options, lambda text: outputs[text.removeprefix(STAGE_REF)] if text.startswith(STAGE_REF)
                     else text)


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
        if not isinstance(value, str) or value.startswith(STAGE_REF) or value == 'bicubic':
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


def fetch_files(options: Mapping[str, Any]) -> FrozenDict:
    """The options with a local file in place of every ``zoo://NAME``, which is downloaded if needed.

    Raises:
        DownloadError: a file could not be had; says how to get it by hand.
    """
    return _replaced(options, zoo.resolve)


def _replaced(tree: Any, replace: Callable[[str], str]) -> Any:
    """A read-only copy of options with ``replace`` applied to all texts."""
    if isinstance(tree, RecipeOptions):
        recipe = RecipeOptions(_replaced(dict(tree), replace))
        recipe.stages = {name: _replaced(stage, replace) for name, stage in tree.stages.items()}
        return recipe
    if isinstance(tree, Mapping):
        return FrozenDict({key: _replaced(value, replace) for key, value in tree.items()})
    if isinstance(tree, list):
        return freeze([_replaced(value, replace) for value in tree])
    return replace(tree) if isinstance(tree, str) else tree


def save_options(options: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Save options so that ``load_options`` of the file gives them back. The file appears whole or not at all.

    Raises:
        OSError: the file could not be written.
    """
    known = {**Stage.model_fields, **Recipe.model_fields}
    tree = copy.deepcopy({key: value for key, value in options.items() if key in known})
    write_yaml(path, tree, 'All options of this run, with defaults filled in.')


# What does not decide a stage's output: where it lies, what is looked at on the way, how the work is shared out. All
# else does, and sections and keys that are yet to come will.
_INDIFFERENT = ('name', 'num_gpu', 'find_unused_parameters', 'path', 'datasets', 'logger', 'dist_params', 'auto_resume',
                'debug', 'val', 'report')
_LOADING = ('name', 'io_backend', 'num_worker_per_gpu', 'dataset_enlarge_ratio', 'prefetch_mode',
            'num_prefetch_queue', 'pin_memory', 'persistent_workers')
# Keys of later versions count only where they are set, so that what was finished before stays finished.
_LATER: dict[tuple[str, ...], Any] = {
    ('compression',): None, ('sparsity', 'type'): 'SSL', ('path', 'reinitialise'): False,
    ('pruning', 'structure'): 'units', ('pruning', 'ratios'): None, ('pruning', 'layout'): 'free',
    ('pruning', 'flow'): False, ('pruning', 'flow_min_keep'): None, ('pruning', 'flow_ratio'): None,
    ('pruning', 'target_ms'): None, ('pruning', 'device'): 'cpu', ('pruning', 'threads'): None,
    ('train', 'distill_opt'): None}


def digest(options: Mapping[str, Any]) -> str:
    """SHA-256, in hex digits, of everything in a stage's options that decides its output.

    The files that a stage starts from count by their content, not by their names: add their SHA-256.
    """
    decisive: Tree = copy.deepcopy({key: value for key, value in options.items() if key not in _INDIFFERENT})
    decisive['path'] = {key: get(options, 'path', key) for key in ('param_key_g', 'reinitialise')}
    if 'train' in stage_kind(options['model_type']).sections:
        data = get(options, 'datasets', 'train') or {}
        decisive['data'] = {key: value for key, value in data.items() if key not in _LOADING}
    for keys, default in _LATER.items():
        if has(decisive, keys) and get(decisive, *keys) in (None, default):
            del get(decisive, *keys[:-1])[keys[-1]]
    if get(decisive, 'train', 'channels_last') is None and get(decisive, 'train'):
        decisive['train']['channels_last'] = False  # so it was before it could be left open: another rounding at most
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
