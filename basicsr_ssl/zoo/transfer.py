"""Fetching a file over HTTP so that it appears whole and right under its name, or not at all.

What has come so far stands beside it as ``<name>.part``; a later call, of this or another process, goes on from there.
The process that holds the lock on the part file is the one that fetches, the others wait for it.
"""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import errno
import fcntl
import itertools
import json
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import requests
from tqdm import tqdm
from urllib3.exceptions import NameResolutionError, NewConnectionError, ReadTimeoutError

from basicsr_ssl.files import file_sha256, write_text
from basicsr_ssl.terminal import plain

CHUNK = 1 << 14  # a cut loses what came of one
MAX_BYTES = 1 << 30  # far above any network of this field: what is larger is not what was asked for
MAX_REDIRECTS = 5
PROGRESS = 1 << 20  # an attempt that brought this many bytes was no failure
# Worth another try; beside these, whatever else is 500 or above.
PASSING = (requests.codes.request_timeout, requests.codes.too_early, requests.codes.too_many_requests)


class DownloadError(OSError):
    """A file could not be fetched; the message says why."""


class UnavailableError(DownloadError):
    """No address gave the file."""


class _Again(Exception):
    """This attempt failed, another may do better, after ``wait`` seconds if the server says so."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _Refused(Exception):
    """No further attempt at this address would do better."""


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server, in seconds, and how often to try.

    After k failures it waits ``back_off * 2**(k-1)``, times a random factor in [0.5, 1] so that many machines do not
    come back at the same moment; never more than ``longest``. ``attempts`` counts those in a row that bring less than
    a MiB.
    """

    connect: float = 15
    stall: float = 60
    attempts: int = 5
    back_off: float = 1
    longest: float = 120
    sleep: Callable[[float], object] = time.sleep


def fetch(addresses: Sequence[str], path: Path, sha256: str | None, patience: Patience | None = None) -> None:
    """Fetch a file from the first address that gives it.

    Proxies and certificates follow ``HTTP_PROXY``, ``HTTPS_PROXY``, ``NO_PROXY`` and ``REQUESTS_CA_BUNDLE``.

    Args:
        addresses: http or https, tried in this order.
        path: the file to appear; folders are made as needed. If another process makes it meanwhile, that is all right.
        sha256: hex digits with which the file's checksum begins; None accepts whatever comes whole.
        patience: how long to wait, and how often to try.

    Raises:
        UnavailableError: no address gave the file. Parts of it are kept, to be continued, unless they were wrong.
        DownloadError: it could not be written: disk full (the part is kept) or no permission.
    """
    part = Path(f'{path}.part')
    reasons = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _only_one(part, path) as mine:
            if not mine:
                return
            for address in addresses:
                try:
                    _fetch_from(address, part, sha256, patience or Patience())
                except _Refused as refused:
                    reasons.append(f'{address}: {refused}')
                else:
                    _publish(part, path)
                    return
    except OSError as error:  # of the disk: what the network does is caught where it happens
        raise DownloadError(_disk_problem(error, part)) from error
    raise UnavailableError('; '.join(reasons))


@contextlib.contextmanager
def _only_one(part: Path, path: Path) -> Iterator[bool]:
    """Hold the lock on the part file; False if another process has made ``path`` in the meantime."""
    while True:
        with open(part, 'ab') as stream:
            _lock(stream, path.name)
            # while this one waited, the file may have got its final name, or have been removed
            there = part.exists() and os.path.samestat(os.fstat(stream.fileno()), part.stat())
            if not there and not path.exists():
                continue
            try:
                yield not path.exists()
            finally:
                if there and part.exists() and (path.exists() or not part.stat().st_size):
                    _drop(part)
            return


def _lock(stream: BinaryIO, name: str) -> None:
    try:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f'{name}: waiting for another process that downloads it')
            fcntl.flock(stream, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise  # some network file systems know no locks: better to download twice than not at all


def _fetch_from(address: str, part: Path, sha256: str | None, patience: Patience) -> None:
    """Fill the part file from one address, in as many attempts as it takes."""
    _say(f'{part.stem}: downloading from {address}')
    failed = 0
    with requests.Session() as session:
        session.max_redirects = MAX_REDIRECTS
        while True:
            before = part.stat().st_size
            try:
                sure = _attempt(session, address, part, sha256 is not None, patience)
                _check(part, sha256, sure)
                return
            except _Again as again:
                failed = 1 if part.stat().st_size - before >= PROGRESS else failed + 1
                if failed >= patience.attempts:
                    times = f', {failed} times in a row' if failed > 1 else ''
                    raise _Refused(f'{again}{times}') from again
                wait = patience.back_off * 2**(failed - 1) * random.uniform(0.5, 1)
                wait = min(wait, patience.longest) if again.wait is None else again.wait
                if wait > patience.longest:
                    raise _Refused(f'{again}, and asks to come back in {wait:.0f} s: do so') from again
                _say(f'{part.stem}: {again}; trying again in {wait:.0f} s')
                patience.sleep(wait)


def _attempt(session: requests.Session, address: str, part: Path, checked: bool, patience: Patience) -> bool:
    """One request, which appends to the part file or starts it anew.

    Args:
        checked: whether a checksum will tell if parts of different files were joined.

    Returns:
        Whether the file came in one piece, of the length that was announced: then a wrong checksum is no accident.
    """
    have, validator = _begun(part, address, checked)
    headers = {'Accept-Encoding': 'identity'}  # compressed, the lengths would be those of something else
    if have:
        headers['Range'] = f'bytes={have}-'
        if validator:
            headers['If-Range'] = validator
    try:
        with session.get(address, headers=headers, stream=True,
                         timeout=(patience.connect, patience.stall)) as response:
            start, total = _span(response, have, validator, part)
            if start and start == total:
                return False
            _receive(response, address, part, start, total)
            return start == 0 and total is not None
    except requests.RequestException as error:
        passing = isinstance(error, (requests.ConnectionError, requests.Timeout,
                                     requests.exceptions.ChunkedEncodingError,
                                     requests.exceptions.ContentDecodingError))
        raise (_Again if passing else _Refused)(_network_problem(error, address, patience)) from error


def _begun(part: Path, address: str, checked: bool) -> tuple[int, str | None]:
    """How many bytes of this address the part file holds, and the mark of the version that they are of."""
    try:
        note = json.loads(_note(part).read_text(encoding='utf-8'))
        known, validator = note['address'] == address, note['validator']
    except (OSError, ValueError, KeyError, TypeError):
        return 0, None
    return (part.stat().st_size, validator) if known and (validator or checked) else (0, None)


def _span(response: requests.Response, have: int, validator: str | None, part: Path) -> tuple[int, int | None]:
    """Where in the file the body starts, and how long the whole file is, if the server says so."""
    status, named = response.status_code, response.headers.get('Content-Range', '')
    if have and status == requests.codes.requested_range_not_satisfiable:
        if named.replace(' ', '') == f'bytes*/{have}':
            return have, have
        _drop_content(part)
        raise _Again('the file there is another one than the part that has come')
    if status in PASSING or status >= 500:
        raise _Again(f'the server answers {status} {response.reason}', _retry_after(response))
    if status == requests.codes.not_found:
        raise _Refused('there is no such file (404)')
    if status == requests.codes.ok:
        length = None if response.headers.get('Content-Encoding') else response.headers.get('Content-Length', '')
        return 0, int(length) if length and re.fullmatch(r'\d{1,18}', length) else None
    if status != requests.codes.partial_content:
        raise _Refused(f'the server answers {status} {response.reason}')
    match = re.fullmatch(r'bytes (\d{1,18})-(\d{1,18})/(\d{1,18})', named)
    changed = validator is not None and _validator(response) not in (None, validator)
    if not have or not match or int(match[1]) != have or changed:
        _drop_content(part)
        raise _Again('the file has changed there' if changed else
                     f'the server sent another part than was asked for ({named or "it does not say which"})')
    return have, int(match[3])


def _receive(response: requests.Response, address: str, part: Path, start: int, total: int | None) -> None:
    """Write the body to the part file, from position ``start`` on."""
    if (total or 0) > MAX_BYTES:
        raise _Refused(f'the file is said to have {total:,} bytes, which no network has')
    chunks = response.iter_content(CHUNK)
    first = next(chunks, b'')
    if _is_page(response, first if start == 0 else b''):  # seen before it could take the place of what came earlier
        raise _Refused('a web page came instead of the file, as Google Drive sends it when a file was downloaded too '
                       'often, or asks a question first')
    size, most = start, total or MAX_BYTES
    with open(part, 'ab' if start else 'wb') as stream, tqdm(
            total=total, initial=start, unit='B', unit_scale=True, unit_divisor=1024, desc=part.stem,
            disable=not sys.stderr.isatty(), dynamic_ncols=True) as bar:
        if not start:  # after the old content is gone, before the new one comes
            write_text(_note(part), json.dumps({'address': address, 'validator': _validator(response)}))
        for chunk in itertools.chain([first], chunks):
            size += len(chunk)
            if size > most:
                stream.truncate(0)
                raise _Again(f'more bytes came than the {most:,} that the file has')
            stream.write(chunk)
            bar.update(len(chunk))
    if size < (total or 1):
        of = f' of {total:,}' if total else ''
        raise _Again(f'the connection was cut after {size:,}{of} bytes')


def _check(part: Path, sha256: str | None, sure: bool) -> None:
    found = file_sha256(part)
    if sha256 is None or found.startswith(sha256):
        return
    size = part.stat().st_size
    _drop_content(part)
    raise (_Refused if sure else _Again)(
        f'the {size:,} bytes that came have a sha256 that begins with {found[:len(sha256)]}, expected {sha256}; they '
        'were removed')


def _publish(part: Path, path: Path) -> None:
    with open(part, 'rb+') as stream:
        os.fsync(stream.fileno())
    os.replace(part, path)
    _note(part).unlink(missing_ok=True)


def _note(part: Path) -> Path:
    """Beside the part file: where it comes from, and the mark of the version."""
    return Path(f'{part}.json')


def _drop(part: Path) -> None:
    _note(part).unlink(missing_ok=True)
    part.unlink(missing_ok=True)


def _drop_content(part: Path) -> None:
    """Empty the part file. It stays, because its lock does."""
    os.truncate(part, 0)


def _validator(response: requests.Response) -> str | None:
    """What marks this version of the file; a weak ETag does not vouch for every byte."""
    etag = response.headers.get('ETag', '')
    return etag if etag and not etag.startswith('W/') else response.headers.get('Last-Modified')


def _is_page(response: requests.Response, begin: bytes) -> bool:
    kind = response.headers.get('Content-Type', '').lower()
    return kind.startswith('text/html') or begin[:256].lstrip().lower().startswith((b'<!doctype html', b'<html'))


def _retry_after(response: requests.Response) -> float | None:
    """Seconds that the server asks to wait; it gives them, or a date."""
    text = response.headers.get('Retry-After', '').strip()
    if text.isdecimal():
        return float(text)
    try:
        date = email.utils.parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    return max(0.0, (date - datetime.datetime.now(date.tzinfo)).total_seconds())


def _network_problem(error: requests.RequestException, address: str, patience: Patience) -> str:
    host = urlsplit(address).hostname
    cause: Any = error.args[0] if error.args else error
    cause = getattr(cause, 'reason', cause)
    if isinstance(error, requests.exceptions.ProxyError):
        return f'the proxy does not let it through ({cause}); see the variables HTTP_PROXY, HTTPS_PROXY and NO_PROXY'
    if isinstance(error, requests.exceptions.SSLError):
        return f'the secure connection failed ({cause}); REQUESTS_CA_BUNDLE names the certificates of a company network'
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return f'{host} did not answer within {patience.connect:g} s'
    if isinstance(error, requests.exceptions.ReadTimeout) or isinstance(cause, ReadTimeoutError):
        return f'nothing came for {patience.stall:g} s'
    if isinstance(cause, NameResolutionError):
        return f'the name {host} cannot be resolved: is there a network connection?'
    if isinstance(cause, NewConnectionError):
        return f'no connection to {host} ({str(cause).rpartition("] ")[2]}): is there a network connection?'
    if isinstance(error, requests.TooManyRedirects):
        return f'it leads on to another address more than {MAX_REDIRECTS} times'
    if isinstance(error, (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        return f'the connection was cut: {cause.args[0] if getattr(cause, "args", None) else cause}'
    return str(error)


def _disk_problem(error: OSError, part: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (f'the disk is full: {part} is kept as far as it came; free some space, then the same command '
                'continues, or remove it')
    if isinstance(error, PermissionError):
        return f'cannot write into {part.parent}: permission denied; choose another folder'
    return f'cannot write {part}: {error}'


def _say(line: str) -> None:
    print(plain(line), file=sys.stderr, flush=True)
