"""The JSON schema of option files, for editors."""

from __future__ import annotations

from typing import Any

from basicsr_ssl.config.registered import Section, basicsr_options, registered_names, registry, section_of, stage_kinds
from basicsr_ssl.config.sections import SCHEDULERS, TYPED, Recipe, Report, Stage


def json_schema() -> dict[str, Any]:
    """JSON schema of option files: descriptions and completion, and marks under misspelt keys.

    Nothing is required, since any file may be based on others.
    """
    definitions: dict[str, Any] = {}

    def define(section: type[Section]) -> dict[str, Any]:
        schema = section.model_json_schema(ref_template='#/$defs/{model}')
        definitions.update(schema.pop('$defs', {}))
        return schema

    schema = define(Stage)
    definitions['Report'] = define(Report)
    for name in ('stages', 'report'):
        reference = {'type': 'object', 'additionalProperties': {'$ref': '#'}} if name == 'stages' else \
            {'$ref': '#/$defs/Report'}
        schema['properties'][name] = {**reference, 'description': Recipe.model_fields[name].description}
    schema['properties']['_base_'] = {
        'anyOf': [{'type': 'string'}, {'type': 'array', 'items': {'type': 'string'}}],
        'description': 'files that this one is based on, relative to it; merged in order, own keys win'}
    tables = {kind: {name: section_of(kind, name) for name in _documented(kind)}
              for kind in ('arch', 'loss', 'metric', 'dataset', 'method', 'optimizer')}
    definitions['model'] = {'enum': sorted(stage_kinds())}
    for kind, table in {**tables, 'scheduler': SCHEDULERS}.items():
        for section in table.values():
            definitions[section.__name__] = define(section)
        definitions[kind] = {
            'type': 'object', 'properties': {'type': {'type': 'string', 'examples': sorted(table)}},
            'allOf': [{'if': {'required': ['type'], 'properties': {'type': {'const': name}}},
                       'then': {'$ref': f'#/$defs/{section.__name__}'}} for name, section in sorted(table.items())]}
    schema['description'] = 'basicsr_ssl option file: a stage, or a recipe of stages'
    schema['$defs'] = dict(sorted(definitions.items()))
    return {'$schema': 'http://json-schema.org/draft-07/schema#', **_relaxed(schema)}


def _documented(kind: str) -> list[str]:
    """This package's own entries of a registry, and those of BasicSR that fit its task."""
    of_basicsr = {'loss': ['CharbonnierLoss', 'L1Loss', 'MSELoss'], 'metric': ['calculate_psnr', 'calculate_ssim'],
                  'dataset': list(basicsr_options())}.get(kind, [])
    entries = dict(iter(registry(kind)))
    return of_basicsr + [name for name in registered_names(kind) if entries[name].__module__.startswith('basicsr_ssl.')]


def _relaxed(schema: Any) -> Any:
    """A schema for parts of option files: nothing is required (but in conditions), mappings may hold ``_replace_``."""
    if isinstance(schema, list):
        return [_relaxed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if TYPED in schema:
        rest = {key: value for key, value in schema.items() if key != TYPED}
        return {**rest, 'allOf': [{'$ref': f'#/$defs/{schema[TYPED]}'}]}
    # pydantic's titles only repeat the names
    result = {key: value if key == 'if' else _relaxed(value) for key, value in schema.items()
              if not ((key == 'required' and isinstance(value, list)) or (key == 'title' and isinstance(value, str)))}
    if result.get('additionalProperties') is False:
        result['properties'] = {**result.get('properties', {}), '_replace_': {
            'type': 'boolean', 'description': "take the place of the base's whole mapping instead of merging"}}
    return result
