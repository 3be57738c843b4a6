"""Fetching a file over HTTP so that it appears whole and right under its name, or not at all.

What has come so far stands beside it as ``<name>.part``; a later call, of this or another process, goes on from there.
The process that holds the lock on the part file is the one that fetches, the others wait for it.

Servers are not trusted to end: attempts, bytes, redirects and waiting are bounded for each address, and whatever goes
wrong with one address, the next is tried. Passwords in addresses are never shown or stored.
"""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import errno
import fcntl
import io
import itertools
import json
import os
import random
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse, IncompleteRead
from pathlib import Path
from typing import IO, Any
from urllib.parse import urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.exceptions import HTTPError, NameResolutionError, NewConnectionError, ProtocolError, ReadTimeoutError

from basicsr_ssl.files import file_sha256, write_text
from basicsr_ssl.terminal import plain, shortened

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


class _Session(requests.Session):
    """Follows no redirect that gives up the secure connection, and measures whatever comes."""

    def __init__(self, patience: Patience, budget: _Budget) -> None:
        super().__init__()
        self.max_redirects = MAX_REDIRECTS
        for scheme in ('http://', 'https://'):
            self.mount(scheme, _Adapter(patience, budget))

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        target = super().get_redirect_target(resp)
        if target:
            resp.close()  # else its body would be read into memory, to its end
        if target and resp.url.lower().startswith('https:') and (
                urljoin(resp.url, target).lower().startswith('http:')):
            raise _Refused('it leads on from https to an address without encryption')
        return target


class _Adapter(HTTPAdapter):
    """Reads answers through ``_Wire``."""

    def __init__(self, patience: Patience, budget: _Budget) -> None:
        class Answer(HTTPResponse):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                self.fp = io.BufferedReader(_Wire(self.fp.detach(), patience, budget))  # type: ignore[attr-defined]

        super().__init__()
        self.answer = Answer

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        pool.ConnectionCls = type('Connection', (pool.ConnectionCls,), {'response_class': self.answer})
        return pool


class _Wire(io.RawIOBase):
    """What a server sends, bounded in bytes and slowness: not only a body may be without end, also what stands around
    it, such as headers, interim answers, and lines between chunks.
    """

    def __init__(self, raw: io.RawIOBase, patience: Patience, budget: _Budget) -> None:
        self.raw, self.patience, self.budget = raw, patience, budget
        self.since: float | None = None  # it may think as long as it does not stall
        self.size = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        count = self.raw.readinto(buffer)
        self.budget.spend(count or 0)
        self.size += count or 0
        now = self.patience.clock()
        if self.since is None:
            self.since, self.size = now, 0
        if (passed := now - self.since) >= self.patience.stall:
            if self.size < self.patience.slowest * passed:
                raise _Again(f'only {self.size:,} bytes came in {passed:.0f} s')
            self.since, self.size = now, 0
        return count

    def close(self) -> None:
        self.raw.close()
        super().close()


class _Budget:
    """What one address may still cost.

    Progress, and with it more attempts, is only what brings the file further than it has ever been; once content was
    dropped as wrong, nothing is.
    """

    def __init__(self, patience: Patience) -> None:
        self.patience, self.failed, self.best, self.dropped = patience, 0, 0, False
        self.bytes = 2 * MAX_BYTES

    def spend(self, count: int) -> None:
        self.bytes -= count
        if self.bytes < 0:
            raise _Refused(f'more than {2 * MAX_BYTES:,} bytes came, and never the file')

    def fail(self, size: int) -> bool:
        """Count a failure that leaves a part of ``size`` bytes; whether there may be another attempt."""
        progress = not self.dropped and size >= self.best + PROGRESS
        self.best = max(self.best, size)
        self.failed = 1 if progress else self.failed + 1
        return self.failed < self.patience.attempts


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server, in seconds, and how often to try.

    After k failures it waits ``back_off * 2**(k-1)``, times a random factor in [0.5, 1] so that many machines do not
    come back at the same moment; never more than ``longest``. ``attempts`` counts those in a row that bring the file
    less than a MiB further. A connection that brings less than ``slowest`` bytes per second, over ``stall`` seconds, is
    given up as one that stalls.
    """

    connect: float = 15
    stall: float = 60
    attempts: int = 5
    back_off: float = 1
    longest: float = 120
    slowest: float = 1024
    sleep: Callable[[float], object] = time.sleep
    clock: Callable[[], float] = time.monotonic


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
    path = Path(os.path.realpath(path))  # a link is followed, not replaced
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
                    reasons.append(_said(f'{address}: {refused}'))
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
        with _opened(part, 'ab') as stream:
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


def _lock(stream: IO[bytes], name: str) -> None:
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
    budget = _Budget(patience)
    with _Session(patience, budget) as session:
        while True:
            try:
                sure = _attempt(session, address, part, sha256 is not None, patience, budget)
                _check(part, sha256, sure, budget)
                return
            except _Refused:
                if budget.bytes < 0:
                    _drop_content(part, budget)
                raise
            except _Again as again:
                if not budget.fail(part.stat().st_size):
                    times = f', {budget.failed} times in a row' if budget.failed > 1 else ''
                    raise _Refused(f'{again}{times}') from again
                wait = patience.back_off * 2**(budget.failed - 1) * random.uniform(0.5, 1)
                wait = min(wait, patience.longest) if again.wait is None else again.wait
                if wait > patience.longest:
                    when = f'in {wait:.0f} s' if wait < 1e9 else 'in more than 30 years'
                    raise _Refused(f'{again}, and asks to come back {when}: do so') from again
                _say(f'{part.stem}: {again}; trying again in {wait:.0f} s')
                patience.sleep(wait)


def _attempt(session: requests.Session, address: str, part: Path, checked: bool, patience: Patience,
             budget: _Budget) -> bool:
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
            start, total = _span(response, have, validator, part, budget)
            if start and start == total:
                return False
            _receive(response, address, part, start, total, budget)
            return start == 0 and total is not None
    except requests.RequestException as error:
        passing = isinstance(error, (requests.ConnectionError, requests.Timeout,
                                     requests.exceptions.ChunkedEncodingError,
                                     requests.exceptions.ContentDecodingError))
        raise (_Again if passing else _Refused)(_network_problem(error, address, patience)) from error
    except (TimeoutError, ReadTimeoutError) as error:
        raise _Again(f'nothing came for {patience.stall:g} s') from error
    except (ProtocolError, IncompleteRead, ConnectionError) as error:
        raise _Again(f'the connection was cut: {error}') from error
    except (HTTPError, HTTPException, ValueError) as error:  # of an address, here or where it leads on to
        raise _Refused(_nonsense(error)) from error


def _begun(part: Path, address: str, checked: bool) -> tuple[int, str | None]:
    """How many bytes of this address the part file holds, and the mark of the version that they are of."""
    try:
        note = json.loads(_note(part).read_text(encoding='utf-8'))
        known, validator = note['address'] == _censored(address), note['validator']
    except (OSError, ValueError, KeyError, TypeError):
        return 0, None
    return (part.stat().st_size, validator) if known and (validator or checked) else (0, None)


def _span(response: requests.Response, have: int, validator: str | None, part: Path,
          budget: _Budget) -> tuple[int, int | None]:
    """Where in the file the body starts, and how long the whole file is, if the server says so."""
    status, named = response.status_code, response.headers.get('Content-Range', '')
    if have and status == requests.codes.requested_range_not_satisfiable:
        if named.replace(' ', '') == f'bytes*/{have}':
            return have, have
        _drop_content(part, budget)
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
        _drop_content(part, budget)
        raise _Again('the file has changed there' if changed else
                     f'the server sent another part than was asked for ({named or "it does not say which"})')
    return have, int(match[3])


def _receive(response: requests.Response, address: str, part: Path, start: int, total: int | None,
             budget: _Budget) -> None:
    """Write the body to the part file, from position ``start`` on."""
    if (total or 0) > MAX_BYTES:
        raise _Refused(f'the file is said to have {total:,} bytes, which no network has')
    # as they arrive: a call that waited for a whole chunk would lose more of it
    chunks = iter(lambda: response.raw.read1(CHUNK, decode_content=True), b'')
    first = next(chunks, b'')
    if _is_page(response, first if start == 0 else b''):  # seen before it could take the place of what came earlier
        raise _Refused('a web page came instead of the file, as Google Drive sends it when a file was downloaded too '
                       'often, or asks a question first')
    size, most = start, total or MAX_BYTES
    with _opened(part, 'ab' if start else 'wb') as stream, tqdm(
            total=total, initial=start, unit='B', unit_scale=True, unit_divisor=1024, desc=part.stem,
            disable=not sys.stderr.isatty(), dynamic_ncols=True) as bar:
        if not start:  # after the old content is gone, before the new one comes
            if _note(part).is_symlink():
                raise OSError(f'{_note(part)} is a symbolic link; remove it')
            write_text(_note(part), json.dumps({'address': _censored(address), 'validator': _validator(response)}))
        for chunk in itertools.chain([first], chunks):
            size += len(chunk)
            if size > most:
                stream.truncate(0)
                budget.dropped = True
                raise _Again(f'more bytes came than the {most:,} that the file has')
            stream.write(chunk)
            bar.update(len(chunk))
    if size < (total or 1):
        of = f' of {total:,}' if total else ''
        raise _Again(f'the connection was cut after {size:,}{of} bytes')


def _check(part: Path, sha256: str | None, sure: bool, budget: _Budget) -> None:
    found = file_sha256(part)
    if sha256 is None or found.startswith(sha256):
        return
    size = part.stat().st_size
    _drop_content(part, budget)
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


def _drop_content(part: Path, budget: _Budget) -> None:
    """Empty the part file. It stays, because its lock does."""
    os.truncate(part, 0)
    budget.dropped = True


def _opened(part: Path, mode: str) -> IO[bytes]:
    """The part file, if it is a file: a link or a pipe may have been put there by somebody else."""
    def opener(name: str, flags: int) -> int:
        fd = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.ENXIO, 'it is no ordinary file; remove it')
        return fd

    try:
        return open(part, mode, opener=opener)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError('it is a symbolic link; remove it') from error
        raise


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
        return max(0.0, (date - datetime.datetime.now(date.tzinfo)).total_seconds())
    except (TypeError, ValueError, OverflowError, IndexError):  # whatever a server may write there
        return None


def _network_problem(error: requests.RequestException, address: str, patience: Patience) -> str:
    if isinstance(error, ValueError):
        return _nonsense(error)
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


def _nonsense(error: Exception) -> str:
    return f'it, or the address that it leads on to, makes no sense ({shortened(error)})'


def _disk_problem(error: OSError, part: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (f'the disk is full: {part} is kept as far as it came; free some space, then the same command '
                'continues, or remove it')
    if isinstance(error, PermissionError):
        return f'cannot write into {part.parent}: permission denied; choose another folder'
    return f'cannot write {part}: {error}'


def _censored(text: str) -> str:
    """Without the user and password of addresses."""
    return re.sub(r'(?<=://)[^/\s]*@', '***@', text)


def _said(line: str) -> str:
    """Fit to be shown: a server may write whatever it likes, at any length, into what is quoted."""
    return shortened(plain(_censored(line)), 1000)


def _say(line: str) -> None:
    print(_said(line), file=sys.stderr, flush=True)
