"""Checks of whole stages and recipes: what a kind of stage needs, and what must fit together across sections.

The checks across sections look at the options as they were written, so that they find what they can even when other
things are wrong, and everything is reported at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from basicsr_ssl import zoo
from basicsr_ssl.config.errors import Problem
from basicsr_ssl.config.files import Tree, get, has, merge, unmark
from basicsr_ssl.config.registered import MISSING, Section, registered_names, registry, section_of, stage_kinds
from basicsr_ssl.config.sections import NETWORK_LABEL, Recipe, Report, Stage, Train
from basicsr_ssl.evaluation.result import COST_FIGURES
from basicsr_ssl.terminal import suggest

STAGE_REF = 'stage://'
NETWORK_FILES = (('path', 'pretrain_network_g'), ('path', 'pretrain_network_teacher'), ('network_g', 'spynet_path'))
# The sections that are ingredients of some kinds of stage; each kind says which of them it uses.
INGREDIENTS = ('train', 'sparsity', 'pruning', 'compression')
# Losses that need a teacher, and what they compare with.
OF_TEACHER = {'temporal_opt': 'the dense network', 'distill_opt': 'the output of a larger network'}
DEBUG_FREQ = 8  # BasicSR's interval of validations and of saved states under --debug
_ONLY_A_TEST = Problem(('name',), f'{NETWORK_LABEL} stands for the network that is tested; name a training without it')


def check_single(tree: Tree) -> tuple[Tree | None, list[Problem]]:
    """Validate an option file without ``stages``: its complete options (None if there are problems), and problems."""
    tree = unmark(tree)
    report = tree.pop('report', None)  # of a file that only tests
    options, problems = _check_stage(tree, tree)
    if report is not None:
        checked, found = _validate(Report, report)
        problems += [Problem(('report', *keys), message) for _, keys, message in found]
        problems += _report_problems(report, [], tree)
        if options is not None:
            options['report'] = checked
    return (None if problems else options), problems


def check_recipe(tree: Tree) -> tuple[Tree | None, dict[str, Tree], list[Problem]]:
    """Validate a recipe: its options as ``load_options`` gives them, the complete ones of its stages, and problems."""
    common, found = _validate(Recipe, {key: value if key == 'stages' else unmark(value) for key, value in tree.items()})
    problems = [Problem(keys, message) for _, keys, message in found]
    if NETWORK_LABEL in str(tree.get('name')):
        problems.append(_ONLY_A_TEST)
    if get(tree, 'path', 'resume_state') is not None:
        problems.append(Problem(('path', 'resume_state'), 'belongs to one stage: write it under stages:NAME:path, '
                                                          'or use --auto_resume'))
    written, stages = tree['stages'], {}
    if isinstance(written, dict) and written and all(
            isinstance(name, str) and isinstance(stage, dict) for name, stage in written.items()):
        stages, found = _check_stages(tree)
        problems += found
        if tree.get('report') is not None:
            problems += _report_problems(tree['report'], list(written), _merge_stage(tree, list(written)[-1]))
    if problems or common is None:
        return None, {}, list(dict.fromkeys(problems))
    return _debugged({key: value for key, value in common.items() if value is not None}), stages, []


def _check_stages(tree: Mapping[str, Any]) -> tuple[dict[str, Tree], list[Problem]]:
    """Validate the stages of a recipe: their complete options (if there are no problems), and problems.

    A problem with a key of the top level is reported there, once.
    """
    names = list(tree['stages'])
    stages: dict[str, Tree] = {}
    kinds: dict[str, Any] = {}
    places = defaultdict(list)  # the stages that meet a problem
    for name in names:
        own, merged = unmark(tree['stages'][name]), _merge_stage(tree, name)
        options, problems = _check_stage(merged, own, kinds, names)
        kinds[name] = merged.get('model_type')
        for problem in problems:
            inherited = has(tree, problem.keys) and not has(own, problem.keys)
            places[problem if inherited else problem._replace(keys=('stages', name, *problem.keys))].append(name)
        if options is not None:
            stages[name] = _debugged({**options, 'name': f'{tree.get("name")}/{name}'})
    return stages, [
        # of a top-level key that suits some stages only, say which ones it does not suit
        problem if problem.keys[0] == 'stages' or len(where) == len(names) or problem.message.startswith('unknown')
        else problem._replace(message=f'{problem.message} (in stage {", ".join(where)})')
        for problem, where in places.items()]


def _merge_stage(tree: Mapping[str, Any], name: str) -> Tree:
    """The top level with one stage merged over it, not checked yet."""
    own, names = tree['stages'][name], list(tree['stages'])
    top = {key: value for key, value in tree.items() if key not in ('stages', 'report')}
    if name != names[0] and not has(own, ('path', 'pretrain_network_g')) and isinstance(top.get('path', {}), dict):
        # the top level's network is where the recipe starts; later stages go on from one another
        top['path'] = {**top.get('path', {}), 'pretrain_network_g': STAGE_REF + names[names.index(name) - 1]}
    return {**unmark(merge(top, own)), 'name': f'recipe/{name}'}


def _check_stage(tree: Tree, own: Tree, earlier: Mapping[str, Any] | None = None, names: Collection[str] = ()
                 ) -> tuple[Tree | None, list[Problem]]:
    """Validate one stage.

    Args:
        tree: its complete options, as written.
        own: the part of them that is its own, not inherited from the top level of a recipe.
        earlier: model_type of the stages before it; None outside of a recipe.
        names: all stages of the recipe.
    """
    kind = tree.get('model_type')
    stage = stage_kinds().get(kind) if isinstance(kind, str) else None
    unused = [key for key in INGREDIENTS if stage is not None and key not in stage.sections]
    problems = _dataset_problems(tree)
    tree = _with_phases(tree)
    # What is inherited but not used need not be complete; misspelt keys in it are errors all the same.
    problems += [Problem(keys, message) for error, keys, message in _validate(Stage, tree)[1]
                 if error != MISSING or keys[0] not in unused]
    problems += [Problem((key,), f'{kind} does not use this section; remove it') for key in unused
                 if own.get(key) is not None and get(own, key, 'total_iter') != 0]
    problems += _fits_scale(tree)
    if stage is not None:
        problems += _needs(tree, str(kind), stage) + _fits(tree, stage, earlier or {})
    if earlier is not None or '/' not in str(tree.get('name')):  # with a slash: saved by a recipe, which was checked
        problems += [Problem(keys, problem) for keys in NETWORK_FILES
                     if (problem := _bad_reference(get(tree, *keys), list(earlier or ()), names))]
    if problems:
        return None, problems
    options = _validate(Stage, {key: value for key, value in tree.items() if key not in unused})[0]
    if 'train' in unused:
        options['train'] = Train.model_validate({'total_iter': 0}).model_dump(mode='json')
    if options['network_g'] and 'scale' in section_of('arch', options['network_g']['type']).model_fields:
        options['network_g'].setdefault('scale', options['scale'])
    return _debugged(options), []


def _validate(section: type[Section], tree: Any) -> tuple[Any, list[tuple[str, tuple[str, ...], str]]]:
    """The section as a plain dict with defaults, or None; and ``(kind, keys, message)`` of everything that is wrong."""
    try:
        return section.model_validate(tree).model_dump(mode='json'), []
    except ValidationError as error:
        return None, [(detail['type'].removeprefix('option_'),
                       tuple(str(key) for key in detail['loc'] if key != '[key]'), detail['msg'])
                      for detail in error.errors(include_url=False)]


def _with_phases(tree: Tree) -> Tree:
    """Datasets with the scale, and with the phase that their place says; one that is null is none."""
    datasets = tree.get('datasets')
    if not isinstance(datasets, dict):
        return tree
    shared = {'scale': tree['scale']} if 'scale' in tree else {}
    return {**tree, 'datasets': {
        key: {**value, **shared, 'phase': str(key).split('_')[0]} if isinstance(value, dict) else value
        for key, value in datasets.items() if value is not None}}


def _dataset_problems(tree: Tree) -> list[Problem]:
    problems = []
    seen: dict[tuple[str, str], str] = {}
    datasets = tree.get('datasets')
    for key, dataset in (datasets if isinstance(datasets, dict) else {}).items():
        key = str(key)
        phase, name = key.split('_')[0], get(dataset, 'name')
        first = seen.setdefault((phase, str(name)), key)
        if isinstance(name, str) and first != key:
            problems.append(Problem(('datasets', key, 'name'), f'{name!r} is also the name of datasets:{first}; give '
                                                               'each its own, since results are kept by name'))
        for follower, leader in (('scale', tree.get('scale', 4)), ('phase', phase)):
            if get(dataset, follower) not in (None, leader):
                problems.append(Problem(('datasets', key, follower), f'should be {leader}, or left out'))
    return problems


def _needs(tree: Tree, kind: str, stage: Any) -> list[Problem]:
    """What must be there for this kind of stage."""
    train_set = get(tree, 'datasets', 'train')
    only_tests = kind == 'ReconstructionModel' and train_set is None and tree.get('train') is None
    problems = [Problem((key,), f'{kind} needs this section') for key in stage.sections
                if tree.get(key) is None and not only_tests]
    if NETWORK_LABEL in str(tree.get('name')) and not only_tests:
        problems.append(_ONLY_A_TEST)
    if only_tests:
        if not tree.get('datasets'):
            problems.append(Problem(('datasets',), 'there is neither a dataset to train on nor one to test on'))
        if tree.get('val') is None:
            problems.append(Problem(('val',), 'testing needs this section: val:metrics says what is measured'))
    elif 'train' in stage.sections and train_set is None:
        problems.append(Problem(('datasets', 'train'), f'{kind} needs a dataset to train on'))
    if tree.get('network_g') is None and get(tree, 'path', 'pretrain_network_g') is None:
        problems.append(Problem(('path', 'pretrain_network_g'), 'there is no network: name a file here, or describe '
                                                                'one in network_g'))
    for key in ('pixel_opt', *OF_TEACHER) if 'train' in stage.sections else ():
        if get(tree, 'train', key) is not None and key not in stage.losses:
            problems.append(Problem(('train', key), f'{kind} does not know this loss; use '
                                    f'{" or ".join(_kinds_that_know(key))}, or remove this'))
        elif key in OF_TEACHER and get(tree, 'train', key) and not get(tree, 'path', 'pretrain_network_teacher'):
            problems.append(Problem(('path', 'pretrain_network_teacher'), f'train:{key} compares with '
                                    f'{OF_TEACHER[key]}; name its file here'))
        elif key == 'distill_opt' and key in stage.losses and get(tree, 'train') and not get(tree, 'train', key):
            problems.append(Problem(('train', key), f'{kind} needs this loss'))
    return problems


def _kinds_that_know(loss: str) -> list[str]:
    return [name for name, stage in stage_kinds().items() if loss in stage.losses]


def _fits_scale(tree: Tree) -> list[Problem]:
    scale, own_scale = tree.get('scale', 4), get(tree, 'network_g', 'scale')
    if own_scale in (None, scale):
        return []
    return [Problem(('network_g', 'scale'), f'is {own_scale}, but scale is {scale}; leave it out here, it follows '
                                            'scale')]


def _fits(tree: Tree, stage: Any, earlier: Mapping[str, Any]) -> list[Problem]:
    """What must fit together across sections."""
    problems = []
    start = get(tree, 'path', 'pretrain_network_g')
    start = start if isinstance(start, str) else ''
    made_by = earlier.get(start.removeprefix(STAGE_REF)) if start.startswith(STAGE_REF) else None
    # a file from elsewhere may have trained gates, a .pth of the SSL authors too: the stage itself will see
    dense = start.startswith(zoo.PREFIX) and _file_name(start).endswith('.pth')
    learns_gates = [name for name, kind in stage_kinds().items() if 'sparsity' in kind.sections]
    no_gates = dense or made_by not in (None, *learns_gates) or not start
    by_gate = get(tree, 'pruning', 'score') in (None, 'gate')
    if stage.sections == ('pruning',) and by_gate and no_gates:
        problems.append(Problem(('pruning', 'score'), f'gate needs trained gates, and {start or "a new network"} has '
                                                      'none: choose l1 or l2, or do sparsity learning first'))
    name = get(tree, 'sparsity', 'type') or 'SSL'
    if 'sparsity' in stage.sections and name in registered_names('method'):
        if (structure := get(tree, 'pruning', 'structure')) not in (None, 'units'):
            problems.append(Problem(('pruning', 'structure'), f'sparsity learning drives units to zero, not '
                                                              f'{structure}: leave structure out'))
        method = registry('method').get(name)
        default = method.Options.model_fields.get('select_iter')
        select, total = get(tree, 'sparsity', 'select_iter'), get(tree, 'train', 'total_iter')
        if select is None:
            select = default.default if default else 0
        if by_gate and not method.kind:
            problems.append(Problem(('pruning', 'score'), f'gate needs gates, and {name} works without: choose l1, l2 '
                                                          'or random'))
        elif by_gate and no_gates and select == 0 and method.kind == 'scale':
            problems.append(Problem(('pruning', 'score'), 'gate cannot rank units before any training, when all gates '
                                    'are 1: set sparsity:select_iter above 0, or choose l1 or l2'))
        if isinstance(select, int) and isinstance(total, int) and select >= total:
            problems.append(Problem(('sparsity', 'select_iter'), f'is {select}, but train:total_iter is {total}: '
                                                                 'nothing would ever be selected'))
    return problems


def _file_name(reference: str) -> str:
    """The file that ``zoo://NAME`` means; anything else, unknown names too, as it is."""
    return reference if not reference.startswith(zoo.PREFIX) or _bad_reference(reference, []) else \
        zoo.find(reference).file


def _bad_reference(value: Any, stages: list[str], names: Iterable[str] = ()) -> str | None:
    """What is wrong with a ``stage://`` or ``zoo://`` reference, if anything."""
    if isinstance(value, str) and value.startswith(zoo.PREFIX):
        try:
            zoo.find(value)
        except (OSError, ValueError) as error:
            return str(error)
    if not isinstance(value, str) or not value.startswith(STAGE_REF):
        return None
    name = value.removeprefix(STAGE_REF)
    if name in stages:
        return None
    if name in names:
        return f'{value} does not exist yet: a stage can use the stages before it' + (
            f' ({", ".join(stages)})' if stages else '')
    return f'there is no stage {name!r}' + (suggest(name, stages) if stages else ' before this one')


def _report_problems(report: Any, stages: list[str], last: Tree) -> list[Problem]:
    """Rows that name no stage, and expectations that nothing measures; ``last``: the options that the report uses."""
    rows, expectations = get(report, 'rows'), get(report, 'expect')
    problems = [Problem(('report', 'rows', str(label)), problem)
                for label, value in (rows if isinstance(rows, dict) else {}).items()
                if (problem := _bad_reference(value, stages))]
    metrics = get(last, 'val', 'metrics')
    if not metrics:
        problems.append(Problem(('report',), 'needs the section val: val:metrics says what is measured'))
    datasets = get(last, 'datasets')
    if isinstance(datasets, dict) and not any(str(key).startswith(('val', 'test')) for key in datasets):
        problems.append(Problem(('report',), 'needs a dataset to test on: datasets:test or datasets:val'))
    known = [*(metrics if isinstance(metrics, dict) else ()), *COST_FIGURES]
    for i, expect in enumerate(expectations if isinstance(expectations, list) else ()):
        metric = get(expect, 'metric')
        if isinstance(metric, str) and metric not in known:
            problems.append(Problem(('report', 'expect', str(i), 'metric'), f'nothing measures {metric!r}'
                                    + suggest(metric, known)))
    return problems


def _debugged(options: Tree) -> Tree:
    """Options as ``--debug`` changes them, if they ask for it."""
    if options['debug']:
        if not options['name'].startswith('debug'):
            options['name'] = f'debug_{options["name"]}'
        if isinstance(options.get('val'), dict):
            options['val']['val_freq'] = DEBUG_FREQ
        options['logger'].update(print_freq=1, save_checkpoint_freq=DEBUG_FREQ)
    return options
