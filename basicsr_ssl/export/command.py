"""The command ``basicsr-ssl export``: a network as a file for other programs, proven before it is written."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from basicsr_ssl.checkpoints.store import import_network, software_versions
from basicsr_ssl.export import formats, proof
from basicsr_ssl.export.forms import MULTIPLE, Form, make_form
from basicsr_ssl.export.runtimes import Exported
from basicsr_ssl.files import file_sha256, write_atomically
from basicsr_ssl.pruning.cost import LR_SIZE
from basicsr_ssl.terminal import plain, shortened


def export(source: str, output: str, to: str = 'onnx', form: str = 'window', size: tuple[int, int] = LR_SIZE,
           frames: int | None = None, every: bool = False, precision: str = 'fp32', dynamic: bool = False,
           clips: Sequence[str] = (), min_psnr: float | None = None, licence: str | None = None,
           param_key: str | None = None, assume: Mapping[str, Any] | None = None) -> str:
    """Write a network for another program. The file is run by its own runtime first, and compared with the network.

    Args:
        source: a file that ``import_network`` reads, of any form; gates are folded.
        output: the file to write, which must not be there; OpenVINO's has a second one beside it, ``.bin``.
        to: one of ``FORMATS``.
        form: one of ``FORMS``.
        size: LR frame, (h, w); with ``dynamic`` only that of the proof.
        frames: of a window or clip; None takes ``forms.FRAMES``.
        every: of a window give all frames.
        precision: one that the format has.
        dynamic: leave height and width free.
        clips: folders of real LR frames, one clip each: for the proof (the last one), and to calibrate int8.
        min_psnr: of the proof, in dB; None takes ``LEAST_PSNR``.
        licence: under which the network may be used; None takes what the file says.
        param_key, assume: see ``load_network``.

    Returns:
        What was written, for people.

    Raises:
        OSError: the source cannot be read or the output not written.
        ValueError: a setting that does not fit, a library that is missing, or an output that differs too much from the
            network's; then nothing is written.
    """
    kind = _checked(output, to, precision)
    net: Any = import_network(source, param_key, assume=assume, dtype=torch.float32)
    made = make_form(net, form, size, frames, every)
    if made.task == 'flow' and precision != 'fp32':
        raise ValueError(f'flow is estimated in float32: a flow network has no {precision}')
    step = formats.multiple(made)
    if dynamic and any(side % step or side < 2 * step for side in size):
        raise ValueError(f'with a flow network free sizes are multiples of {MULTIPLE}, from {2 * MULTIPLE} on: choose '
                         'such a --size')
    calibration = proof.calibration_calls(made, clips) if precision == 'int8' else []
    converted = formats.convert(made, to, precision, dynamic, calibration)
    metadata = {**_described(made, to, precision, dynamic), **_origin(net, source, licence)}
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / f'draft{kind.suffix}'
        formats.write(converted, to, draft, {**metadata, 'proof': {}})
        metadata['proof'] = prove(made, Exported(draft), dynamic, clips)
        proof.judge(metadata['proof'], precision, min_psnr)
        written = formats.write(converted, to, draft, metadata)
        for file in written:
            write_atomically(Path(output).with_suffix(file.suffix), lambda name, file=file: shutil.copyfile(file, name))
    return f'{describe(metadata)}\nWrote {plain(output)}{" and its .bin" if to == "openvino" else ""}.'


def prove(form: Form, exported: Exported, dynamic: bool, clips: Sequence[str]) -> dict[str, dict[str, float]]:
    """Figures of ``compare`` by kind of frames, on random and real ones, and for free sizes on another size."""
    count = proof.length_of_proof(form)
    noise = torch.Generator().manual_seed(0)
    figures = {'random': proof.compare(form, exported.call, torch.rand(count, 3, *form.size, generator=noise)),
               'real': proof.compare(form, exported.call,
                                     proof.real_clip(clips[-1] if clips else None, form.size, count))}
    if dynamic:
        h, w = (side + MULTIPLE for side in form.size)
        figures[f'random {h}x{w}'] = proof.compare(form, exported.call, torch.rand(count, 3, h, w, generator=noise))
    return figures


def _checked(output: str, to: str, precision: str) -> formats.Format:
    """The format; ValueError for settings that do not fit, before anything is computed."""
    kind = formats.FORMATS[to]
    if not output.endswith(kind.suffix):
        raise ValueError(f'{output}: with --format {to} the output is named *{kind.suffix}')
    if precision not in kind.precisions:
        why = 'whose runtime has no convolution in it on CPUs' if precision == 'bf16' else 'but openvino'
        raise ValueError(f'--precision {precision} is not for --format {to}, {why}; choose one of '
                         f'{", ".join(kind.precisions)}')
    for module in kind.modules:
        formats.load_module(module)
    for file in (Path(output), *([Path(output).with_suffix('.bin')] if to == 'openvino' else [])):
        if os.path.lexists(file):
            raise ValueError(f'{file} exists; remove it or choose another name')
    return kind


def _described(form: Form, to: str, precision: str, dynamic: bool) -> dict[str, Any]:
    """What another program must know to run the file, as JSON values."""
    frames = {'type': 'float32', 'range': [0, 1], 'colour': 'RGB'}
    return {
        'format': to, 'form': form.name, 'task': form.task, 'precision': precision, 'scale': form.scale,
        'frames': form.frames, 'every': getattr(form, 'every', False),
        'size': None if dynamic else list(form.size), 'multiple': formats.multiple(form) if dynamic else 1,
        'inputs': {name: {'shape': [*shape[:-2], *(['h', 'w'] if dynamic else shape[-2:])],
                          **({'layout': form.layout['input'], **frames} if name == 'input' else {'type': 'float32'})}
                   for name, shape in form.inputs.items()},
        'outputs': form.outputs, 'output': {'layout': form.layout['output'],
                                            **({'type': 'float32'} if form.task == 'flow' else frames)},
        'state': form.state,
    }


def _origin(net: Any, source: str, licence: str | None) -> dict[str, Any]:
    provenance = dict(net.provenance)
    return {'spec': net.spec.to_json(), 'source': {'file': os.path.basename(source), 'sha256': file_sha256(source)},
            'licence': licence or provenance.get('licence') or 'not stated',
            'provenance': {key: value for key, value in provenance.items() if key != 'options'},
            'versions': software_versions()}


def describe(metadata: Mapping[str, Any]) -> str:
    """What an exported file says of itself, for people; whatever it says, it is fit for a terminal."""
    def text(value: Any) -> str:
        return shortened(plain(value))

    source, shapes = metadata.get('source') or {}, metadata['inputs']
    lines = [
        f'{text(metadata.get("format"))}, {text(metadata["form"])} form, {text(metadata.get("precision"))}, '
        f'x{text(metadata.get("scale"))}',
        *(f'  in   {text(name)} {text(told)}' for name, told in shapes.items()),
        *(f'  out  {text(name)}' for name in metadata.get('outputs', [])),
        f'  from {text(source.get("file"))} with sha256 {text(source.get("sha256"))}, licence: '
        f'{text(metadata.get("licence"))}',
        *(f'  proof on {text(name)} frames: {one["psnr"]:.1f} dB against torch, largest difference '
          f'{one["max_difference"]:.2g}' for name, one in (metadata.get('proof') or {}).items()),
    ]
    return '\n'.join(lines)
