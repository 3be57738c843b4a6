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

from basicsr_ssl.terminal import suggest

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
        own = len(detail['loc']) == 1  # not of a mapping within the section
        return 'option', 'unknown key' + (suggest(detail['loc'][0], section.model_fields) if own else '')
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
    return section_of(kind, name).model_validate(value).model_dump(mode='json', exclude_none=name in basicsr_options())


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


def basicsr_options() -> Mapping[str, type[BaseModel]]:
    """Options of those of BasicSR's own datasets that are known, by their names."""
    from basicsr_ssl.data.options import BASICSR_OPTIONS
    return BASICSR_OPTIONS


def registered_names(kind: str) -> list[str]:
    """Names that a ``type`` may have. Of datasets only those whose keys are known."""
    entries = dict(iter(registry(kind)))
    return [name for name in entries
            if kind != 'dataset' or name in basicsr_options() or hasattr(entries[name], 'Options')]


@cache
def section_of(kind: str, name: str) -> type[Section]:
    """The section of a registered network, loss, dataset or metric."""
    entry = registry(kind).get(name)
    if kind in DECLARED:
        return _section_of_options(name, basicsr_options().get(name) or entry.Options)
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
