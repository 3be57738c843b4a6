"""Sections whose keys belong to something in BasicSR's registries: networks, losses, datasets, metrics."""

from __future__ import annotations

import inspect
import os
import typing
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal, NoReturn

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    create_model,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from basicsr_ssl.config.errors import suggest

FilePath = Annotated[str, AfterValidator(os.path.expanduser)]
MISSING = 'missing'


def fail(keys: tuple[str, ...], message: str, kind: str = 'option') -> NoReturn:
    """Raise a validation error at a key below the section that is being validated."""
    raise ValidationError.from_exception_data('options', [_error(kind, message, keys)])


def _error(kind: str, message: str, keys: tuple[int | str, ...]) -> InitErrorDetails:
    # the message goes through a template, so that braces in it mean nothing
    error = PydanticCustomError('option_missing' if kind == MISSING else 'option_option', '{text}', {'text': message})
    return InitErrorDetails(type=error, loc=keys, input=None)


class Section(BaseModel):
    """A mapping of an option file. Unknown keys are errors, and all errors are worded for the file's author."""

    model_config = ConfigDict(extra='forbid')

    @model_validator(mode='wrap')
    @classmethod
    def _word_errors(cls, data: Any, handler: Any) -> Any:
        try:
            return handler(data)
        except ValidationError as error:
            raise ValidationError.from_exception_data(cls.__name__, [
                _error(*_worded(detail, cls), detail['loc']) for detail in error.errors(include_url=False)]) from None


def _worded(detail: Any, section: type[BaseModel]) -> tuple[str, str]:
    """Kind (``option`` or ``missing``) and message of one pydantic error."""
    kind, message, given = detail['type'], detail['msg'], detail['input']
    if kind.startswith('option_'):
        return kind.removeprefix('option_'), message
    if kind == 'extra_forbidden':
        return 'option', 'unknown key' + suggest(detail['loc'][-1], section.model_fields)
    if kind == 'missing':
        field = section.model_fields.get(str(detail['loc'][-1]))
        return MISSING, 'required key is missing' + (f' ({field.description})' if field and field.description else '')
    if kind == 'value_error':
        return 'option', str(detail['ctx']['error'])
    if kind in ('model_type', 'model_attributes_type', 'dict_type'):
        return 'option', f'should be a mapping (key: value), got {given!r}'
    message = message.replace('Input should be', 'should be') + f', got {given!r}'
    if kind == 'literal_error':
        choices = detail['ctx']['expected'].replace(' or ', ', ').replace("'", '').split(', ')
        close = suggest(given, choices)
        message += close if 'did you mean' in close else ''
    elif kind == 'string_type':
        message += '; write it in quotes'
    return 'option', message


class DatasetSection(Section):
    """Keys of every dataset: its name, and how it is loaded."""

    name: str = Field(description='name in logs and results')
    type: str = Field(description='dataset class')
    phase: Literal['train', 'val', 'test'] = Field('train', description='follows from where the dataset stands')
    scale: int = Field(4, ge=1, description='follows scale at the top')
    num_worker_per_gpu: int = Field(0, ge=0, description='loader processes per process; 0 loads in the process itself')
    batch_size_per_gpu: int = Field(1, ge=1, description='clips per process and forward pass')
    dataset_enlarge_ratio: int = Field(1, ge=1, description="BasicSR's key, without effect: training data never end")
    prefetch_mode: Literal['cpu', 'cuda'] | None = Field(None, description=(
        "BasicSR's key, without effect: workers always load ahead"))
    num_prefetch_queue: int = Field(1, ge=1, description="BasicSR's key, without effect: workers always load ahead")
    pin_memory: bool = Field(True, description='page-locked batches, for faster copies to a GPU')
    persistent_workers: bool = Field(True, description="BasicSR's key, without effect: the training data never end")


class IoBackend(Section):
    """Where files are read from."""

    type: Literal['disk', 'lmdb'] = Field('disk', description='disk or lmdb')


class _BasicSRDataset(DatasetSection):
    dataroot_gt: FilePath = Field(description='folder (or lmdb) of the high-resolution frames')
    dataroot_lq: FilePath = Field(description='folder (or lmdb) of the low-resolution frames')
    io_backend: IoBackend = Field(IoBackend.model_validate({}), description='where files are read from')


class _PairedTraining(_BasicSRDataset):
    meta_info_file: FilePath = Field(description='text file that lists the clips')
    gt_size: int = Field(ge=1, description='side of the high-resolution training patches, a multiple of scale')
    use_hflip: bool = Field(True, description='mirror at random')
    use_rot: bool = Field(True, description='turn by multiples of 90 degrees at random')
    random_reverse: bool = Field(False, description='reverse time at random')

    @model_validator(mode='after')
    def _fits_scale(self) -> Any:
        if self.gt_size % self.scale:
            fail(('gt_size',), f'{self.gt_size} is no multiple of scale {self.scale}')
        return self


class REDSRecurrent(_PairedTraining):
    """BasicSR's REDS training clips."""

    val_partition: Literal['REDS4', 'official'] = Field('REDS4', description='clips left out of training')
    test_mode: bool = Field(False, description='read the left-out clips instead')
    num_frame: int = Field(15, ge=1, le=100, description='frames of a sample')
    interval_list: list[Annotated[int, Field(ge=1)]] = Field([1], min_length=1, description=(
        'steps between the frames used, one drawn at random for each sample'))

    @model_validator(mode='after')
    def _fits_clip(self) -> Any:
        if self.num_frame * max(self.interval_list) > 100:
            fail(('num_frame',), f'{self.num_frame} frames {max(self.interval_list)} apart do not fit into the '
                                 '100 frames of a clip')
        return self


class Vimeo90KRecurrent(_PairedTraining):
    """BasicSR's Vimeo90K septuplets."""

    num_frame: int = Field(7, description='without effect: a septuplet always has 7 frames')
    interval_list: list[int] = Field([1], description='without effect')
    flip_sequence: bool = Field(False, description='append the reversed clip: 14 frames instead of 7')


# The keys of BasicSR's own training sets, which declare none (its test sets know three benchmarks by name, and hold all
# frames in memory: ClipFoldersTestDataset takes their place); ours carry theirs as the class attribute `Options`.
BASICSR_DATASETS: dict[str, type[Section]] = {
    'REDSRecurrentDataset': REDSRecurrent, 'Vimeo90KRecurrentDataset': Vimeo90KRecurrent}


# Kinds whose entries declare their options, with defaults; those of the others follow from their signatures.
DECLARED = ('dataset', 'method', 'optimizer')


def check_typed(kind: str | Mapping[str, type[Section]], value: Any) -> Any:
    """Validate a mapping by the section that its ``type`` names.

    Args:
        kind: of a registry, see ``registry``, or a table of sections.
        value: the mapping.

    Returns:
        It as plain JSON values; with defaults filled in, except for arguments of networks, losses and metrics, whose
        defaults belong to the code.

    Raises:
        ValidationError: no mapping, no type, an unknown type, or what the section refuses.
    """
    if not isinstance(value, dict):
        fail((), f'should be a mapping with a type, got {value!r}')
    name = value.get('type')
    if name is None:
        fail(('type',), 'required key is missing', MISSING)
    if not isinstance(kind, str):
        if name not in list(kind):
            fail(('type',), f'there is no {name!r}' + suggest(name, kind))
        return kind[name].model_validate(value).model_dump(mode='json')
    if name not in (names := registered_names(kind)):
        fail(('type',), f'there is no {"network" if kind == "arch" else kind} {name!r}' + suggest(name, names))
    if kind not in DECLARED:
        return section_of(kind, name).model_validate(value).model_dump(mode='json', exclude_unset=True)
    value = {key: os.path.expanduser(path) if isinstance(path, str) and (
        key.startswith('dataroot') or key == 'meta_info_file') else path
             for key, path in value.items()}
    # BasicSR asks whether optional keys of its datasets are there at all
    return section_of(kind, name).model_validate(value).model_dump(mode='json', exclude_none=name in BASICSR_DATASETS)


def registry(kind: str) -> Any:
    """A registry: BasicSR's of ``arch``, ``loss``, ``dataset``, ``metric`` and ``model``, with this package's entries,
    or one of this package, of ``method`` and ``optimizer``."""
    import basicsr_ssl
    basicsr_ssl.register()
    if kind == 'method':
        from basicsr_ssl.methods import METHOD_REGISTRY
        return METHOD_REGISTRY
    if kind == 'optimizer':
        from basicsr_ssl.models.optimization import OPTIMIZER_REGISTRY
        return OPTIMIZER_REGISTRY
    import basicsr.archs
    import basicsr.data
    import basicsr.losses
    import basicsr.metrics  # noqa: F401
    from basicsr.utils import registry as registries
    return getattr(registries, f'{kind.upper()}_REGISTRY')


def stage_kinds() -> dict[str, Any]:
    """The classes of stages by ``model_type``: what is registered as a model and says which sections it uses."""
    return {name: kind for name, kind in dict(iter(registry('model'))).items() if hasattr(kind, 'sections')}


def stage_kind(name: str) -> Any:
    return stage_kinds()[name]


def registered_names(kind: str) -> list[str]:
    """Names that a ``type`` may have. Of datasets only those whose keys are known."""
    entries = dict(iter(registry(kind)))
    return [name for name in entries
            if kind != 'dataset' or name in BASICSR_DATASETS or hasattr(entries[name], 'Options')]


@cache
def section_of(kind: str, name: str) -> type[Section]:
    """The section of a registered network, loss, dataset or metric."""
    if kind == 'dataset' and name in BASICSR_DATASETS:
        return BASICSR_DATASETS[name]
    entry = registry(kind).get(name)
    if kind in DECLARED:
        return _section_of_options(name, entry.Options)
    fields: dict[str, Any] = {'type': (Literal[name], Field(description='name in the registry'))}
    if kind == 'metric':
        fields['better'] = (Literal['higher', 'lower'], Field('higher', description='which values are better'))
    hints = typing.get_type_hints(entry.__init__ if inspect.isclass(entry) else entry)
    for key, parameter in inspect.signature(entry).parameters.items():
        # a metric gets its images at run time; **kwargs would let misspelt keys pass
        if key in ('img', 'img2') or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        fields[key] = (hints.get(key, Any), ... if parameter.default is parameter.empty else parameter.default)
    return create_model(name, __base__=_Arguments, __doc__=f'Arguments of {name}.', **fields)


class _Arguments(Section):
    model_config = ConfigDict(arbitrary_types_allowed=True)


def _section_of_options(name: str, options: type[BaseModel]) -> type[Section]:
    """The options that a class declares, with our wording of errors."""
    fields: dict[str, Any] = {}
    if 'parts' in options.model_fields:  # a mixture of datasets, which share its scale and phase
        part = Annotated[dict[str, Any], BeforeValidator(_check_part)]
        fields['parts'] = (list[part], options.model_fields['parts'])
    return create_model(name, __base__=(options, Section), __doc__=inspect.getdoc(options), **fields)  # type: ignore


def _check_part(value: Any, info: ValidationInfo) -> Any:
    if not isinstance(value, dict):
        fail((), f'should be a mapping with a type, got {value!r}')
    shared = {key: info.data[key] for key in ('name', 'phase', 'scale') if key in info.data and key not in value}
    weight = {key: value[key] for key in ('weight',) if key in value}
    checked = check_typed('dataset', {key: given for key, given in {**shared, **value}.items() if key not in weight})
    return {key: given for key, given in checked.items() if key not in shared} | weight
