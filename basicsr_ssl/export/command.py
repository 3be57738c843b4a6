"""The command ``basicsr-ssl export``: a network as a file for other programs, proven before it is written."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from basicsr_ssl import zoo
from basicsr_ssl.checkpoints.store import import_network, software_versions
from basicsr_ssl.export import formats, proof
from basicsr_ssl.export.forms import make_form
from basicsr_ssl.export.metadata import format_info, load_module
from basicsr_ssl.export.runtimes import Exported
from basicsr_ssl.files import file_sha256, write_atomically
from basicsr_ssl.pruning.cost import LR_SIZE
from basicsr_ssl.terminal import plain


def export(source: str, output: str, to: str = 'onnx', form: str = 'window', size: tuple[int, int] = LR_SIZE,
           frames: int | None = None, every: bool = False, precision: str = 'fp32', dynamic: bool = False,
           clips: Sequence[str] = (), min_psnr: float | None = None, licence: str | None = None,
           param_key: str | None = None, assume: Mapping[str, Any] | None = None) -> str:
    """Write a network for another program. The file is run by its own runtime first, and compared with the network.

    Args:
        source: a file that ``import_network`` reads, of any form, or ``zoo://NAME``; gates are folded.
        output: the file to write, which must not be there; OpenVINO's has a second one beside it, ``.bin``.
        to: one of ``FORMATS``.
        form: one of ``FORMS``.
        size: LR frame, (h, w); with ``dynamic`` only that of the proof.
        frames: of a window or clip; None takes ``forms.FRAMES``.
        every: of a window give all frames.
        precision: one that the format has.
        dynamic: leave height and width free.
        clips: folders of real LR frames, one clip each: all of them calibrate int8, the last one serves the proof.
        min_psnr: of the proof, in dB; None takes ``LEAST_PSNR``.
        licence: under which the network may be used; None takes what its file or the zoo says.
        param_key, assume: see ``load_network``.

    Returns:
        What was written, for people.

    Raises:
        OSError: the source cannot be read or the output not written.
        ValueError: a setting that does not fit, a library that is missing, or an output that differs too much from the
            network's; then nothing is written.
    """
    kind = _checked(output, to, precision)
    path = zoo.resolve(source)
    net: Any = import_network(path, param_key, assume=assume, dtype=torch.float32)
    made = make_form(net, form, size, frames, every)
    if made.task == 'flow' and precision != 'fp32':
        raise ValueError(f'flow is estimated in float32: a flow network has no {precision}')
    if dynamic and any(side % made.multiple or side < 2 * made.multiple for side in size):
        raise ValueError(f'free sizes are multiples of {made.multiple} with this network, from {2 * made.multiple} on, '
                         f'and {size[0]}x{size[1]} is not: choose such a --size for the proof')
    calibration = proof.calibration_calls(
        made, (proof.real_clip(folder, size, None) for folder in clips)) if precision == 'int8' else []
    converted = formats.convert(made, to, precision, dynamic, calibration)
    metadata = {**formats.described(made, to, precision, dynamic),
                **_origin(net, path, licence or zoo.licence_of(source))}
    with tempfile.TemporaryDirectory() as folder:
        draft, final = (Path(folder) / f'{name}{kind.suffix}' for name in ('draft', 'final'))
        formats.write(converted, to, draft, {**metadata, 'proof': {}})
        metadata['proof'] = proof.prove(made, Exported(draft), dynamic, clips[-1] if clips else None)
        proof.judge(metadata['proof'], precision, min_psnr)
        for file in formats.write(converted, to, final, metadata):  # the same, but for the proof
            write_atomically(Path(output).with_suffix(file.suffix), lambda name, file=file: shutil.copyfile(file, name))
    return f'{format_info(metadata)}\nWrote {plain(output)}{" and its .bin" if to == "openvino" else ""}.'


def _checked(output: str, to: str, precision: str) -> formats.Format:
    """The format; ValueError for settings that do not fit, before anything is computed."""
    kind = formats.FORMATS[to]
    if not output.endswith(kind.suffix):
        raise ValueError(f'{output}: with --format {to} the output is named *{kind.suffix}')
    if precision not in kind.precisions:
        raise ValueError(f'{to} has no {precision} here, or nothing to run it: choose --precision '
                         f'{", ".join(kind.precisions)}, or --format openvino')
    for module in (*kind.modules, *(['nncf'] if precision == 'int8' else [])):
        load_module(module)
    for file in (Path(output), *([Path(output).with_suffix('.bin')] if to == 'openvino' else [])):
        if os.path.lexists(file):
            raise ValueError(f'{file} exists; remove it or choose another name')
    return kind


def _origin(net: Any, path: str, licence: str | None) -> dict[str, Any]:
    """Where the network comes from; the options of its training, which may be long, stay in its own file."""
    provenance = {key: value for key, value in net.provenance.items() if key != 'options'}
    return {'spec': json.loads(net.spec.to_json()),
            'source': {'file': os.path.basename(path), 'sha256': file_sha256(path)},
            'licence': licence or provenance.get('licence') or 'not stated',
            'provenance': provenance, 'versions': software_versions()}
