"""Downloads, against a server on loopback that behaves as badly as servers do; and names in option files."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from requests.structures import CaseInsensitiveDict

from basicsr_ssl import cli, config, zoo
from basicsr_ssl.zoo import transfer
from basicsr_ssl.zoo.transfer import DownloadError, Patience, UnavailableError, fetch

ROOT = Path(__file__).parents[1]
DATA = random.Random(0).randbytes(200_000)
SHA = hashlib.sha256(DATA).hexdigest()


class Server:
    """Answers each request by ``answer``, and remembers the requests' lines and headers."""

    def __init__(self) -> None:
        self.answer: Callable[[BaseHTTPRequestHandler, int], None] = serve(DATA)
        self.requests: list[tuple[str, dict[str, str]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append((self.path, dict(self.headers)))
                with contextlib.suppress(ConnectionError):
                    outer.answer(self, len(outer.requests) - 1)
                self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.httpd = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.thread = threading.Thread(target=self.httpd.serve_forever, kwargs={'poll_interval': 0.01})
        self.thread.start()
        self.url = f'http://127.0.0.1:{self.httpd.server_port}'

    def close(self) -> None:
        self.httpd.shutdown()
        self.thread.join()
        self.httpd.server_close()

    @property
    def ranges(self) -> list[str | None]:
        return [headers.get('Range') for _, headers in self.requests]


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes = b'', **headers: Any) -> None:
    """A whole answer; ``Content_Length=None`` leaves the header out."""
    handler.send_response(status)
    for name, value in {'Content-Length': len(body), **{k.replace('_', '-'): v for k, v in headers.items()}}.items():
        if value is not None:
            handler.send_header(name, str(value))
    handler.end_headers()
    handler.wfile.write(body)


def serve(data: bytes, cut: int | None = None, ranges: bool = True, **headers: Any) -> Any:
    """An ordinary file server; with ``cut``, one whose connections break after so many bytes."""
    def answer(handler: BaseHTTPRequestHandler, count: int) -> None:
        asked = re.fullmatch(r'bytes=(\d+)-', handler.headers.get('Range', ''))
        validator = headers.get('ETag', headers.get('Last_Modified'))
        if asked and handler.headers.get('If-Range', validator) != validator:
            asked = None
        if not asked or not ranges:
            reply(handler, 200, data[:cut], Content_Length=len(data), **headers)
            return
        start = int(asked[1])
        if start >= len(data):
            reply(handler, 416, Content_Range=f'bytes */{len(data)}')
            return
        reply(handler, 206, data[start:][:cut], Content_Length=len(data) - start,
              Content_Range=f'bytes {start}-{len(data) - 1}/{len(data)}', **headers)
    return answer


def in_turn(*answers: Any) -> Any:
    """The first request gets the first answer, and so on; the last one serves all further ones."""
    return lambda handler, count: answers[min(count, len(answers) - 1)](handler, count)


def status(code: int, **headers: Any) -> Any:
    return lambda handler, count: reply(handler, code, **headers)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ('http_proxy', 'https_proxy', 'all_proxy', 'no_proxy'):  # this machine's own
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv(zoo.MIRROR, raising=False)
    server = Server()
    yield server
    server.close()


@pytest.fixture
def slept() -> list[float]:
    return []


@pytest.fixture
def patience(slept: list[float]) -> Patience:
    """The real one, but for the clock."""
    return Patience(sleep=slept.append)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / 'folder' / 'net.pth'


def left(file: Path) -> list[str]:
    return sorted(path.name for path in file.parent.iterdir())


# ------------------------------------------------------------------------------------------------ a file that comes

def test_a_file_comes_whole_and_nothing_else_is_left(server, file, patience, slept):
    fetch([server.url + '/net.pth'], file, SHA[:8], patience)
    assert file.read_bytes() == DATA
    assert left(file) == ['net.pth'] and slept == []
    assert server.ranges == [None]
    assert os.stat(file).st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


@pytest.mark.parametrize('headers', [{'ETag': '"v1"'}, {'Last_Modified': 'Sat, 21 Nov 2020 10:00:00 GMT'}, {}],
                         ids=['etag', 'date', 'no mark'])
def test_a_cut_connection_is_resumed_where_it_stopped(server, file, patience, slept, headers):
    server.answer = serve(DATA, cut=81_920, **headers)
    fetch([server.url + '/net.pth'], file, SHA[:8], patience)
    assert file.read_bytes() == DATA
    assert server.ranges == [None, 'bytes=81920-', 'bytes=163840-']
    mark = next(iter(headers.values()), None)
    assert [sent.get('If-Range') for _, sent in server.requests] == [None, mark, mark]
    assert len(slept) == 2 and 0.5 <= slept[0] <= 1 and 1 <= slept[1] <= 2  # back-off of 1 and 2 s, with jitter
    assert left(file) == ['net.pth']


def test_a_later_call_goes_on_with_the_part(server, file, patience):
    server.answer = in_turn(serve(DATA, cut=49_152, ETag='"v1"'), status(404))
    with pytest.raises(UnavailableError):
        fetch([server.url + '/net.pth'], file, SHA[:8], patience)
    assert left(file) == ['net.pth.part', 'net.pth.part.json']
    assert Path(f'{file}.part').read_bytes() == DATA[:49_152]
    server.answer = serve(DATA, ETag='"v1"')
    fetch([server.url + '/net.pth'], file, SHA[:8], patience)
    assert server.ranges[-1] == 'bytes=49152-'
    assert file.read_bytes() == DATA and left(file) == ['net.pth']


def test_a_part_that_is_complete_is_not_downloaded_again(server, file, patience):
    file.parent.mkdir()
    Path(f'{file}.part').write_bytes(DATA)
    Path(f'{file}.part.json').write_text(json.dumps({'address': server.url + '/net.pth', 'validator': '"v1"'}))
    server.answer = serve(DATA, ETag='"v1"')
    fetch([server.url + '/net.pth'], file, SHA[:8], patience)
    assert file.read_bytes() == DATA and server.ranges == [f'bytes={len(DATA)}-']


@pytest.mark.parametrize('note', ['', '[]', '{"address": "http://elsewhere/net.pth", "validator": "x"}',
                                  '{"address": null}'])
def test_a_part_of_unknown_origin_is_not_used(server, file, patience, note):
    file.parent.mkdir()
    Path(f'{file}.part').write_bytes(b'something else')
    Path(f'{file}.part.json').write_text(note)
    fetch([server.url + '/net.pth'], file, SHA[:8], patience)
    assert file.read_bytes() == DATA and server.ranges == [None]


def test_a_server_that_ignores_ranges_starts_again(server, file, patience):
    server.answer = in_turn(serve(DATA, cut=81_920), serve(DATA, ranges=False))
    fetch([server.url + '/net.pth'], file, SHA[:8], patience)
    assert server.ranges == [None, 'bytes=81920-']
    assert file.read_bytes() == DATA


def test_without_a_checksum_only_a_marked_version_is_resumed(server, file, patience):
    server.answer = in_turn(serve(DATA, cut=81_920), serve(DATA, cut=81_920, ETag='"v1"'), serve(DATA, ETag='"v1"'))
    fetch([server.url + '/net.pth'], file, None, patience)
    assert server.ranges == [None, None, 'bytes=81920-']
    assert file.read_bytes() == DATA


def test_a_weak_etag_is_no_mark(server, file, patience):
    server.answer = serve(DATA, cut=147_456, ETag='W/"v1"')
    fetch([server.url + '/net.pth'], file, SHA[:8], patience)
    assert all('If-Range' not in headers for _, headers in server.requests)


@pytest.mark.parametrize('checked', [True, False])
@pytest.mark.parametrize('if_range', ['honoured', 'ignored'])
def test_versions_of_a_file_that_changes_are_not_mixed(server, file, patience, checked, if_range):
    new = DATA[::-1]

    def changed(handler: BaseHTTPRequestHandler, count: int) -> None:
        if if_range == 'ignored':
            del handler.headers['If-Range']
        serve(new, ETag='"v2"')(handler, count)

    server.answer = in_turn(serve(DATA, cut=81_920, ETag='"v1"'), changed)
    fetch([server.url + '/net.pth'], file, hashlib.sha256(new).hexdigest() if checked else None, patience)
    assert file.read_bytes() == new


def test_joined_parts_with_a_wrong_checksum_are_downloaded_anew(server, file, patience):
    """Nothing marks the versions: only the checksum tells that parts of two files were joined."""
    server.answer = in_turn(serve(DATA[::-1], cut=81_920), serve(DATA))
    fetch([server.url + '/net.pth'], file, SHA[:8], patience)
    assert server.ranges == [None, 'bytes=81920-', None]
    assert file.read_bytes() == DATA


@pytest.mark.parametrize('named', ['bytes 0-199999/200000', 'bytes 60000-199999/200000', 'nonsense', None])
def test_a_part_that_was_not_asked_for_is_not_joined(server, file, patience, named):
    def other(handler: BaseHTTPRequestHandler, count: int) -> None:
        reply(handler, 206, DATA[60_000:], Content_Range=named)

    server.answer = in_turn(serve(DATA, cut=81_920), other, serve(DATA))
    fetch([server.url + '/net.pth'], file, SHA[:8], patience)
    assert server.ranges == [None, 'bytes=81920-', None]
    assert file.read_bytes() == DATA


def test_a_part_longer_than_the_file_is_dropped(server, file, patience):
    server.answer = in_turn(serve(DATA + DATA, cut=294_912), serve(DATA))
    fetch([server.url + '/net.pth'], file, SHA[:8], patience)
    assert server.ranges == [None, 'bytes=294912-', None]
    assert file.read_bytes() == DATA


def test_a_part_smaller_than_asked_for_is_continued(server, file, patience):
    """A server may answer with less than the range, if it says so."""
    def less(handler: BaseHTTPRequestHandler, count: int) -> None:
        start = int(handler.headers['Range'][6:-1])
        reply(handler, 206, DATA[start:start + 49_152],
              Content_Range=f'bytes {start}-{min(start + 49_151, len(DATA) - 1)}/{len(DATA)}')

    server.answer = in_turn(serve(DATA, cut=49_152), less)
    fetch([server.url + '/net.pth'], file, SHA[:8], patience)
    assert server.ranges == [None, *(f'bytes={n * 49_152}-' for n in (1, 2, 3, 4))]
    assert file.read_bytes() == DATA


def test_progress_is_no_failure(server, file, slept):
    data = random.Random(1).randbytes(7 << 20)
    server.answer = serve(data, cut=(1 << 20) + (1 << 19))
    fetch([server.url + '/net.pth'], file, hashlib.sha256(data).hexdigest(), Patience(attempts=2, sleep=slept.append))
    assert file.read_bytes() == data
    assert len(slept) == 4 and max(slept) <= 1


def test_a_length_that_is_not_told(server, file, patience):
    server.answer = in_turn(lambda h, n: reply(h, 200, DATA[:81_920], Content_Length=None),
                            lambda h, n: reply(h, 200, DATA, Content_Length=None))
    fetch([server.url + '/net.pth'], file, SHA[:8], patience)  # the first one was wrong: it may have been cut
    assert file.read_bytes() == DATA and server.ranges == [None, None]


def test_redirects_are_followed(server, file, patience):
    server.answer = in_turn(status(302, Location='/a'), status(307, Location=server.url + '/b'), serve(DATA))
    fetch([server.url + '/net.pth'], file, SHA[:8], patience)
    assert [line for line, _ in server.requests] == ['/net.pth', '/a', '/b']
    assert file.read_bytes() == DATA


@pytest.mark.parametrize('terminal', [True, False])
def test_the_progress_bar_is_for_terminals(server, file, patience, monkeypatch, terminal):
    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    monkeypatch.setattr(sys, 'stderr', stream := Stream())
    fetch([server.url + '/net.pth'], file, SHA[:8], patience)
    said = f'net.pth: downloading from {server.url}/net.pth\n'
    assert ('net.pth: 100%' in stream.getvalue() and '195k/195k' in stream.getvalue()) if terminal else \
        stream.getvalue() == said


def test_an_address_that_fails_is_followed_by_the_next(server, file, patience, capsys):
    server.answer = lambda handler, n: (serve(DATA) if handler.path == '/two' else status(404))(handler, n)
    fetch([server.url + '/one', server.url + '/two'], file, SHA[:8], patience)
    assert file.read_bytes() == DATA
    assert capsys.readouterr().err.splitlines() == [f'net.pth: downloading from {server.url}/{name}'
                                                    for name in ('one', 'two')]


# ----------------------------------------------------------------------------------------------- servers that wait

@pytest.mark.parametrize('code', [408, 429, 500, 502, 503, 504])
def test_a_passing_failure_is_tried_again(server, file, patience, slept, code):
    server.answer = in_turn(status(code), serve(DATA))
    fetch([server.url + '/net.pth'], file, SHA[:8], patience)
    assert file.read_bytes() == DATA and len(slept) == 1 and 0.5 <= slept[0] <= 1


def test_retry_after_in_seconds(server, file, patience, slept):
    server.answer = in_turn(status(429, Retry_After=17), serve(DATA))
    fetch([server.url + '/net.pth'], file, SHA[:8], patience)
    assert slept == [17]


def test_retry_after_as_a_date(server, file, patience, slept):
    date = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=60), usegmt=True)
    past = format_datetime(datetime.now(timezone.utc) - timedelta(seconds=60), usegmt=True)
    server.answer = in_turn(status(503, Retry_After=date), status(503, Retry_After=past),
                            status(503, Retry_After='soon'), serve(DATA))
    fetch([server.url + '/net.pth'], file, SHA[:8], patience)
    assert 0 < slept[0] <= 60 and slept[1] == 0 and 2 <= slept[2] <= 4


def test_a_server_that_wants_to_be_left_alone_for_long(server, file, patience, slept):
    server.answer = status(429, Retry_After=7200)
    with pytest.raises(UnavailableError, match='answers 429 Too Many Requests, and asks to come back in 7200 s'):
        fetch([server.url + '/net.pth'], file, SHA[:8], patience)
    assert slept == []


def test_attempts_are_bounded(server, file, patience, slept):
    server.answer = status(500)
    with pytest.raises(UnavailableError) as caught:
        fetch([server.url + '/net.pth'], file, SHA[:8], patience)
    assert str(caught.value) == (f'{server.url}/net.pth: the server answers 500 Internal Server Error, 5 times in a '
                                 'row')
    assert len(server.requests) == 5
    assert all(low <= wait <= 2 * low for low, wait in zip((0.5, 1, 2, 4), slept, strict=True))
    assert left(file) == []


def test_a_server_that_stalls(server, file, slept):
    done = threading.Event()

    def stall(handler: BaseHTTPRequestHandler, count: int) -> None:
        reply(handler, 200, DATA[:81_920], Content_Length=len(DATA))
        handler.wfile.flush()
        done.wait(30)

    server.answer = in_turn(stall, serve(DATA))
    fetch([server.url + '/net.pth'], file, SHA[:8], Patience(stall=0.2, sleep=slept.append))
    done.set()
    assert file.read_bytes() == DATA
    assert server.ranges == [None, 'bytes=81920-'] and len(slept) == 1


def test_a_server_that_never_answers(server, file, patience):
    done = threading.Event()
    server.answer = lambda handler, count: done.wait(30)
    with pytest.raises(UnavailableError, match=r'nothing came for 0\.1 s, 2 times in a row'):
        fetch([server.url + '/net.pth'], file, SHA[:8], Patience(stall=0.1, attempts=2, sleep=patience.sleep))
    done.set()


# ------------------------------------------------------------------------------------ what is wrong, and what is said

def refused(server: Server, file: Path, patience: Patience, sha256: str | None = SHA[:8]) -> str:
    """The message of a download that fails, without the address in front."""
    with pytest.raises(UnavailableError) as caught:
        fetch([server.url + '/net.pth'], file, sha256, patience)
    assert not file.exists()
    return str(caught.value).removeprefix(f'{server.url}/net.pth: ')


@pytest.mark.parametrize(('code', 'said'), [(404, 'there is no such file (404)'),
                                            (403, 'the server answers 403 Forbidden'),
                                            (410, 'the server answers 410 Gone')])
def test_a_final_answer_is_not_asked_for_again(server, file, patience, slept, code, said):
    server.answer = status(code)
    assert refused(server, file, patience) == said
    assert len(server.requests) == 1 and slept == [] and left(file) == []


def test_wrong_bytes(server, file, patience, slept):
    wrong = DATA[:-1] + b'!'
    found = hashlib.sha256(wrong).hexdigest()[:8]
    server.answer = serve(wrong)
    assert refused(server, file, patience) == (
        f'the 200,000 bytes that came have a sha256 that begins with {found}, expected {SHA[:8]}; they were removed')
    assert left(file) == [] and slept == []


def test_a_length_that_is_too_short(server, file, patience):
    """The client cannot see what follows: the checksum tells."""
    server.answer = lambda handler, count: reply(handler, 200, DATA, Content_Length=150_000)
    found = hashlib.sha256(DATA[:150_000]).hexdigest()[:8]
    assert refused(server, file, patience).startswith(
        f'the 150,000 bytes that came have a sha256 that begins with {found}, expected {SHA[:8]}')
    assert left(file) == []


@pytest.mark.parametrize('sha256', [SHA[:8], None])
def test_a_length_that_is_too_long(server, file, patience, sha256):
    server.answer = lambda handler, count: reply(handler, 200, DATA, Content_Length=262_144)
    said = refused(server, file, patience, sha256)
    assert said.startswith('the connection was cut: ') and said.endswith(', 5 times in a row')
    assert DATA.startswith(Path(f'{file}.part').read_bytes())


def test_a_length_of_thousands_of_digits(server, file, patience):
    server.answer = lambda handler, count: reply(handler, 200, DATA, Content_Length='9' * 5000)
    fetch([server.url], file, SHA[:8], patience)
    assert file.read_bytes() == DATA


def test_more_than_the_range(server, file, patience):
    def more(handler: BaseHTTPRequestHandler, count: int) -> None:
        start = int(handler.headers['Range'][6:-1])
        reply(handler, 206, DATA[start:] + b'more', Content_Length=None,
              Content_Range=f'bytes {start}-{len(DATA) - 1}/{len(DATA)}')

    server.answer = in_turn(serve(DATA, cut=81_920), more, serve(DATA))
    fetch([server.url + '/net.pth'], file, SHA[:8], patience)
    assert server.ranges == [None, 'bytes=81920-', None]
    assert file.read_bytes() == DATA


def test_nothing_at_all(server, file, patience):
    server.answer = lambda handler, count: reply(handler, 200, b'')
    assert refused(server, file, patience, None) == (
        'the connection was cut after 0 bytes, 5 times in a row')


@pytest.mark.parametrize('headers', [{'Content_Type': 'text/html; charset=utf-8'}, {}])
def test_a_web_page_is_no_network(server, file, patience, slept, headers):
    page = b'\n<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title></html>'
    server.answer = in_turn(serve(DATA, cut=81_920), lambda handler, count: reply(handler, 200, page, **headers))
    assert refused(server, file, patience).startswith('a web page came instead of the file, as Google Drive sends it')
    assert len(server.requests) == 2
    assert Path(f'{file}.part').read_bytes() == DATA[:81_920]  # what came before is not lost


@pytest.mark.parametrize('chunked', [True, False])
def test_more_than_any_network_has(server, file, patience, monkeypatch, chunked):
    monkeypatch.setattr(transfer, 'MAX_BYTES', 100_000)
    server.answer = lambda handler, count: reply(handler, 200, DATA, Content_Length=None if chunked else len(DATA))
    assert ('more than 200,000 bytes came, and never the file' if chunked else 'is said to have 200,000 bytes') in \
        refused(server, file, patience)
    assert left(file) == []


def test_redirects_in_a_circle(server, file, patience):
    server.answer = status(302, Location='/again')
    assert refused(server, file, patience) == 'it leads on to another address more than 5 times'
    assert len(server.requests) == 6


@pytest.mark.parametrize('target', ['ftp://127.0.0.1/net.pth', 'file:///etc/passwd'])
def test_redirects_to_anything_but_http(server, file, patience, target):
    server.answer = status(302, Location=target)
    assert 'No connection adapters were found' in refused(server, file, patience)


def test_no_server(server, file, patience, slept):
    server.close()
    try:
        said = refused(server, file, patience)
    finally:
        server.close = lambda: None  # type: ignore[method-assign]
    assert said == 'no connection to 127.0.0.1 (Connection refused): is there a network connection?, 5 times in a row'
    assert len(slept) == 4 and left(file) == []


def test_a_name_that_is_not_resolved(server, file, patience, monkeypatch):
    def unknown(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(-2, 'Name or service not known')

    monkeypatch.setattr(socket, 'getaddrinfo', unknown)
    with pytest.raises(UnavailableError) as caught:
        fetch(['http://weights.example/net.pth'], file, SHA[:8], patience)
    assert str(caught.value).startswith('http://weights.example/net.pth: the name weights.example cannot be resolved')


def test_a_full_disk_keeps_what_came(server, file, patience, monkeypatch):
    class Full(io.BufferedWriter):
        def write(self, data: Any) -> int:
            if self.tell() + len(data) > 100_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    def on_a_full_disk(name: Any, mode: str, **how: Any) -> Any:
        return Full(io.FileIO(name, mode)) if mode == 'wb' else open(name, mode, **how)

    monkeypatch.setattr(transfer, 'open', on_a_full_disk, raising=False)
    server.answer = serve(DATA, ETag='"v1"')
    with pytest.raises(DownloadError) as caught:
        fetch([server.url + '/net.pth'], file, SHA[:8], patience)
    assert str(caught.value) == (f'the disk is full: {file}.part is kept as far as it came; free some space, then the '
                                 'same command continues, or remove it')
    kept = Path(f'{file}.part').read_bytes()
    assert 0 < len(kept) <= 100_000 and DATA.startswith(kept) and not file.exists()
    monkeypatch.undo()
    fetch([server.url + '/net.pth'], file, SHA[:8], patience)
    assert file.read_bytes() == DATA and server.ranges[-1] == f'bytes={len(kept)}-'


def test_no_permission(server, file, patience, monkeypatch):
    monkeypatch.setattr(transfer, 'open', lambda *args, **kwargs: (_ for _ in ()).throw(
        PermissionError(errno.EACCES, 'Permission denied')), raising=False)
    with pytest.raises(DownloadError, match=f'cannot write into {file.parent}: permission denied; choose another'):
        fetch([server.url + '/net.pth'], file, SHA[:8], patience)


def test_a_folder_that_is_a_file(server, tmp_path, patience):
    (tmp_path / 'folder').write_text('')
    with pytest.raises(DownloadError, match=r'cannot write .*net\.pth\.part: .*File exists'):
        fetch([server.url + '/net.pth'], tmp_path / 'folder' / 'net.pth', SHA[:8], patience)


# ------------------------------------------------------------------------------------------------- servers without end

BIG = random.Random(2).randbytes(3 << 20)


def test_wrong_content_and_cut_connections_do_not_go_on_for_ever(server, file, patience, slept):
    """Each attempt brings more than a MiB; all of it is wrong, and dropped."""
    server.answer = lambda handler, count: (serve(BIG, cut=1 << 21, ranges=False)(handler, count) if count < 60 else
                                            reply(handler, 404))
    assert refused(server, file, patience).endswith('5 times in a row')
    wrong = serve(BIG[::-1], cut=1 << 21)
    server.requests.clear()
    server.answer = lambda handler, count: wrong(handler, count) if count < 60 else reply(handler, 404)
    assert refused(server, file, patience).endswith('times in a row')
    assert len(server.requests) <= 2 * 5


def test_no_attempt_is_won_by_content_that_was_dropped(server, file, patience):
    """Parts of 1.5 MiB that are joined, found wrong, and begun again."""
    part = serve(BIG[::-1], cut=3 << 19)
    server.answer = lambda handler, count: part(handler, count) if count < 60 else reply(handler, 404)
    assert 'times in a row' in refused(server, file, patience)
    assert len(server.requests) <= 3 + 5


def test_no_attempt_is_won_by_growing_parts_of_content_that_was_dropped(server, file, slept):
    """1 MiB and the rest, then 2 MiB and the rest: each goes further than all before, and all of it is wrong."""
    def answer(handler: BaseHTTPRequestHandler, count: int) -> None:
        whole = handler.headers.get('Range') is not None
        serve(BIG[::-1], cut=None if whole else (count // 2 + 1) << 20, ETag='"v1"')(handler, count)

    server.answer = answer
    assert refused(server, file, Patience(attempts=3, sleep=slept.append)).endswith('3 times in a row')
    assert server.ranges == [None, 'bytes=1048576-', None]


def test_bytes_are_bounded(server, file, monkeypatch, slept):
    monkeypatch.setattr(transfer, 'MAX_BYTES', 1 << 20)
    sent = []

    def endless(handler: BaseHTTPRequestHandler, count: int) -> None:
        sent.append(count)
        reply(handler, 200, bytes(1 << 20), Content_Length=None)
        handler.wfile.write(b'x')

    server.answer = endless
    said = refused(server, file, Patience(attempts=100, sleep=slept.append))
    assert said == 'more than 2,097,152 bytes came, and never the file' and len(sent) == 2


def test_a_server_that_drips(server, file, slept):
    """16 KiB at most each time, by a clock that says how long it took; the connection itself never stalls."""
    server.answer = serve(DATA, ETag='"v1"')
    ticks = iter(range(0, 10**9, 25))
    said = refused(server, file, Patience(attempts=2, sleep=slept.append, clock=lambda: next(ticks)))
    assert re.fullmatch(r'only [\d,]+ bytes came in 75 s, 2 times in a row', said)
    assert len(server.requests) == 2 and server.ranges[1] is not None  # what came is kept
    fetch([server.url + '/net.pth'], file, SHA[:8], Patience(sleep=slept.append, slowest=1, clock=lambda: next(ticks)))
    assert file.read_bytes() == DATA


HEAD, CHUNKS = b'HTTP/1.1 200 OK\r\n', b'Transfer-Encoding: chunked\r\n\r\n'
CHUNK = b'%x\r\n%b\r\n' % (len(DATA), DATA)
AROUND = {  # sent once, again and again, and at last; all of it together is a right answer
    'headers': (HEAD, b'X: y\r\n', CHUNKS + CHUNK + b'0\r\n\r\n'),
    'interim': (b'', b'HTTP/1.1 100 Continue\r\n\r\n', HEAD + CHUNKS + CHUNK + b'0\r\n\r\n'),
    'chunk': (HEAD + CHUNKS + b'%x;' % len(DATA), b'y', CHUNK[CHUNK.index(b'\r'):] + b'0\r\n\r\n'),
    'trailers': (HEAD + CHUNKS + CHUNK + b'0\r\n', b'X: y\r\n', b'\r\n'),
}


@pytest.mark.parametrize('where', AROUND)
def test_a_server_that_drips_around_the_body(server, file, slept, where):
    """Some bytes at a time, and a clock by which only the body comes fast enough; here it would come to an end."""
    def answer(handler: BaseHTTPRequestHandler, count: int) -> None:
        first, piece, last = AROUND[where]
        handler.wfile.write(first)
        for _ in range(30):
            handler.wfile.write(piece)
            time.sleep(0.01)  # else they would be read at once
        handler.wfile.write(last)

    server.answer = answer
    ticks = iter(range(0, 10**9, 25))
    said = refused(server, file, Patience(attempts=1, sleep=slept.append, clock=lambda: next(ticks), slowest=100))
    assert re.fullmatch(r'only [\d,]+ bytes came in \d+ s', said)
    fetch([server.url + '/net.pth'], file, SHA[:8], Patience(sleep=slept.append))
    assert file.read_bytes() == DATA


@pytest.mark.parametrize('where', ['interim', 'trailers'])
def test_what_stands_around_the_body_is_bounded_too(server, file, patience, monkeypatch, where):
    def answer(handler: BaseHTTPRequestHandler, count: int) -> None:
        first, piece, last = AROUND[where]
        handler.wfile.write(first + piece * (3 * 2**20 // len(piece)) + last)

    server.answer = answer
    monkeypatch.setattr(transfer, 'MAX_BYTES', 1 << 20)
    assert refused(server, file, patience) == 'more than 2,097,152 bytes came, and never the file'


def test_the_body_of_a_redirect_is_not_read(server, file, patience):
    sent = []

    def answer(handler: BaseHTTPRequestHandler, count: int) -> None:
        if handler.path == '/two':
            serve(DATA)(handler, count)
            return
        handler.send_response(302)
        handler.send_header('Location', '/two')
        handler.end_headers()
        for _ in range(64):
            handler.wfile.write(bytes(1 << 20))
            sent.append(1)

    server.answer = answer
    fetch([server.url + '/one'], file, SHA[:8], patience)
    assert file.read_bytes() == DATA and len(sent) < 64


# -------------------------------------------------------------------------------------- answers that make no sense

@pytest.mark.parametrize('target', ['http://[::1', 'http://[not-an-address]/net.pth', 'http://x:99999/net.pth', 'http://',
                                    'http://\u2603..example/x', '//'])
def test_redirects_to_addresses_that_make_no_sense(server, file, patience, target):
    def answer(handler: BaseHTTPRequestHandler, count: int) -> None:
        if handler.path != '/one':
            serve(DATA)(handler, count)
            return
        handler.send_response(302)
        handler._headers_buffer.append(b'Location: ' + target.encode() + b'\r\n')  # type: ignore[attr-defined]
        handler.end_headers()

    server.answer = answer
    with pytest.raises(UnavailableError):
        fetch([server.url + '/one'], file, SHA[:8], Patience(attempts=1))
    fetch([server.url + '/one', server.url + '/two'], file, SHA[:8], Patience(attempts=1))
    assert file.read_bytes() == DATA


@pytest.mark.parametrize('address', ['http://[::1', 'http://[x]/', 'http://a b/', 'http://x:99999/'])
def test_addresses_that_make_no_sense(server, file, patience, address):
    fetch([address, server.url + '/two'], file, SHA[:8], Patience(attempts=1))
    assert file.read_bytes() == DATA


@pytest.mark.parametrize('value', ['9' * 400, '9' * 5000, '1e400', 'Sat, 21 Nov 99999 10:00:00 GMT', '-1', '\u0663',
                                   'Sat, 21 Nov 2020 10:00:00 +99999999', 'Sat, 31 Feb 2020 10:00:00 GMT', ','])
def test_absurd_times_to_come_back(server, file, patience, slept, value):
    def answer(handler: BaseHTTPRequestHandler, count: int) -> None:
        handler.send_response(503)
        handler._headers_buffer.append(b'Retry-After: ' + value.encode() + b'\r\n')  # type: ignore[attr-defined]
        handler.end_headers()

    server.answer = lambda handler, count: (serve(DATA) if handler.path == '/two' else answer)(handler, count)
    fetch([server.url + '/one', server.url + '/two'], file, SHA[:8], patience)
    assert file.read_bytes() == DATA and all(wait <= 120 for wait in slept)
    if not value.startswith('9'):  # nonsense is as if nothing had been said
        assert [line for line, _ in server.requests] == ['/one'] * 5 + ['/two']
    else:
        assert 'asks to come back in more than 30 years' in refused_one(server, file, patience)


def refused_one(server: Server, file: Path, patience: Patience) -> str:
    file.unlink()
    with pytest.raises(UnavailableError) as caught:
        fetch([server.url + '/one'], file, SHA[:8], patience)
    return str(caught.value)


def test_a_long_or_steering_reason_is_not_shown_whole(server, file, patience, capsys):
    server.answer = lambda handler, count: handler.wfile.write(
        b'HTTP/1.1 500 \x1b[2J' + b'x' * 60_000 + b'\r\nContent-Length: 0\r\n\r\n')
    for said in (refused(server, file, Patience(attempts=1)), capsys.readouterr().err):
        assert '\x1b' not in said and len(said) < 1200
    assert 'the server answers 500 ?[2Jxxx' in refused(server, file, patience)
    assert '\x1b' not in (said := capsys.readouterr().err) and len(said) < 5 * 1200


def test_a_secure_connection_is_not_given_up(server, file, patience):
    """https to http is refused; http to http, and a path on the same server, are followed."""
    session, response = transfer._Session(patience, transfer._Budget(patience)), requests.Response()
    response.raw = io.BytesIO()
    response.status_code = 302
    for start, target, wrong in (('https://a.example/x', 'http://a.example/x', True),
                                 ('HTTPS://a.example/', 'HTTP://b/', True),
                                 ('https://a.example/x', '/y', False), ('https://a.example/x', '//b.example/y', False),
                                 ('https://a.example/x', 'https://b.example/y', False),
                                 ('http://a.example/x', 'http://b.example/y', False)):
        response.url, response.headers = start, CaseInsensitiveDict(Location=target)
        if wrong:
            with pytest.raises(transfer._Refused, match='from https to an address without encryption'):
                session.get_redirect_target(response)
        else:
            assert session.get_redirect_target(response) == target


# ----------------------------------------------------------------------------------------- what stands where it writes

@pytest.mark.parametrize('name', ['net.pth.part', 'net.pth.part.json'])
def test_a_part_that_is_a_link_is_not_written_through(server, file, patience, tmp_path, name):
    file.parent.mkdir()
    victim = tmp_path / 'victim'
    victim.write_text('mine')
    (file.parent / name).symlink_to(victim)
    with pytest.raises(DownloadError, match='is a symbolic link; remove it'):
        fetch([server.url + '/net.pth'], file, SHA[:8], patience)
    assert victim.read_text() == 'mine' and not file.exists()


def test_a_part_that_is_a_pipe(server, file, patience):
    file.parent.mkdir()
    os.mkfifo(f'{file}.part')
    reader = os.open(f'{file}.part', os.O_RDONLY | os.O_NONBLOCK)  # else nobody could write into it
    try:
        with pytest.raises(DownloadError, match=r'cannot write .*net\.pth\.part: .*it is no ordinary file; remove it'):
            fetch([server.url + '/net.pth'], file, SHA[:8], patience)
    finally:
        os.close(reader)


def test_a_target_that_is_a_link_is_followed(server, file, patience, tmp_path):
    file.parent.mkdir()
    file.symlink_to(tmp_path / 'elsewhere.pth')
    fetch([server.url + '/net.pth'], file, SHA[:8], patience)
    assert file.is_symlink() and (tmp_path / 'elsewhere.pth').read_bytes() == DATA and left(file) == ['net.pth']


def test_passwords_are_not_shown_or_stored(server, file, patience, capsys):
    server.answer = serve(DATA, cut=81_920, ETag='"v1"')
    secret = server.url.replace('://', '://user:p%40ss@')
    with pytest.raises(UnavailableError) as caught:
        fetch([secret + '/net.pth'], file, SHA[:8], Patience(attempts=1))
    said = str(caught.value) + capsys.readouterr().err + Path(f'{file}.part.json').read_text()
    assert 'user' not in said and 'ss@' not in said and said.count('://***@127.0.0.1') == 3
    fetch([secret + '/net.pth'], file, SHA[:8], patience)  # and the part is continued
    assert server.ranges[1] == 'bytes=81920-' and file.read_bytes() == DATA
    for wrong in ('http://user:p%40ss@[::1', 'http://user:p%40ss@x:99999/'):
        with pytest.raises(UnavailableError) as caught:
            fetch([wrong], file.with_name('b'), SHA[:8], Patience(attempts=1))
        assert 'p%40ss' not in str(caught.value)


# --------------------------------------------------------------------------------------------- proxy, mirror, others

def test_a_proxy_is_used_where_the_environment_names_one(server, file, patience, monkeypatch):
    monkeypatch.setenv('HTTP_PROXY', server.url)
    fetch(['http://weights.example/net.pth'], file, SHA[:8], patience)
    assert [line for line, _ in server.requests] == ['http://weights.example/net.pth']
    assert file.read_bytes() == DATA


def test_no_proxy(server, file, patience, monkeypatch):
    monkeypatch.setenv('HTTP_PROXY', 'http://127.0.0.1:9')
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    fetch([server.url + '/net.pth'], file, SHA[:8], patience)
    assert [line for line, _ in server.requests] == ['/net.pth']


def test_a_proxy_that_does_not_answer(server, file, patience, monkeypatch):
    server.close()
    monkeypatch.setenv('HTTP_PROXY', server.url)
    server.close = lambda: None  # type: ignore[method-assign]
    with pytest.raises(UnavailableError, match=r'the proxy does not let it through .*HTTP_PROXY'):
        fetch(['http://weights.example/net.pth'], file, SHA[:8], patience)


FETCH = '''
import sys
from pathlib import Path
from basicsr_ssl.zoo.transfer import fetch
print('ready', flush=True)
sys.stdin.readline()
fetch([sys.argv[1]], Path(sys.argv[2]), sys.argv[3])
'''


def test_of_several_processes_one_downloads(server, file):
    """They are started, and then let go at once; the server answers when the slower one waits for the faster."""
    waiting = threading.Event()

    def answer(handler: BaseHTTPRequestHandler, count: int) -> None:
        waiting.wait(60)
        serve(DATA)(handler, count)

    server.answer = answer
    processes = [subprocess.Popen([sys.executable, '-c', FETCH, server.url + '/net.pth', str(file), SHA[:8]],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                 for _ in range(2)]
    lines: list[str] = []

    def watch(stream: Any) -> None:
        for line in stream:
            lines.append(line)
            if 'waiting for another process' in line:
                waiting.set()

    readers = [threading.Thread(target=watch, args=(process.stderr,)) for process in processes]
    try:
        for reader in readers:
            reader.start()
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == 'ready\n'
        for process in processes:
            assert process.stdin is not None
            process.stdin.write('\n')
            process.stdin.flush()
        assert [process.wait(60) for process in processes] == [0, 0], lines
    finally:
        waiting.set()
        for process in processes:
            process.kill()
            process.wait()
        for reader in readers:
            reader.join()
        for process in processes:
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
    assert sorted(lines) == [f'net.pth: downloading from {server.url}/net.pth\n',
                             'net.pth: waiting for another process that downloads it\n']
    assert len(server.requests) == 1
    assert file.read_bytes() == DATA and left(file) == ['net.pth']


def test_who_waited_in_vain_downloads_itself(server, file, patience, monkeypatch):
    """The part file that it waited for is gone, and there is no file: the other process has failed."""
    waits = threading.Event()
    monkeypatch.setattr(transfer, '_say', lambda line: waits.set() if 'waiting for another' in line else None)
    file.parent.mkdir()
    part = Path(f'{file}.part')
    with open(part, 'ab') as other:
        transfer._lock(other, 'net.pth')
        worker = threading.Thread(target=fetch, args=([server.url + '/net.pth'], file, SHA[:8], patience))
        worker.start()
        assert waits.wait(60)
        part.unlink()
    worker.join(60)
    assert file.read_bytes() == DATA and left(file) == ['net.pth']


# -------------------------------------------------------------------------------------------------------- the list

ENTRY = {'source': 'here', 'arch': 'BasicVSR', 'trained_on': 'photographs', 'degradation': 'BI x4'}


@pytest.fixture
def listed(server, tmp_path, monkeypatch) -> Callable[..., None]:
    """Work in an empty folder with a list of three networks, and what else is given."""
    monkeypatch.chdir(tmp_path)

    def write(**more: Any) -> None:
        checked = {**ENTRY, 'method': 'BasicVSR', 'sha256': SHA[:8]}
        networks = {
            'first': {**checked, 'file': 'a.pth', 'url': server.url + '/x/a.pth'},
            'second': {**checked, 'file': 'b.pth', 'url': server.url + '/b.pth'},
            'third': {**ENTRY, 'file': 'c.pt', 'page': 'https://weights.example/folder'}, **more}
        (tmp_path / 'options').mkdir(exist_ok=True)
        (tmp_path / zoo.LIST).write_text(yaml.safe_dump({
            'sources': {'here': {'url': 'https://weights.example', 'licence': 'MIT'}}, 'networks': networks}))

    write()
    return write


PRETRAINED = Path(zoo.FOLDER)


def test_download_by_name_once(server, listed, patience):
    assert zoo.download(['second', 'first', 'second'], 'weights', patience) == [Path('weights/b.pth'),
                                                                                Path('weights/a.pth')]
    assert [line for line, _ in server.requests] == ['/b.pth', '/x/a.pth']
    assert zoo.download(['first'], 'weights', patience) == [Path('weights/a.pth')]
    assert len(server.requests) == 2
    assert zoo.download([], 'weights', patience) == []


def test_download_of_a_method(server, listed, patience):
    assert zoo.download(['BasicVSR'], 'weights', patience) == [Path('weights/a.pth'), Path('weights/b.pth')]


def test_all_leaves_out_what_no_program_can_download(server, listed, patience, capsys):
    assert zoo.download(['all'], 'weights', patience) == [Path('weights/a.pth'), Path('weights/b.pth')]
    note = ('third: left out, no program can download it: open https://weights.example/folder in a browser, and save '
            'c.pt as weights/c.pt')
    assert note in capsys.readouterr().err
    Path('weights/c.pt').write_bytes(DATA)
    assert zoo.download(['all'], 'weights', patience)[2] == Path('weights/c.pt')


def test_what_no_program_can_download_is_an_error_when_asked_for(server, listed, patience):
    with pytest.raises(DownloadError) as caught:
        zoo.download(['third'], 'weights', patience)
    assert str(caught.value) == ('third: c.pt cannot be downloaded by a program: open https://weights.example/folder '
                                 'in a browser, and save c.pt as weights/c.pt')


def test_one_that_fails_does_not_keep_the_others_from_coming(server, listed, patience):
    server.answer = lambda handler, n: (status(404) if handler.path == '/x/a.pth' else serve(DATA))(handler, n)
    with pytest.raises(DownloadError) as caught:
        zoo.download(['first', 'second', 'third'], 'weights', patience)
    assert str(caught.value).splitlines() == [
        '2 of 3 files could not be downloaded:',
        f'  first: {server.url}/x/a.pth: there is no such file (404). If that does not pass, open '
        f'{server.url}/x/a.pth in a browser, and save a.pth as weights/a.pth',
        '  third: c.pt cannot be downloaded by a program: open https://weights.example/folder in a browser, and save '
        'c.pt as weights/c.pt',
        'Downloaded: weights/b.pth']
    assert Path('weights/b.pth').read_bytes() == DATA


def test_another_file_in_its_place_is_reported_and_left(server, listed, patience):
    Path('weights').mkdir()
    Path('weights/a.pth').write_bytes(b'mine')
    with pytest.raises(DownloadError) as caught:
        zoo.download(['first'], 'weights', patience)
    assert str(caught.value) == (
        f'first: weights/a.pth is there already, but its sha256 begins with {hashlib.sha256(b"mine").hexdigest()[:8]}, '
        f'that of first with {SHA[:8]}: it is damaged or another file. Move it away, then run again')
    assert Path('weights/a.pth').read_bytes() == b'mine' and server.requests == []


def test_unknown_names_download_nothing(server, listed, patience):
    with pytest.raises(ValueError, match=r"^there is no network 'frist' in options/zoo\.yml; did you mean 'first'\?$"):
        zoo.download(['second', 'frist'], 'weights', patience)
    with pytest.raises(ValueError, match=r"'THIRD' in options/zoo\.yml; did you mean 'third'\?$"):
        zoo.download(['THIRD'], 'weights', patience)
    with pytest.raises(ValueError, match=r"; known are BasicVSR, all, first, second, third$"):
        zoo.download(['xyz'], 'weights', patience)
    assert server.requests == []


def test_a_mirror_is_asked_first(server, listed, patience, monkeypatch):
    monkeypatch.setenv(zoo.MIRROR, server.url + '/mirror/')
    server.answer = lambda handler, n: (status(404) if handler.path == '/mirror/b.pth' else serve(DATA))(handler, n)
    zoo.download(['all'], 'weights', patience)  # with a mirror also what is else to be had by hand
    assert [line for line, _ in server.requests] == ['/mirror/a.pth', '/mirror/b.pth', '/b.pth', '/mirror/c.pt']
    monkeypatch.setenv(zoo.MIRROR, '/a/folder')
    with pytest.raises(ValueError, match='BASICSR_SSL_MIRROR should be the address of a folder'):
        zoo.download(['first'], 'elsewhere', patience)


def test_listing(server, listed, patience):
    zoo.download(['first'], zoo.FOLDER, patience)
    assert zoo.listing().splitlines() == [
        'basicsr_ssl: part of this package, licence: Apache-2.0',
        '  basicvsr_small_x4  here     BasicVSR of 32 channels, 5 blocks, without flow, videos and photographs, BI x4',
        '  spynet_small       here     SpyNet, a ninth of the size, moving photographs',
        'here: https://weights.example, licence: MIT',
        '  first              here     BasicVSR, photographs, BI x4',
        '  second                      BasicVSR, photographs, BI x4',
        '  third              by hand  BasicVSR, photographs, BI x4',
        '',
        'here: in experiments/pretrained_models. by hand: options/zoo.yml says on which page it is.',
        'Download: basicsr-ssl download NAME ... | all. In option files: zoo://NAME.']


def test_the_command(server, listed, capsys):
    assert cli.main(['download', 'first', '--to', 'weights']) == 0
    assert capsys.readouterr().out == 'weights/a.pth\n'
    assert cli.main(['download']) == 0
    assert capsys.readouterr().out == zoo.listing() + '\n'
    server.answer = status(404)
    assert cli.main(['download', 'first', 'second', '--to', 'weights']) == 1
    assert 'basicsr-ssl: 1 of 2 files could not be downloaded:\n  second: ' in capsys.readouterr().err


def test_the_listing_is_of_the_folder_that_is_named(server, listed, capsys):
    assert cli.main(['download', 'first', '--to', 'weights']) == 0
    capsys.readouterr()
    for arguments, first, here in (([], ' ', zoo.FOLDER), (['--to', 'weights'], 'here', 'weights')):
        assert cli.main(['download', *arguments]) == 0
        said = capsys.readouterr().out
        assert re.search(rf'^  first +{first} +BasicVSR', said, re.MULTILINE) and f'here: in {here}.' in said
    Path('weights/a.pth').unlink()
    Path('weights/a.pth').mkdir()
    assert cli.main(['download', 'first', '--to', 'weights']) == 1
    assert 'weights/a.pth is a folder, and no network file: move it away' in capsys.readouterr().err


def test_a_mirrors_password_is_not_shown(server, listed, patience, monkeypatch):
    monkeypatch.setenv(zoo.MIRROR, server.url.replace('://', '://user:secret@') + '/mirror')
    server.answer = status(404)
    with pytest.raises(DownloadError) as caught:
        zoo.download(['first'], 'weights', patience)
    assert 'secret' not in str(caught.value) and '/mirror/a.pth' in str(caught.value)
    monkeypatch.setenv(zoo.MIRROR, 'ftp://user:secret@host')
    with pytest.raises(ValueError) as wrong:
        zoo.download(['first'], 'weights', patience)
    assert 'secret' not in str(wrong.value)


def test_basicsr_script(server, listed, tmp_path):
    result = subprocess.run([sys.executable, ROOT / 'scripts/download_pretrained_models.py', 'BasicVSR'], cwd=tmp_path,
                            capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [str(PRETRAINED / 'a.pth'), str(PRETRAINED / 'b.pth')]
    assert (tmp_path / PRETRAINED / 'b.pth').read_bytes() == DATA


@pytest.mark.parametrize(('change', 'said'), [
    ({'file': '../a.pth'}, "networks: new: file: String should match pattern"),
    ({'url': 'ftp://x/a.pth'}, 'networks: new: url: String should match pattern'),
    ({'url': None}, 'networks: new: should have one of url, google_drive and page'),
    ({'page': 'https://x'}, 'networks: new: should have one of url, google_drive and page'),
    ({'sha256': 'XYZ'}, 'networks: new: sha256: String should match pattern'),
    ({'sha256': 12345678}, 'networks: new: sha256: Input should be a valid string'),
    ({'chekcsum': 'x'}, 'networks: new: chekcsum: Extra inputs are not permitted'),
    ({'arch': None}, 'networks: new: arch: Input should be a valid string'),
    ({'source': 'heer'}, "new: there is no source 'heer'; did you mean 'here'?"),
    ({'file': 'a.pth'}, 'a.pth is also the file of another network'),
    ({'method': 'first'}, 'first: stands for several networks already; choose another name'),
])
def test_a_list_with_mistakes(listed, change, said):
    listed(new={**ENTRY, 'file': 'new.pth', 'url': 'https://x/new.pth', **change})
    with pytest.raises(ValueError, match=f'options/zoo.yml is no valid list of networks:\n.*{re.escape(said)}'):
        zoo.read_list()


def test_no_list(listed, tmp_path, monkeypatch):
    (tmp_path / zoo.LIST).write_text('networks: {a')
    with pytest.raises(ValueError, match=r'options/zoo\.yml: no valid YAML'):
        zoo.read_list()
    (tmp_path / zoo.LIST).unlink()
    assert 'BasicVSR_REDS4' in zoo.read_list().networks  # the project's
    monkeypatch.setattr(zoo, '__file__', str(tmp_path / 'a/b/c.py'))
    with pytest.raises(FileNotFoundError, match=r'there is no options/zoo\.yml, neither here nor in'):
        zoo.read_list()


def test_the_projects_list():
    """Files, addresses and digits as their projects publish them."""
    mmagic = 'https://download.openmmlab.com/mmediting/restorers/basicvsr/'
    networks = yaml.safe_load((ROOT / zoo.LIST).read_text())['networks']
    entries = {name: zoo.Entry.model_validate(entry) for name, entry in networks.items()}
    assert {name: (entry.file, entry.addresses()[0].replace(mmagic, '*')) for name, entry in entries.items()
            if not entry.page} == {
        name: (file, '*' + file if not drive else
               f'https://drive.usercontent.google.com/download?id={drive}&export=download&confirm=t')
        for name, file, drive in (
            ('BasicVSR_REDS4', 'BasicVSR_REDS4-543c8261.pth', '1wLWdz18lWf9Z7lomHPkdySZ-_GV2920p'),
            ('BasicVSR_Vimeo90K_BIx4', 'BasicVSR_Vimeo90K_BIx4-2a29695a.pth', '1ykIu1jv5wo95Kca2TjlieJFxeV4VVfHP'),
            ('BasicVSR_Vimeo90K_BDx4', 'BasicVSR_Vimeo90K_BDx4-e9bf46eb.pth', '1baaf4RSpzs_zcDAF_s2CyArrGvLgmXxW'),
            ('spynet_sintel_final', 'spynet_sintel_final-3d2a1287.pth', '1VZz1cikwTRVX7zXoD247DB7n5Tj_LQpF'),
            ('mmagic/BasicVSR_REDS4', 'basicvsr_reds4_20120409-0e599677.pth', ''),
            ('mmagic/BasicVSR_Vimeo90K_BIx4', 'basicvsr_vimeo90k_bi_20210409-d2d8f760.pth', ''),
            ('mmagic/BasicVSR_Vimeo90K_BDx4', 'basicvsr_vimeo90k_bd_20210409-0154dd64.pth', ''),
            ('mmagic/spynet', 'spynet_20210409-c6c1bd09.pth', ''))}
    assert {entry.page for entry in entries.values() if entry.page} == {
        'https://drive.google.com/drive/folders/1of6pPD1exn_VWnekIW-gmaY7jHLOlZvm'}
    for entry in entries.values():  # the digits stand in the files' names
        assert entry.sha256 == (None if entry.page else entry.file.removesuffix('.pth')[-8:])


# --------------------------------------------------------------------------------------------- names in option files

OPTIONS = yaml.safe_load('''
name: tiny
model_type: ReconstructionModel
network_g: {type: PrunableBasicVSR, num_feat: 8, num_block: 1, tail_feat: 8}
datasets:
  train: {name: photos, type: MovingPhotosDataset, photos: [astronaut], num_frame: 3, gt_size: 64}
path: {pretrain_network_g: zoo://first}
train: {total_iter: 20, optim_g: {lr: 1.0e-3}, pixel_opt: {type: CharbonnierLoss}}
''')


def load(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    file = tmp_path / 'tiny.yml'
    file.write_text(yaml.safe_dump({**OPTIONS, **changes}))
    return config.load_options(file)


def test_resolve(server, listed, patience):
    assert zoo.resolve('zoo://first', patience) == str(PRETRAINED / 'a.pth')
    assert (PRETRAINED / 'a.pth').read_bytes() == DATA
    assert zoo.resolve('zoo://first', patience) == str(PRETRAINED / 'a.pth') and len(server.requests) == 1
    for other in ('bicubic', 'stage://first', 'some/file.pth', 'first', ''):
        assert zoo.resolve(other) == other
    with pytest.raises(ValueError, match=r"there is no network 'forst' in options/zoo\.yml; did you mean 'first'"):
        zoo.resolve('zoo://forst')


def test_what_is_packaged_needs_neither_list_nor_server(server, tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, '_list_file', pytest.fail)
    for name in zoo.PACKAGED:
        assert Path(zoo.resolve(f'zoo://{name}')).parent == Path(zoo.__file__).parent
        assert Path(zoo.resolve(f'zoo://{name}')).stat().st_size < 1.1e6
        assert zoo.find(name).is_at_hand()
    assert len(zoo.PACKAGED) == 2 and server.requests == []


def test_option_files_name_entries(server, listed, tmp_path):
    options = load(tmp_path, network_g={**OPTIONS['network_g'], 'spynet_path': 'zoo://second'})
    config.check_files(options)
    assert server.requests == []
    fetched = config.fetch_files(options)
    assert fetched['path']['pretrain_network_g'] == str(PRETRAINED / 'a.pth')
    assert fetched['network_g']['spynet_path'] == str(PRETRAINED / 'b.pth')
    assert (PRETRAINED / 'a.pth').read_bytes() == (PRETRAINED / 'b.pth').read_bytes() == DATA
    same = load(tmp_path, path={'pretrain_network_g': str(PRETRAINED / 'a.pth')},
                network_g={**OPTIONS['network_g'], 'spynet_path': str(PRETRAINED / 'b.pth')})
    assert fetched == same  # and so has the same fingerprint


def test_recipes_name_entries(server, listed, tmp_path):
    recipe = config.fetch_files(load(
        tmp_path, model_type=None, network_g=None, train=None, val={'metrics': {'psnr': {'type': 'calculate_psnr',
                                                                                         'crop_border': 0}}},
        datasets={**OPTIONS['datasets'], 'test': {'name': 'held', 'type': 'MovingPhotosTestDataset',
                                                  'photos': ['chelsea'], 'num_frame': 3, 'gt_size': 64}},
        pruning={'ratio': 0.5, 'score': 'l1'}, report={'rows': {'dense': 'zoo://second', 'small': 'stage://prune'}},
        stages={'prune': {'model_type': 'PruningModel'}}))
    assert recipe['report']['rows'] == {'dense': str(PRETRAINED / 'b.pth'), 'small': 'stage://prune'}
    [stage] = config.stage_options(recipe).values()
    assert stage['path']['pretrain_network_g'] == str(PRETRAINED / 'a.pth')


@pytest.mark.parametrize(('changes', 'keys'), [
    ({'path': {'pretrain_network_g': 'zoo://fist'}}, 'path:pretrain_network_g'),
    ({'path': {'pretrain_network_teacher': 'zoo://fist'}}, 'path:pretrain_network_teacher'),
    ({'network_g': {**OPTIONS['network_g'], 'spynet_path': 'zoo://fist'}}, 'network_g:spynet_path'),
    ({'report': {'rows': {'a': 'zoo://fist'}}, 'val': {'metrics': {'psnr': {'type': 'calculate_psnr',
                                                                              'crop_border': 0}}}}, 'report:rows:a'),
])
def test_option_files_with_unknown_entries(listed, tmp_path, changes, keys):
    with pytest.raises(config.OptionsError) as caught:
        load(tmp_path, **changes)
    assert f"{keys}: there is no network 'fist' in options/zoo.yml; did you mean 'first'?" in str(caught.value)


def test_option_files_with_an_entry_to_be_had_by_hand(listed, tmp_path):
    options = load(tmp_path, path={'pretrain_network_g': 'zoo://third'})
    with pytest.raises(config.OptionsError) as caught:
        config.check_files(options)
    assert str(caught.value) == (
        'path:pretrain_network_g: zoo://third does not exist: no program can download it: open '
        'https://weights.example/folder in a browser, and save c.pt as experiments/pretrained_models/c.pt; or set this '
        'key')
    PRETRAINED.mkdir(parents=True)
    (PRETRAINED / 'c.pt').write_bytes(DATA)
    config.check_files(options)


def test_a_published_network_has_no_gates_to_rank_by(listed, tmp_path):
    with pytest.raises(config.OptionsError, match='zoo://first has none: choose l1 or l2'):
        load(tmp_path, model_type='PruningModel', train=None, pruning={'ratio': 0.5})
