"""Downloads from a server on this machine that can do what real ones do: go on, break off, refuse, send the wrong."""

import gzip
import hashlib
import io
import json
import shutil
import stat
import threading
import warnings
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import HfApi
from huggingface_hub.utils import _http

from tdro.config import TaskConfig
from tdro.errors import ConfigError, DataError, EnvironmentProblem
from tdro.evaluation import downloads, transfer
from tdro.evaluation.downloads import BEIR, expand, fetch, fetched, unpack
from tdro.evaluation.tasks import find_task
from tdro.evaluation.transfer import download

COMMIT = "0123456789" * 4
BODY = bytes(range(256)) * 4096  # 1 MiB


class Server(ThreadingHTTPServer):
    """Files by path, and how it misbehaves.

    `cut` is how many bytes go out before the connection breaks, once per number in the list; `errors` are statuses
    that come before the file; `asked` are the Range headers seen, None where there was none.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cut: list[int] = []
        self.errors: list[int] = []
        self.ranges, self.gated = True, False
        self.asked: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """Say nothing about clients that hang up."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.server.gated and self.headers.get("Authorization") != "Bearer hf_right":
            self._send(401, b"", {"X-Error-Code": "GatedRepo"}, body)
        elif body and self.server.errors:
            self._send(self.server.errors.pop(0), b"", {}, body)
        elif path.startswith("/api/"):
            folder = path.split(f"/tree/{COMMIT}/")[1]
            listed = [self._entry(name, content) for name, content in self.server.files.items() if folder in name]
            self._send(200, json.dumps(listed).encode(), {"Content-Type": "application/json"}, body)
        elif path in self.server.files:
            self._file(self.server.files[path], body)
        else:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)

    def _entry(self, name: str, content: bytes) -> dict[str, object]:
        """A file as the hub lists it: large files by sha256, small ones by git's hash."""
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry = {"type": "file", "path": name.split(f"{COMMIT}/")[1], "size": len(content), "oid": git}
        if name.endswith(".gz"):
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 100}
        return entry

    def _file(self, content: bytes, body: bool) -> None:
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        asked, status = self.headers.get("Range"), 200
        if body:
            self.server.asked.append(asked)
        if asked and self.server.ranges:
            start = int(asked.removeprefix("bytes=").split("-")[0])
            if start >= len(content):
                return self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"}, body)
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            content, status = content[start:], 206
        self._send(status, content, headers, body)

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body and status < 400 and self.server.cut:
            content = content[: self.server.cut.pop(0)]
            self.close_connection = True
        if body:
            self.wfile.write(content)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that runs as long as the test, and stands in for all that tdro knows."""
    monkeypatch.setattr(transfer, "PAUSE", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(downloads, "BEIR_URL", running.url + "/{name}.zip")
        monkeypatch.setattr(downloads, "MKQA_URL", running.url + "/mkqa.jsonl.gz")
        monkeypatch.setattr(downloads, "_hub", lambda: HfApi(endpoint=running.url))
        parts = tuple((name, COMMIT, folder) for name, _, folder in downloads.MIRACL_PARTS)
        monkeypatch.setattr(downloads, "MIRACL_PARTS", parts)
        yield running
        running.shutdown()
        thread.join()


def zipped(files: dict[str, str]) -> bytes:
    """A zip file."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return stream.getvalue()


SCIFACT = {
    "scifact/corpus.jsonl": '{"_id": "d", "title": "", "text": "bees"}\n',
    "scifact/queries.jsonl": '{"_id": "q", "text": "bee"}\n',
    "scifact/qrels/test.tsv": "query-id\tcorpus-id\tscore\nq\td\t1\n",
}


def publish(server: Server, monkeypatch: pytest.MonkeyPatch, files: dict[str, str] = SCIFACT) -> bytes:
    """Put an archive on the server under the name scifact, with its checksum."""
    content = zipped(files)
    server.files["/scifact.zip"] = content
    monkeypatch.setitem(BEIR, "scifact", (hashlib.md5(content).hexdigest(), "1"))
    return content


def names_in(folder: Path) -> set[str]:
    """All files below a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_transfer_that_breaks_goes_on_where_it_broke(server, tmp_path):
    server.files["/f"], server.cut = BODY, [300_000, 500_000]
    seen: list[tuple[int, int]] = []
    download(f"{server.url}/f", tmp_path / "part", tmp_path / "f", lambda done, of: seen.append((done, of)))
    assert (tmp_path / "part").read_bytes() == BODY
    assert server.asked == [None, "bytes=300000-", "bytes=800000-"]
    assert seen == sorted(seen) and seen[-1] == (len(BODY), len(BODY))


def test_a_server_that_cannot_go_on_is_asked_for_the_whole_file(server, tmp_path):
    server.files["/f"], server.ranges = BODY, False
    (tmp_path / "part").write_bytes(b"something else that was left")
    download(f"{server.url}/f", tmp_path / "part", tmp_path / "f", lambda done, of: None)
    assert (tmp_path / "part").read_bytes() == BODY


def test_a_part_that_is_whole_is_not_asked_for_again_and_one_too_long_is_thrown_away(server, tmp_path):
    server.files["/f"] = BODY
    for left in (BODY, BODY + b"more"):
        (tmp_path / "part").write_bytes(left)
        download(f"{server.url}/f", tmp_path / "part", tmp_path / "f", lambda done, of: None)
        assert (tmp_path / "part").read_bytes() == BODY
    assert server.asked == [f"bytes={len(BODY)}-", f"bytes={len(BODY) + 4}-", None]


def test_errors_that_pass_are_waited_for_and_others_are_said_at_once(server, tmp_path):
    server.files["/f"], server.errors = BODY, [503, 429, 500, 502]
    download(f"{server.url}/f", tmp_path / "part", tmp_path / "f", lambda done, of: None)
    assert (tmp_path / "part").read_bytes() == BODY
    with pytest.raises(EnvironmentProblem, match="404") as error:
        download(f"{server.url}/none", tmp_path / "other", tmp_path / "target.zip", lambda done, of: None)
    assert "target.zip" in str(error.value) and f"{server.url}/none" in str(error.value)


def test_a_server_that_always_breaks_off_or_is_not_there_is_given_up(server, tmp_path):
    server.files["/f"], server.cut = BODY, [1000, *[0] * transfer.TRIES]
    with pytest.raises(EnvironmentProblem, match="cannot be downloaded"):
        download(f"{server.url}/f", tmp_path / "part", tmp_path / "f", lambda done, of: None)
    assert (tmp_path / "part").read_bytes() == BODY[:1000]
    with pytest.raises(EnvironmentProblem, match="refused"):
        download("http://127.0.0.1:9/f", tmp_path / "other", tmp_path / "f", lambda done, of: None)


def test_a_full_disk_is_said_before_anything_is_written(server, tmp_path, monkeypatch):
    server.files["/f"] = BODY
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    with pytest.raises(EnvironmentProblem, match="disk is too full"):
        download(f"{server.url}/f", tmp_path / "part", tmp_path / "f", lambda done, of: None)
    assert not (tmp_path / "part").exists()


def test_a_beir_set_comes_out_as_its_folder_and_is_not_fetched_twice(server, tmp_path, monkeypatch):
    publish(server, monkeypatch, SCIFACT | {"__MACOSX/scifact/._corpus.jsonl": "junk"})
    told: list[str] = []
    fetch("beir/scifact", tmp_path / "eval", lambda what, done, of: told.append(what))
    assert names_in(tmp_path) == {f"eval/{name}" for name in SCIFACT}
    assert (tmp_path / "eval/scifact/qrels/test.tsv").read_text() == SCIFACT["scifact/qrels/test.tsv"]
    assert set(told) == {"beir/scifact", "unpack scifact"}
    assert fetched("beir/scifact", tmp_path / "eval") and not fetched("beir/nq", tmp_path / "eval")
    fetch("beir/scifact", tmp_path / "eval")
    assert len(server.asked) == 1


def test_a_wrong_checksum_stops_before_anything_is_unpacked(server, tmp_path, monkeypatch):
    publish(server, monkeypatch)
    server.files["/scifact.zip"] += b"!"
    with pytest.raises(DataError, match="not the published file") as error:
        fetch("beir/scifact", tmp_path)
    assert BEIR["scifact"][0] in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_part_that_was_left_over_is_replaced(server, tmp_path, monkeypatch):
    publish(server, monkeypatch)
    (tmp_path / ".scifact.zip.part").write_bytes(b"PK of another file")
    fetch("beir/scifact", tmp_path)
    assert names_in(tmp_path) == set(SCIFACT)
    assert server.asked == ["bytes=18-", None]


def test_a_file_that_the_user_has_brought_is_used_and_kept(server, tmp_path, monkeypatch):
    content = publish(server, monkeypatch)
    (tmp_path / "scifact.zip").write_bytes(content)
    fetch("beir/scifact", tmp_path)
    assert names_in(tmp_path) == {*SCIFACT, "scifact.zip"} and server.asked == []
    shutil.rmtree(tmp_path / "scifact")
    (tmp_path / "scifact.zip").write_bytes(content[:-1])
    with pytest.raises(DataError, match="not the published file"):
        fetch("beir/scifact", tmp_path)
    assert names_in(tmp_path) == {"scifact.zip"}


def evil(name: str, mode: int = 0) -> bytes:
    """A zip file with a good corpus and one bad member."""
    stream = io.BytesIO(zipped(SCIFACT))
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(stream, "a") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        archive.writestr(info, "/etc/passwd")
    return stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        evil("scifact/../../escaped.txt"),
        evil("/tmp/escaped.txt"),
        evil("scifact\\..\\escaped.txt"),
        evil("C:/escaped.txt"),
        evil("scifact/link", stat.S_IFLNK | 0o777),
        evil("scifact/corpus.jsonl"),
        zipped({"scifact/corpus.jsonl": "0" * 40_000_000}),
        zipped({"other/corpus.jsonl": "{}"}),
        zipped({"scifact/readme.txt": "nothing here"}),
        zipped(SCIFACT)[:-30],
        b"<html>not found</html>",
    ],
    ids=["up", "absolute", "backslash", "drive", "link", "twice", "bomb", "other", "no corpus", "short", "html"],
)
def test_an_archive_that_is_out_for_harm_or_broken_leaves_nothing(content, tmp_path):
    (tmp_path / "a.zip").write_bytes(content)
    (tmp_path / "to").mkdir()
    with pytest.raises(DataError):
        unpack(tmp_path / "a.zip", "scifact", tmp_path / "to" / "scifact", lambda done, of: None)
    assert names_in(tmp_path) == {"a.zip"} and list((tmp_path / "to").iterdir()) == []


def test_an_archive_whose_content_is_damaged_leaves_nothing(tmp_path):
    content = bytearray(zipped({"scifact/corpus.jsonl": "".join(map(str, range(9999)))}))
    content[200] ^= 255
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        unpack(tmp_path / "a.zip", "scifact", tmp_path / "scifact", lambda done, of: None)
    assert names_in(tmp_path) == {"a.zip"}


def test_mkqa_is_one_file_that_must_be_whole(server, tmp_path, monkeypatch):
    content = gzip.compress(b'{"queries": {}}\n' * 1000)
    monkeypatch.setattr(downloads, "MKQA_BYTES", len(content))
    damaged = bytearray(content)
    damaged[40] ^= 255
    for wrong in (content[:-1], bytes(damaged)):
        server.files["/mkqa.jsonl.gz"] = wrong
        with pytest.raises(DataError, match="not the published file"):
            fetch("mkqa", tmp_path)
        assert names_in(tmp_path) == set()
    server.files["/mkqa.jsonl.gz"] = content
    fetch("mkqa", tmp_path)
    assert (tmp_path / "mkqa/mkqa.jsonl.gz").read_bytes() == content


@pytest.fixture
def hub(server: Server) -> dict[str, bytes]:
    """Swahili as the hub has it: path in the repository -> content."""
    shards = [gzip.compress(b'{"docid": "1#%d", "title": "", "text": "nyuki"}\n' % n) for n in range(2)]
    files = {
        "miracl/miracl": {
            "miracl-v1.0-sw/topics/topics.miracl-v1.0-sw-dev.tsv": b"1\tnyuki?\n",
            "miracl-v1.0-sw/qrels/qrels.miracl-v1.0-sw-dev.tsv": b"1\tQ0\t1#0\t1\n",
        },
        "miracl/miracl-corpus": {f"miracl-corpus-v1.0-sw/docs-{n}.jsonl.gz": shard for n, shard in enumerate(shards)},
    }
    for repository, contents in files.items():
        for path, content in contents.items():
            server.files[f"/datasets/{repository}/resolve/{COMMIT}/{path}"] = content
    return {path: content for contents in files.values() for path, content in contents.items()}


def test_miracl_comes_from_the_hub_in_its_own_layout(server, hub, tmp_path, monkeypatch):
    server.gated = True
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    told: list[tuple[str, int, int]] = []
    fetch("miracl/sw", tmp_path, lambda *numbers: told.append(numbers))
    assert names_in(tmp_path) == {f"miracl/{path}" for path in hub}
    assert all((tmp_path / "miracl" / path).read_bytes() == content for path, content in hub.items())
    corpus = sum(len(content) for path, content in hub.items() if path.endswith(".gz"))
    assert told[-1] == ("miracl-corpus-v1.0-sw", corpus, corpus)
    assert fetched("miracl/sw", tmp_path)


def test_a_gated_dataset_without_a_token_says_what_to_do(server, hub, tmp_path, monkeypatch):
    server.gated = True
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(EnvironmentProblem, match="HF_TOKEN"):
        fetch("miracl/sw", tmp_path)
    assert names_in(tmp_path) == set()


def test_a_wrong_file_of_the_hub_is_refused_and_the_finished_ones_stay_for_the_next_time(
    server, hub, tmp_path, monkeypatch
):
    listed, real = downloads._hub_files, "/datasets/miracl/miracl-corpus/resolve/%s/miracl-corpus-v1.0-sw/%s"
    right = server.files[real % (COMMIT, "docs-1.jsonl.gz")]

    def damage(*arguments):
        found = list(listed(*arguments))
        if "corpus" in arguments[3]:
            server.files[real % (COMMIT, "docs-1.jsonl.gz")] = b"?" * len(right)
        return iter(found)

    monkeypatch.setattr(downloads, "_hub_files", damage)
    with pytest.raises(DataError, match=r"docs-1\.jsonl\.gz"):
        fetch("miracl/sw", tmp_path)
    assert not (tmp_path / "miracl/miracl-corpus-v1.0-sw").exists()
    monkeypatch.setattr(downloads, "_hub_files", listed)
    server.files[real % (COMMIT, "docs-1.jsonl.gz")] = right
    server.asked.clear()
    fetch("miracl/sw", tmp_path)
    assert names_in(tmp_path) == {f"miracl/{path}" for path in hub}
    assert len(server.asked) == 1


def test_a_hub_that_is_not_there_is_said(server, tmp_path, monkeypatch):
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(downloads, "_hub", lambda: HfApi(endpoint="http://127.0.0.1:9"))
    with pytest.raises(EnvironmentProblem, match="cannot be reached"):
        fetch("miracl/sw", tmp_path)


def test_what_comes_out_is_what_evaluation_reads(server, hub, tmp_path, monkeypatch, own_cache):
    publish(server, monkeypatch)
    question = {
        "queries": {"sw": "nani?"},
        "answers": {"en": [{"type": "short_phrase", "text": "bees", "aliases": []}]},
    }
    server.files["/mkqa.jsonl.gz"] = gzip.compress(json.dumps({"example_id": 1, **question}).encode())
    monkeypatch.setattr(downloads, "MKQA_BYTES", len(server.files["/mkqa.jsonl.gz"]))
    for name in ("beir/scifact", "miracl/sw", "mkqa"):
        fetch(name, tmp_path)
    found = {
        task: [
            part.read(own_cache, None) for part in find_task(task, TaskConfig(path=task, corpus=corpus), tmp_path).parts
        ]
        for task, corpus in (("scifact", ""), ("miracl", ""), ("mkqa", "scifact"))
    }
    assert [found[task][0].query_texts for task in found] == [("bee",), ("nyuki?",), ("nani?",)]
    assert [len(found[task][0].documents) for task in found] == [1, 2, 1]


def test_groups_are_written_out_and_what_is_not_public_is_said():
    assert len(expand(["beir"])) == 15 and len(expand(["miracl"])) == 18
    assert expand(["mkqa", "beir/nq"]) == ("mkqa", "beir/nq")
    with pytest.raises(ConfigError, match="not public"):
        expand(["beir/bioasq"])
    for name in ("beir/none", "miracl/xx", "mkqa/en", "msmarco", ""):
        with pytest.raises(ConfigError, match="no such benchmark"):
            expand([name])
