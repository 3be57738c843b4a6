"""The command ``basicsr-ssl convert``: other projects' networks into ours, and dense ones back into BasicSR's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from basicsr_ssl.checkpoints.layouts import TO_BASICSR
from basicsr_ssl.checkpoints.store import import_network, save_network
from basicsr_ssl.files import write_atomically
from basicsr_ssl.terminal import plain

SUFFIXES = {'safetensors': '.safetensors', 'sparse': '.safetensors', 'basicsr': '.pth'}


def convert(source: str, output: str, to: str = 'safetensors', param_key: str | None = None,
            assume: Mapping[str, Any] | None = None) -> str:
    """Read a network of any known format and write it in another.

    Args:
        source: a file that ``import_network`` reads.
        output: the file to write. If it is there already it must hold the same network; it is then left alone.
        to: ``'safetensors'``; ``'sparse'``, the same with only the weights that a mask leaves; or ``'basicsr'`` for a
            ``.pth`` that BasicSR's own class loads strictly.
        param_key: ``params`` or ``params_ema`` of a file that has both; None prefers the latter.
        assume: arguments of the network that the file cannot tell, see ``load_network``.

    Returns:
        What was found and what was written, for people.

    Raises:
        OSError: the source cannot be read or the output not written.
        ValueError: the source is no network; BasicSR's class could not hold it; the output has the wrong suffix, is the
            source, or is there and holds something else.
    """
    if to not in SUFFIXES:
        raise ValueError(f'cannot convert to {to!r}; choose one of {", ".join(SUFFIXES)}')
    if not output.endswith(SUFFIXES[to]):
        raise ValueError(f'{output}: with --to {to} the output is named *{SUFFIXES[to]}')
    if os.path.realpath(source) == os.path.realpath(output):
        raise ValueError(f'{output} is the source itself; choose another name')
    net: Any = import_network(source, param_key, assume=assume)
    for key, value in (assume or {}).items():
        if net.spec.args.get(key) != value:
            raise ValueError(f'{source} tells by itself what {key} is, {net.spec.args.get(key)!r}; leave it out'
                             if key in net.spec.args else f'{type(net).__name__} has no argument {key}')
    if to == 'sparse' and net.spec.gates != 'mask':
        raise ValueError(f'{source} has no mask, and all its weights count: prune it with structure: weights, or '
                         'choose --to safetensors')
    state = _to_basicsr(source, net) if to == 'basicsr' else {}
    found = _found(source, net)
    if os.path.exists(output):
        if not _same(net, output):
            raise ValueError(f'{output} exists, and is not this network; remove it or choose another name')
        return f'{found}\n{output} holds it already; nothing was written.'
    if to == 'basicsr':
        write_atomically(output, lambda temporary: _save_torch({'params': state}, temporary))
    else:
        save_network(net, output, encoding='sparse' if to == 'sparse' else 'dense',
                     **{'stage': 'convert', **net.provenance})
    return f'{found}\nWrote {output}.'


def _to_basicsr(source: str, net: Any) -> dict[str, Tensor]:
    try:
        return TO_BASICSR[net.spec.arch](net)
    except KeyError:
        raise ValueError(f'{source} cannot become a .pth of BasicSR, which has no {net.spec.arch}') from None
    except ValueError as error:
        raise ValueError(f'{source} cannot become a .pth of BasicSR, {error}') from error


def _save_torch(content: dict[str, Any], path: str) -> None:
    with open(path, 'wb') as stream:  # given a name, torch writes it into the file
        torch.save(content, stream)


def _found(source: str, net: Any) -> str:
    origin, key = net.provenance.get('source_format', 'basicsr_ssl'), net.provenance.get('param_key')
    average = ', the moving average' if key in ('params_ema', 'generator_ema') else ''
    weights = f', weights {key}{average}' if key else ''
    count = sum(parameter.numel() for parameter in net.parameters())
    return plain(f'{source}: {net.spec.form} {type(net).__name__} of {origin}{weights}; {count:,} parameters.')


def _same(net: Any, output: str) -> bool:
    try:
        other: Any = import_network(output)
    except (OSError, ValueError):
        return False
    own, there = net.state_dict(), other.state_dict()
    return other.spec == net.spec and own.keys() == there.keys() and all(
        own[name].dtype == there[name].dtype and _bits(own[name]).equal(_bits(there[name])) for name in own)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)  # NaN is not equal to itself
