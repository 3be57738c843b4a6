"""Networks by name: what ``options/zoo.yml`` lists, which is downloaded, and what comes with this package."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from basicsr_ssl.files import file_sha256, kind_of
from basicsr_ssl.terminal import suggest
from basicsr_ssl.zoo.transfer import DownloadError, Patience, UnavailableError, fetch

PREFIX = 'zoo://'
ALL = 'all'
FOLDER = 'experiments/pretrained_models'
LIST = 'options/zoo.yml'
MIRROR = 'BASICSR_SSL_MIRROR'  # names a folder of a web server that holds the same files, and is asked first
DRIVE_FILE = 'https://drive.usercontent.google.com/download?id={}&export=download&confirm=t'
DRIVE_PAGE = 'https://drive.google.com/file/d/{}/view'

Address = Annotated[str, Field(pattern=r'^https?://[^/\s]+\S*$')]
Text = Annotated[str, Field(min_length=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra='forbid', frozen=True)


class Source(_Section):
    """A project that publishes networks."""

    url: Address
    licence: Text


class Entry(_Section):
    """A network file, and how to get it: exactly one of ``url``, ``google_drive``, ``page`` and ``packaged``.

    Attributes:
        source: a key of ``sources``.
        method: BasicSR's name, in its download script, for the files of one method; asking for it means all of them.
        file: name of the file.
        url: where it is downloaded from.
        google_drive: its id there.
        page: where a person can find it, if no program can.
        packaged: it lies beside this module.
        sha256: the digits with which its checksum begins.
        arch, trained_on, degradation: what the network is.
    """

    source: Text
    method: Text | None = None
    file: Annotated[str, Field(pattern=r'^\w[\w.+-]*$')]
    url: Address | None = None
    google_drive: Annotated[str, Field(pattern=r'^[\w-]+$')] | None = None
    page: Address | None = None
    packaged: Literal[True] | None = None
    sha256: Annotated[str, Field(pattern=r'^[0-9a-f]{8,64}$')] | None = None
    arch: Text
    trained_on: Text
    degradation: Text | None = None

    @model_validator(mode='after')
    def _one_way(self) -> Entry:
        if sum(way is not None for way in (self.url, self.google_drive, self.page, self.packaged)) != 1:
            raise ValueError('should have one of url, google_drive and page')
        return self

    def addresses(self) -> list[str]:
        """Where to download it from, the mirror first; empty if only a person can.

        Raises:
            ValueError: the mirror is no address.
        """
        mirror = os.environ.get(MIRROR, '')
        if mirror and not mirror.startswith(('http://', 'https://')):
            raise ValueError(f'{MIRROR} should be the address of a folder, such as https://host/weights/')
        own = DRIVE_FILE.format(self.google_drive) if self.google_drive else self.url
        return [address for address in (f'{mirror.rstrip("/")}/{self.file}' if mirror else None, own) if address]

    def by_hand(self, folder: str | os.PathLike = FOLDER) -> str:
        """What a person can do to get the file."""
        page = DRIVE_PAGE.format(self.google_drive) if self.google_drive else self.page or self.url
        return f'open {page} in a browser, and save {self.file} as {Path(folder) / self.file}'

    def what(self) -> str:
        return ', '.join(filter(None, (self.arch, self.trained_on, self.degradation)))

    def is_at_hand(self) -> bool:
        """Whether ``resolve`` can give the file, as far as that can be told without asking a server."""
        return bool(self.packaged) or Path(FOLDER, self.file).exists() or bool(self.addresses())


LICENCE = 'Apache-2.0'  # of this package
#: What comes with it, and needs neither list nor network; README.md beside this file has a card for each.
PACKAGED = {'basicvsr_small_x4': Entry(
    source='basicsr_ssl', file='basicvsr_small_x4.safetensors', packaged=True,
    arch='BasicVSR of 32 channels, 5 blocks, without flow', trained_on='videos and photographs', degradation='BI x4'),
            'spynet_small': Entry(
    source='basicsr_ssl', file='spynet_small.safetensors', packaged=True,
    arch='SpyNet, a ninth of the size', trained_on='moving photographs')}


class Zoo(_Section):
    """The list."""

    sources: dict[str, Source]
    networks: dict[str, Entry]

    @model_validator(mode='after')
    def _names(self) -> Zoo:
        groups = {ALL, *(entry.method for entry in self.networks.values())}
        files = [entry.file for entry in self.networks.values()]
        for name, entry in self.networks.items():
            if entry.source not in self.sources:
                raise ValueError(f'{name}: there is no source {entry.source!r}{suggest(entry.source, self.sources)}')
            if name in groups:
                raise ValueError(f'{name}: stands for several networks already; choose another name')
            if files.count(entry.file) > 1:
                raise ValueError(f'{name}: {entry.file} is also the file of another network')
        return self


def read_list() -> Zoo:
    """The list: ``options/zoo.yml`` of the current folder, or else of the project that this package stands in.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no valid list; names everything that is wrong.
    """
    file = _list_file()
    try:
        return Zoo.model_validate(yaml.safe_load(file.read_text(encoding='utf-8')))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f'{file}: no valid YAML: {error}') from error
    except ValidationError as error:
        raise ValueError('\n  '.join([f'{file} is no valid list of networks:', *(
            ': '.join([*map(str, detail['loc']), detail['msg'].removeprefix('Value error, ')])
            for detail in error.errors(include_url=False))])) from error


def _list_file() -> Path:
    places = [Path(LIST), Path(__file__).parents[2] / LIST]
    for file in places:
        if file.is_file():
            return file
    raise FileNotFoundError(f'there is no {LIST}, neither here nor in {places[1].parents[1]}: run this where the '
                            'project was checked out')


def find(name: str) -> Entry:
    """The entry that ``NAME`` or ``zoo://NAME`` means.

    Raises:
        ValueError: there is none; suggests a similar one.
    """
    key = name.removeprefix(PREFIX)
    if key in PACKAGED:
        return PACKAGED[key]
    networks = read_list().networks
    if key not in networks:
        raise ValueError(f'there is no network {key!r} in {LIST}{suggest(key, networks)}')
    return networks[key]


def resolve(reference: str, patience: Patience | None = None) -> str:
    """The local file that ``zoo://NAME`` stands for, downloaded if needed; anything else is returned as it is.

    Raises:
        ValueError: no such entry.
        DownloadError: as ``download``.
    """
    if not reference.startswith(PREFIX):
        return reference
    return str(_obtain(reference.removeprefix(PREFIX), find(reference), Path(FOLDER), patience))


def licence_of(reference: str) -> str | None:
    """The licence that the source of ``zoo://NAME`` states; None of anything else."""
    if not reference.startswith(PREFIX):
        return None
    entry = find(reference)
    return LICENCE if entry.packaged else read_list().sources[entry.source].licence


def download(names: Iterable[str], folder: str | os.PathLike = FOLDER, patience: Patience | None = None) -> list[Path]:
    """Download networks. What is there already, with the right checksum, is not downloaded again.

    One that fails does not keep the others from coming.

    Args:
        names: entries of the list; BasicSR's methods (``BasicVSR``, ``flownet``), for all files of one; or ``all``, for
            all that can be downloaded without a person.
        folder: where to.
        patience: how long to wait for a server, and how often to try.

    Returns:
        The files, in the order of the names, without repetition.

    Raises:
        ValueError: a name that does not exist; nothing was downloaded.
        DownloadError: some could not be downloaded. Says why, and how to get them by hand.
    """
    folder = Path(folder)
    files, failures = [], []
    for name, entry in _select(names, folder).items():
        try:
            files.append(_obtain(name, entry, folder, patience))
        except DownloadError as error:
            failures.append(f'{name}: {error}')
    if failures:
        head = f'{len(failures)} of {len(files) + len(failures)} files could not be downloaded:\n  '
        rest = f'\nDownloaded: {", ".join(map(str, files))}' if files else ''
        raise DownloadError((head if len(files) + len(failures) > 1 else '') + '\n  '.join(failures) + rest)
    return files


def _select(names: Iterable[str], folder: Path) -> dict[str, Entry]:
    networks, chosen = read_list().networks, {}
    methods = {entry.method for entry in networks.values() if entry.method}
    for name in (name.removeprefix(PREFIX) for name in names):
        if name == ALL:
            for key, entry in networks.items():
                if entry.addresses() or (folder / entry.file).exists():
                    chosen[key] = entry
                else:
                    print(f'{key}: left out, no program can download it: {entry.by_hand(folder)}', file=sys.stderr)
        elif name in methods:
            chosen.update({key: entry for key, entry in networks.items() if entry.method == name})
        elif name in PACKAGED or name in networks:
            chosen[name] = PACKAGED.get(name) or networks[name]
        else:
            raise ValueError(f'there is no network {name!r} in {LIST}{suggest(name, [*networks, *methods, ALL])}')
    return chosen


def _obtain(name: str, entry: Entry, folder: Path, patience: Patience | None) -> Path:
    if entry.packaged:
        return Path(__file__).with_name(entry.file)
    path = folder / entry.file
    if path.exists() and not path.is_file():
        raise DownloadError(f'{path} is {kind_of(path.stat().st_mode)}, and no network file: move it away')
    if not path.exists():
        addresses = entry.addresses()
        if not addresses:
            raise UnavailableError(f'{entry.file} cannot be downloaded by a program: {entry.by_hand(folder)}')
        try:
            fetch(addresses, path, entry.sha256, patience)
        except UnavailableError as error:
            raise UnavailableError(f'{error}. If that does not pass, {entry.by_hand(folder)}') from error
    if entry.sha256 and not (found := file_sha256(path)).startswith(entry.sha256):
        raise DownloadError(f'{path} is there already, but its sha256 begins with {found[:len(entry.sha256)]}, that of '
                            f'{name} with {entry.sha256}: it is damaged or another file. Move it away, then run again')
    return path


def listing(folder: str | os.PathLike = FOLDER) -> str:
    """The list as a table for the terminal, with the sources' licences, and which files are in the folder already."""
    zoo = read_list()
    width = max(map(len, [*zoo.networks, *PACKAGED]))
    lines = [f'basicsr_ssl: part of this package, licence: {LICENCE}',
             *(f'  {name:{width}}  here     {entry.what()}' for name, entry in PACKAGED.items())]
    for source, origin in zoo.sources.items():
        lines += [f'{source}: {origin.url}, licence: {origin.licence}']
        for name, entry in zoo.networks.items():
            if entry.source == source:
                state = ('here' if Path(folder, entry.file).exists() else '' if entry.addresses() else 'by hand')
                lines.append(f'  {name:{width}}  {state:7}  {entry.what()}')
    notes = [f'here: in {os.fspath(folder)}. by hand: {LIST} says on which page it is.',
             f'Download: basicsr-ssl download NAME ... | {ALL}. In option files: {PREFIX}NAME.']
    return '\n'.join([*lines, '', *notes])
