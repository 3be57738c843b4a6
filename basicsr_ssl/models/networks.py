"""The networks that a stage's options name."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from basicsr.utils import get_root_logger
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY

from basicsr_ssl.api import with_args
from basicsr_ssl.checkpoints.store import BICUBIC, build_network, load_network
from basicsr_ssl.data.options import BASICSR_OPTIONS


def read_network(opt: Mapping[str, Any], key: str) -> Any:
    """The network in the file that ``path`` names as ``key``, of any known format.

    Raises:
        OSError, ValueError: the file cannot be read; the message names the option.
    """
    path = opt['path'][key]
    if path == BICUBIC:
        return ARCH_REGISTRY.get('BicubicUpsampler')(opt['scale'])
    try:
        net: Any = load_network(path, opt['path'].get('param_key_g') if key == 'pretrain_network_g' else None,
                                dtype=torch.float32, assume=opt.get('network_g'))
    except ValueError as error:
        raise ValueError(f'path: {key}: {error}') from error
    if _is_inferred(net):
        weights = net.provenance['param_key']
        get_root_logger().info(f'Imported {path}, of {net.provenance["source_format"]}'
                               f'{f", weights {weights}" if weights else ""}')
    return net


def _is_inferred(net: Any) -> bool:
    """Whether what the network is was inferred from a state dict, and not said by a file of ours."""
    told = getattr(net, 'provenance', {})
    return 'source_format' in told and 'stage' not in told


def read_input_network(opt: Mapping[str, Any]) -> Any:
    """The network that a stage starts from: ``path: pretrain_network_g``, else a fresh ``network_g``.

    With ``path: reinitialise`` it is one of the same shape as that in the file, with new weights.

    Raises:
        ValueError: neither is given, the file holds another network than ``network_g`` describes, or the data are made
            for another task.
    """
    net = _input_network(opt)
    _check_task(net, opt)
    return reinitialised(net) if opt['path'].get('reinitialise') else net


def _input_network(opt: Mapping[str, Any]) -> Any:
    path, network = opt['path'].get('pretrain_network_g'), opt.get('network_g')
    fresh: Any = None
    if network:
        arguments = deepcopy(network)
        fresh = ARCH_REGISTRY.get(arguments.pop('type'))(**arguments)
        if not hasattr(fresh, 'spec'):
            raise ValueError(f'network_g: type: {type(fresh).__name__} declares nothing to prune; use a network of '
                             'basicsr_ssl, such as PrunableBasicVSR')
    if not path:
        if fresh is None:
            raise ValueError('no network to start from: set path: pretrain_network_g to a file, or network_g')
        return fresh
    net = read_network(opt, 'pretrain_network_g')
    if fresh is None:
        return net
    own, given = dict(fresh.spec.args), net.spec.args
    if net.spec.arch == fresh.spec.arch:
        # what network_g says of them counts, what it does not say stays as it is in the file
        said = [key for key in net.run_args if key in network]
        said += net.pruning_args if net.spec.form == 'dense' else ()
        given = {**{key: value for key, value in given.items() if key not in said},
                 **{key: own[key] for key in said if key in own}}
        for key in {*net.run_args, *net.pruning_args} - set(network or ()):
            own.pop(key, None)
            own |= {key: given[key]} if key in given else {}
    different = [f'{key}: {given.get(key)!r} in the file, {own.get(key)!r} in network_g'
                 for key in {**own, **given} if own.get(key) != given.get(key)]
    if net.spec.arch != fresh.spec.arch or different:
        raise ValueError(f'path: pretrain_network_g: {path} holds another network than network_g describes '
                         f'({"; ".join(different) or net.spec.arch}). Correct network_g, or leave it out: the file '
                         'says what it is')
    if given == net.spec.args:
        return net
    try:
        changed: Any = with_args(net, given)
    except ValueError as error:
        raise ValueError(f'network_g: {path} cannot be used so: {error}') from error
    changed.provenance = getattr(net, 'provenance', {})
    return changed


def reinitialised(net: Any) -> Any:
    """A network as small as this one with weights as at the start of training, by the random generator.

    Its flow network keeps its own: dense networks do not start without a trained one either.
    """
    fresh: Any = build_network(replace(net.spec, gates='')).to(next(net.parameters()))
    if net.flow_network is not None:
        fresh.flow_network.load_state_dict(net.flow_network.state_dict())
    told = getattr(net, 'provenance', {}).get('method')
    fresh.provenance = {'method': 'from scratch' + (f', as small as after {told}' if told else '')}
    return fresh


def read_teacher(opt: Mapping[str, Any], student: Any) -> Any:
    """The network in ``path: pretrain_network_teacher``, in eval mode and without gradients.

    Raises:
        OSError, ValueError: the file cannot be read, or its network is for another task or scale than ``student``.
    """
    teacher: Any = read_network(opt, 'pretrain_network_teacher')
    own, other = ((net.task, net.spec.args.get('scale')) for net in (student, teacher))
    if own != other:
        raise ValueError('path: pretrain_network_teacher holds a {} of the task {} and scale {}; a student of the task '
                         '{} and scale {} needs one of its kind'.format(type(teacher).__name__, *other, *own))
    return teacher.eval().requires_grad_(False)


def _check_task(net: Any, opt: Mapping[str, Any]) -> None:
    """Raises ValueError if the network is for other samples than the datasets have: flow, say, and not clips."""
    for phase, options in opt.get('datasets', {}).items():
        made_for = _task_of_data(options)
        # a test set of images is one of clips of one frame
        fits = net.task == made_for if phase == 'train' else (net.task == 'flow') == (made_for == 'flow')
        if not fits:
            flow = ': name it as network_g: spynet_path, and here a BasicVSR' if net.task == 'flow' else ''
            raise ValueError(f'datasets: {phase}: {options["type"]} is for networks of the task {made_for}, but '
                             f'{opt["path"].get("pretrain_network_g") or "network_g"} holds a {type(net).__name__}, of '
                             f'the task {net.task}{flow}')


def _task_of_data(options: Mapping[str, Any]) -> str:
    """The task that a dataset says it is for, or that its parts say."""
    name = options['type']
    kind = BASICSR_OPTIONS.get(name) or DATASET_REGISTRY.get(name)
    tasks = {_task_of_data(part) for part in options.get('parts') or ()} or {getattr(kind, 'task', 'clip')}
    if len(tasks) > 1:
        raise ValueError(f'{options["name"]}: the parts of a {options["type"]} must be for one task, not for '
                         f'{" and ".join(sorted(tasks))}')
    return tasks.pop()
