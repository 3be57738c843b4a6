"""Files of other programs: how a form becomes ONNX, OpenVINO's IR or torch's ExportedProgram, and what they say."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import torch
from torch import Tensor
from torch.export import Dim

from basicsr_ssl.export.forms import DTYPES, MULTIPLE, Form, lowered
from basicsr_ssl.terminal import plain, shortened

KEY = 'basicsr_ssl'  # of the metadata, one JSON string
OPSET = 18  # the exporter's lowest; grid_sample came with 16
LARGEST = 8192  # side of a frame of free size
PRECISIONS = ('fp32', 'fp16', 'bf16', 'int8')
_TORCH_ENTRY = f'{KEY}.json'


class Format(NamedTuple):
    """A kind of file.

    Attributes:
        suffix: of its name.
        precisions: those of ``PRECISIONS`` that it can hold and its runtime can run.
        modules: that write it, in pip's names as in Python's.
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


def load_module(name: str) -> Any:
    """A module of the extra ``export``.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ValueError(f"{name} is needed for this and cannot be imported ({error}): pip install -c constraints.txt "
                         "-e '.[export]'") from error


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
    openvino = load_module('openvino')
    found = _onnx(lowered(form, dynamic=dynamic), dynamic)
    with contextlib.redirect_stdout(sys.stderr):
        model = openvino.Core().read_model(found.SerializeToString())
        return _quantized(model, form, calibration) if precision == 'int8' else model


def write(converted: Any, to: str, path: Path, metadata: Mapping[str, Any]) -> list[Path]:
    """Write what ``convert`` gave, with its metadata.

    Returns:
        The files; the one that names the others last.
    """
    text = json.dumps(metadata)
    if to == 'torch':
        with open(path, 'wb') as stream:
            torch.export.save(converted, stream, extra_files={_TORCH_ENTRY: text})
        return [path]
    if to == 'onnx':
        del converted.metadata_props[:]
        converted.metadata_props.add(key=KEY, value=text)
        path.write_bytes(converted.SerializeToString())
        return [path]
    converted.set_rt_info(text, KEY)
    load_module('openvino').save_model(converted, path, compress_to_fp16=metadata['precision'] == 'fp16')
    return [path.with_suffix('.bin'), path]


def read_metadata(path: str | os.PathLike) -> dict[str, Any] | None:
    """What an exported file says of itself, told by its suffix; None for a file of another kind.

    Raises:
        OSError: it cannot be read.
        ValueError: its suffix is one of ours, and it is damaged or was written by another program.
    """
    readers = {'.onnx': _read_onnx, '.xml': _read_ir, '.pt2': _read_torch}
    path = Path(path)
    if path.suffix not in readers:
        return None
    name = shortened(path)
    try:
        text = readers[path.suffix](path)
        metadata = None if text is None else json.loads(text)
    except (ElementTree.ParseError, zipfile.BadZipFile, RecursionError, ValueError, KeyError) as error:
        if isinstance(error, ValueError) and 'pip install' in str(error):
            raise
        raise ValueError(f'{name} is damaged, or no {path.suffix} file: {shortened(plain(error))}. Export it again') \
            from error
    if not isinstance(metadata, dict) or not {'format', 'form', 'inputs'} <= metadata.keys():
        raise ValueError(f'{name} was not written by `basicsr-ssl export`: it does not say what its inputs are')
    return metadata


def _read_onnx(path: Path) -> str | None:
    onnx = load_module('onnx')
    try:
        model = onnx.load_model(path, load_external_data=False)
    except Exception as error:  # protobuf's, which is no ValueError
        if isinstance(error, OSError):
            raise
        raise ValueError(error) from error
    return next((entry.value for entry in model.metadata_props if entry.key == KEY), None)


def _read_ir(path: Path) -> str | None:
    found = ElementTree.parse(path).getroot().find(f'rt_info/{KEY}')
    return None if found is None else found.get('value')


def _read_torch(path: Path) -> str | None:
    with zipfile.ZipFile(path) as archive:
        name = next((name for name in archive.namelist() if name.endswith(f'/{_TORCH_ENTRY}')), None)
        return None if name is None else archive.read(name).decode()


def _program(form: Form, dynamic: bool) -> Any:
    example = tuple(torch.rand(shape) for shape in form.inputs.values())
    with torch.no_grad(), _quiet():
        # `*state` is one argument to torch.export: all inputs of the form share one entry of its shapes
        shapes = tuple(_free(form, shape) for shape in form.inputs.values()) if dynamic else None
        if shapes is not None and form.state:
            shapes = (shapes[0], shapes[1:])
        return torch.export.export(form, example, dynamic_shapes=shapes)


def _free(form: Form, shape: tuple[int, ...]) -> dict[int, Any]:
    step = multiple(form)
    sides = [Dim(side, min=2, max=LARGEST // step) for side in ('height', 'width')]
    return {len(shape) - 2 + i: side if step == 1 else step * side for i, side in enumerate(sides)}


def multiple(form: Form) -> int:
    """What free sizes must be multiples of."""
    net: Any = form.net
    return 1 if net.flow_network is None and form.task != 'flow' else MULTIPLE


def _onnx(form: Form, dynamic: bool) -> Any:
    for name in FORMATS['onnx'].modules[:2]:
        load_module(name)
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(_program(form, dynamic), dynamo=True, opset_version=OPSET, verbose=False,
                                    input_names=list(form.inputs), output_names=form.outputs)
        assert program is not None
        return program.model_proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters say about themselves."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter('ignore')
        yield


def _quantized(model: Any, form: Form, calibration: Sequence[Sequence[Tensor]]) -> Any:
    """int8, but for the flow network: its flows, in pixels, are taken to fractions of a pixel."""
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
