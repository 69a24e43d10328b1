import hashlib
import io
import json
import multiprocessing
import random

import pytest
from http_server import serve

from megabert.formats import download
from megabert.formats.download import Digest

CONTENT = random.Random(0).randbytes(300_000)
DIGEST = Digest(len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


def test_fetches_records_and_leaves_nothing_else(tmp_path):
    seen = []
    with serve(CONTENT) as server:
        target = download.fetch(server.url, tmp_path / "a" / "model.pt", progress=lambda *now: seen.append(now))
        assert target.read_bytes() == CONTENT
        assert download.fetch(server.url, target) == target
        assert len(server.requests) == 1
    note = json.loads((tmp_path / "a" / "model.pt.json").read_text())
    assert (note["sha256"], note["size"], note["source"]) == (DIGEST.sha256, DIGEST.size, server.url)
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert {path.name for path in target.parent.iterdir()} <= {"model.pt", "model.pt.json", "model.pt.lock"}


def test_goes_on_after_cuts(tmp_path):
    with serve(CONTENT) as server:
        server.cuts = [1000, 50_000, 1, 100_000]
        download.fetch(server.url, tmp_path / "m", expected=DIGEST, patience=0.001)
        assert (tmp_path / "m").read_bytes() == CONTENT
        assert server.requests == [None, "bytes=1000-", "bytes=51000-", "bytes=51001-", "bytes=151001-"]


def test_a_later_call_goes_on_with_the_partial_file(tmp_path):
    with serve(CONTENT) as server:
        server.cuts = [70_000, 0, 0, 0, 0, 0]
        with pytest.raises(OSError, match=r"could not be fetched: the connection ended too early \(5 tries"):
            download.fetch(server.url, tmp_path / "m", patience=0.001)
        assert not (tmp_path / "m").exists()
        server.cuts, server.requests = [], []
        download.fetch(server.url, tmp_path / "m")
        assert server.requests == ["bytes=70000-"]
    assert (tmp_path / "m").read_bytes() == CONTENT


def test_a_partial_file_of_another_version_is_not_mixed_in(tmp_path):
    with serve(CONTENT) as server:
        server.cuts = [70_000, 0, 0, 0, 0, 0]
        with pytest.raises(OSError):
            download.fetch(server.url, tmp_path / "m", patience=0.001)
        server.content, server.tag, server.cuts = CONTENT[::-1], '"two"', []
        download.fetch(server.url, tmp_path / "m")
    assert (tmp_path / "m").read_bytes() == CONTENT[::-1]


def test_server_without_ranges_starts_again(tmp_path):
    with serve(CONTENT) as server:
        server.ranges, server.cuts = False, [100_000]
        download.fetch(server.url, tmp_path / "m", patience=0.001)
    assert (tmp_path / "m").read_bytes() == CONTENT


def test_partial_file_longer_than_the_whole_starts_again(tmp_path):
    with serve(CONTENT) as server:
        server.cuts = [200_000, 0, 0, 0, 0, 0]
        with pytest.raises(OSError):
            download.fetch(server.url, tmp_path / "m", patience=0.001)
        server.content, server.cuts = CONTENT[:1000], []
        download.fetch(server.url, tmp_path / "m")
    assert (tmp_path / "m").read_bytes() == CONTENT[:1000]


def test_wrong_bytes_are_thrown_away(tmp_path):
    with serve(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])) as server:
        with pytest.raises(ValueError, match=r"SHA-256 .* are expected; they were thrown away"):
            download.fetch(server.url, tmp_path / "m", expected=DIGEST)
        assert not (tmp_path / "m").exists()
        server.content = CONTENT
        download.fetch(server.url, tmp_path / "m", expected=DIGEST)
        (tmp_path / "m").unlink()
        server.content = CONTENT[::-1]  # the server has another file than at first use
        with pytest.raises(ValueError, match="are expected"):
            download.fetch(server.url, tmp_path / "m")
        assert not (tmp_path / "m").exists()


def test_a_file_that_changed_on_disk_is_refused(tmp_path):
    with serve(CONTENT) as server:
        target = download.fetch(server.url, tmp_path / "m")
        changed = bytearray(CONTENT)
        changed[1000] ^= 1
        target.write_bytes(changed)
        with pytest.raises(ValueError, match=r"/m is not the file that is expected"):
            download.fetch(server.url, target)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"status": 404}, ValueError, "answers 404"),
        ({"status": 503}, OSError, "503.*5 tries"),
        ({"kind": "text/html; charset=utf-8"}, ValueError, "web page"),
        ({"location": "file:///etc/passwd"}, ValueError, "is not allowed"),
        ({"location": "ftp://127.0.0.1/x"}, ValueError, "not followed"),
    ],
)
def test_answers_that_are_no_file(tmp_path, change, error, message):
    with serve(b"sign up first") as server:
        for name, value in change.items():
            setattr(server, name, value)
        with pytest.raises(error, match=message):
            download.fetch(server.url, tmp_path / "m", patience=0.0001)
    assert not (tmp_path / "m").exists()


def test_other_schemes_and_dead_servers(tmp_path):
    (tmp_path / "secret").write_text("x")
    with pytest.raises(ValueError, match="not an http"):
        download.fetch((tmp_path / "secret").as_uri(), tmp_path / "m")
    with serve(b"") as server:
        url = server.url
    with pytest.raises(OSError, match="could not be fetched"):
        download.fetch(url, tmp_path / "m", patience=0.0001)


def test_no_room(tmp_path, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: _Usage())
    with serve(CONTENT) as server, pytest.raises(OSError, match="has 10 bytes free, where 300,000 are needed"):
        download.fetch(server.url, tmp_path / "m", patience=0.0001)


class _Usage:
    free = 10


def _fetch(url, target):
    download.fetch(url, target)


def test_many_processes_one_download(tmp_path):
    with serve(CONTENT) as server:
        context = multiprocessing.get_context("fork")
        workers = [context.Process(target=_fetch, args=(server.url, tmp_path / "m")) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(30)
        assert [worker.exitcode for worker in workers] == [0] * 4
        assert len(server.requests) == 1
    assert (tmp_path / "m").read_bytes() == CONTENT


def test_progress_lines():
    out = io.StringIO()
    tell = download.show_progress("bert", out)
    for done in (1_000_000, 1_500_000, 5_000_000, 10_000_000):
        tell(done, 10_000_000)
    lines = out.getvalue().splitlines()
    assert lines[0] == "fetching bert: 1 of 10 MB"
    assert len(lines) == 3  # one a tenth
    assert lines[-1] == "fetching bert: 10 of 10 MB"
