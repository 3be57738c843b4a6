"""Files of other programs: how a form becomes ONNX, OpenVINO's IR or torch's ExportedProgram, and what they say."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.export import Dim

from basicsr_ssl.export.forms import Form, TensorInfo, lowered
from basicsr_ssl.export.metadata import FORMAT, KEY, TORCH_ENTRY, load_module, openvino_core

OPSET = 18  # the exporter's lowest; grid_sample came with 16
LARGEST = 8192  # side of a frame of free size
PRECISIONS = ('fp32', 'fp16', 'bf16', 'int8')


class Format(NamedTuple):
    """A kind of file.

    Attributes:
        suffix: of its name.
        precisions: those of ``PRECISIONS`` that it can hold and its runtime can run.
        modules: that write and run it, of the extra ``export``.
    """
    suffix: str
    precisions: tuple[str, ...]
    modules: tuple[str, ...]


FORMATS = {
    # onnxruntime has no convolution in bfloat16 on CPUs
    'onnx': Format('.onnx', ('fp32', 'fp16'), ('onnx', 'onnxscript', 'onnxruntime')),
    'openvino': Format('.xml', PRECISIONS, ('onnx', 'onnxscript', 'openvino')),
    'torch': Format('.pt2', ('fp32', 'fp16', 'bf16'), ()),
}


def convert(form: Form, to: str, precision: str = 'fp32', dynamic: bool = False,
            calibration: Sequence[Sequence[Tensor]] = ()) -> Any:
    """A form as an object of the library that writes such files.

    Args:
        form: see ``make_form``.
        to: one of ``FORMATS``.
        precision: one that the format has. OpenVINO's says how it is run: IR of ``fp32`` and ``bf16`` differ in nothing
            but their metadata, ``fp16`` is that of the stored weights.
        dynamic: leave height and width free.
        calibration: values of all inputs, once for each call, for ``int8``.

    Raises:
        ValueError: a library that is not installed.
    """
    if to == 'torch':
        return _program(lowered(form, precision, dynamic=dynamic), dynamic)
    if to == 'onnx':
        return _onnx(lowered(form, precision, gathers=True, dynamic=dynamic), dynamic)
    core = openvino_core()
    found = _onnx(lowered(form, dynamic=dynamic), dynamic)
    with contextlib.redirect_stdout(sys.stderr):
        model = core.read_model(found.SerializeToString())
        return _quantized(model, form, calibration) if precision == 'int8' else model


def described(form: Form, to: str, precision: str, dynamic: bool) -> dict[str, Any]:
    """What another program must know to run the file, as JSON values."""
    def tensor(info: TensorInfo) -> dict[str, Any]:
        free = [side if info.scale == 1 else f'{info.scale}*{side}' for side in 'hw']
        return {'shape': [*info.leading, *(free if dynamic else info.size)], 'layout': info.layout, 'type': 'float32',
                **({'range': [0, 1], 'colour': 'RGB'} if info.frames else {})}

    return {
        'version': FORMAT, 'format': to, 'form': form.name, 'precision': precision, 'task': form.task,
        'scale': form.scale, 'frames': form.frames, 'every': getattr(form, 'every', False),
        'lr_size': None if dynamic else list(form.size), 'multiple': form.multiple if dynamic else 1,
        'inputs': {name: tensor(info) for name, info in form.inputs.items()},
        'outputs': {name: tensor(info) for name, info in form.outputs.items()},
        'state': form.state,
    }


def write(converted: Any, to: str, path: Path, metadata: Mapping[str, Any]) -> list[Path]:
    """Write what ``convert`` gave, with its metadata.

    Returns:
        The files; the one that names the others last.
    """
    text = json.dumps(metadata)
    if to == 'torch':
        with open(path, 'wb') as stream:
            torch.export.save(converted, stream, extra_files={TORCH_ENTRY: text})
        return [path]
    if to == 'onnx':
        del converted.metadata_props[:]
        converted.metadata_props.add(key=KEY, value=text)
        path.write_bytes(converted.SerializeToString())
        return [path]
    converted.set_rt_info(text, KEY)
    load_module('openvino').save_model(converted, path, compress_to_fp16=metadata['precision'] == 'fp16')
    return [path.with_suffix('.bin'), path]


def _program(form: Form, dynamic: bool) -> Any:
    example = tuple(torch.rand(info.shape) for info in form.inputs.values())
    with torch.no_grad(), _quiet():
        # `*state` is one argument to torch.export: all inputs of the form share one entry of its shapes
        shapes = tuple(_free(form, len(info.shape)) for info in form.inputs.values()) if dynamic else None
        if shapes is not None and form.state:
            shapes = (shapes[0], shapes[1:])
        try:
            program = torch.export.export(form, example, dynamic_shapes=shapes)
        except RuntimeError as error:
            if not dynamic:
                raise
            raise ValueError(f'what {type(form.net).__name__} computes depends on the size of its frames, which cannot '
                             'be left free: leave --dynamic out, and say --size') from error
    program.example_inputs = None  # as large as frames, and kept in the file
    for node in program.graph.nodes:
        node.meta.pop('stack_trace', None)  # paths of this machine
    return program


def _free(form: Form, axes: int) -> dict[int, Any]:
    """Symbols for the last two axes: a number of multiples, of which torch wants at least two."""
    step = form.multiple
    sides = [Dim(side, min=2, max=LARGEST // step) for side in ('height', 'width')]
    return {axes - 2 + i: side if step == 1 else step * side for i, side in enumerate(sides)}


def _onnx(form: Form, dynamic: bool) -> Any:
    for name in FORMATS['onnx'].modules[:2]:
        load_module(name)
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(_program(form, dynamic), dynamo=True, opset_version=OPSET, verbose=False,
                                    input_names=list(form.inputs), output_names=list(form.outputs))
        assert program is not None
        model = program.model_proto
    for part in (*model.graph.node, *model.graph.value_info, model.graph):
        del part.metadata_props[:]  # what the exporter notes for its own developers
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters say about themselves."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter('ignore')
        yield


def _quantized(model: Any, form: Form, calibration: Sequence[Sequence[Tensor]]) -> Any:
    """int8, but for the flow network: its flows, in pixels, are taken to fractions of a pixel."""
    os.environ.setdefault('NNCF_CI', '1')  # or it tells its makers what it is used for
    nncf = load_module('nncf')
    logging.getLogger('nncf').setLevel(logging.ERROR)
    flow: Any = form.net.flow_network
    own = {id(parameter) for parameter in ([] if flow is None else flow.parameters())}
    names = {name for name, parameter in form.named_parameters() if id(parameter) in own}
    ignored = [op.get_friendly_name() for op in model.get_ordered_ops() if any(
        source.get_node().get_friendly_name() in names for source in op.input_values())]
    samples = [{name: value.numpy() for name, value in zip(form.inputs, values)} for values in calibration]
    return nncf.quantize(model, nncf.Dataset(samples), preset=nncf.QuantizationPreset.MIXED, subset_size=len(samples),
                         ignored_scope=nncf.IgnoredScope(names=ignored, validate=False))
