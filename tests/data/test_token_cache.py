"""The token cache: exactly the tokens of `tokenize`, however often, and by however many, its building was stopped."""

import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from tiny_models import SENTENCES, make_tiny_model
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, CanineTokenizer, PreTrainedTokenizerBase

from tdro.data import token_cache
from tdro.data.collate import identify, tokenize, tokenize_and_mark
from tdro.data.token_cache import Tokens, cached_tokens
from tdro.errors import ConfigError, EnvironmentProblem

ODD = [
    "",
    " ",
    "  two spaces first",
    "bee\n\tbee",
    "Ünïcödé ÉTÉ",
    "蜜蜂跳舞。",
    "🐝🐝 🏔",
    "e\u0301 \u200b\ufeff",
    "<s> [SEP] </s>",
]
TEXTS = [text for number in range(6) for text in (*SENTENCES, *ODD, " ".join(SENTENCES[:number]))]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a hundred texts fill many shards."""
    monkeypatch.setattr(token_cache, "_SHARD", 7)
    monkeypatch.setattr(token_cache, "_BLOCK", 3)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PreTrainedTokenizerBase | Tokenizer]:
    """A tokenizer of each kind."""
    folder = tmp_path_factory.mktemp("models")
    made = {name: make_tiny_model(name, folder / name) for name in ("bert", "qwen2", "llama", "mistral", "static")}
    static = SentenceTransformer(str(made.pop("static")), device="cpu").tokenizer
    plain = {name: AutoTokenizer.from_pretrained(path) for name, path in made.items()}
    return {**plain, "static": static, "slow": CanineTokenizer()}


def words(size: int = 50) -> Tokenizer:
    """A tokenizer made of numbers: the text "12 7" becomes the tokens 12, 7."""
    tokenizer = Tokenizer(models.WordLevel({str(number): number for number in range(size)}, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


class Watched(list[str]):
    """Texts that note which slices are read, and break at a number of them."""

    def __init__(self, texts: list[str], breaks_at: int | None = None) -> None:
        super().__init__(texts)
        self.read: list[slice] = []
        self.breaks_at = breaks_at

    def __getitem__(self, part: slice) -> list[str]:
        self.read.append(part)
        if len(self.read) == self.breaks_at:
            raise RuntimeError("stopped")
        return super().__getitem__(part)


def build(texts: list[str], cache: Path, tokenizer: PreTrainedTokenizerBase | Tokenizer, max_length: int = 9) -> Tokens:
    """Make the tokens of texts whose fingerprint is "texts"."""
    return cached_tokens(texts, content="texts", tokenizer=tokenizer, max_length=max_length, cache=cache)


def shards(cache: Path) -> dict[str, bytes]:
    """The shards of a cache that holds one key."""
    (folder,) = (cache / "tokens").iterdir()
    return {file.name: file.read_bytes() for file in sorted(folder.glob("shard-*"))}


@pytest.mark.parametrize("family", ["bert", "qwen2", "llama", "mistral", "static", "slow"])
@pytest.mark.parametrize("max_length", [4, 9, 400])
def test_tokens_are_those_of_tokenize_and_cut_texts_are_known(tokenizers, family, max_length, tmp_path):
    tokenizer = tokenizers[family]
    expected, without_limit = (tokenize(tokenizer, TEXTS, length) for length in (max_length, 5000))
    was_cut = [len(ids) > max_length for ids in without_limit]
    for _ in ("made", "opened"):
        tokens = build(TEXTS, tmp_path, tokenizer, max_length)
        assert len(tokens) == len(TEXTS)
        assert tokens.take(range(len(TEXTS))) == expected == list(tokens)
        assert tokens.lengths_n.tolist() == [len(ids) for ids in expected]
        assert tokens.was_cut_n.tolist() == was_cut
        assert tokens.truncated == sum(was_cut)
    assert tokenize_and_mark(tokenizer, TEXTS, max_length) == (expected, was_cut)


def test_texts_cut_on_the_left_have_their_own_tokens(tokenizers, tmp_path):
    tokenizer = tokenizers["bert"]
    right = build(TEXTS, tmp_path, tokenizer).take(range(len(TEXTS)))
    tokenizer.truncation_side = "left"
    try:
        left = build(TEXTS, tmp_path, tokenizer)
        assert left.take(range(len(TEXTS))) == tokenize(tokenizer, TEXTS, 9) != right
        assert left.truncated == sum(len(ids) > 9 for ids in tokenize(tokenizer, TEXTS, 5000))
    finally:
        tokenizer.truncation_side = "right"


def test_a_text_that_fills_the_limit_exactly_is_not_cut(tmp_path):
    tokens = build(["1 2 3", "1 2 3 4", "1 2"], tmp_path, words(), max_length=3)
    assert tokens.was_cut_n.tolist() == [False, True, False]


def test_no_texts_give_no_tokens(tmp_path):
    tokens = build([], tmp_path, words())
    assert (len(tokens), tokens.take([]), tokens.truncated) == (0, [], 0)
    assert tokens.lengths_n.tolist() == tokens.was_cut_n.tolist() == []


@pytest.mark.parametrize("count", [1, 6, 7, 8, 14])
def test_the_last_shard_may_be_full_or_hold_one_text(count, tmp_path):
    tokens = build([str(i) for i in range(count)], tmp_path, words())
    assert list(tokens) == [[i] for i in range(count)]
    assert len(shards(tmp_path)) == -(-count // 7)


def test_texts_are_found_in_any_order_and_missing_ones_are_refused(tmp_path):
    tokens = build([f"{i} {i}" for i in range(20)], tmp_path, words())
    assert tokens.take(np.array([19, 0, 19, 7])) == [[19, 19], [0, 0], [19, 19], [7, 7]]
    assert tokens[-1] == [19, 19]
    for wrong in ([20], [-1]):
        with pytest.raises(IndexError):
            tokens.take(wrong)
    with pytest.raises(IndexError):
        tokens[20]


def test_a_selection_has_the_tokens_of_its_texts_in_its_order(tmp_path):
    texts = [f"{i} " * (i + 1) for i in range(20)]
    tokens = build(texts, tmp_path, words(), max_length=15)
    numbers = np.array([19, 0, 19, 7, 16])
    chosen = tokens.select(numbers)
    assert len(chosen) == 5 and list(chosen) == [tokens[number] for number in numbers.tolist()]
    assert chosen.take([4, 0]) == [tokens[16], tokens[19]]
    assert chosen.lengths_n.tolist() == [15, 1, 15, 8, 15]
    assert chosen.was_cut_n.tolist() == [True, False, True, False, True]
    assert (chosen.truncated, tokens.truncated) == (3, 5)
    again = chosen.select(np.array([3, 0]))
    assert list(again) == [tokens[7], tokens[19]] and again.lengths_n.tolist() == [8, 15]
    assert len(tokens.select(np.array([], np.int64))) == 0
    with pytest.raises(IndexError):
        chosen.take([5])


def test_a_known_identity_is_not_found_out_again(tmp_path, monkeypatch):
    build(["1 2"], tmp_path, words())
    known = identify(words(), 9)
    monkeypatch.setattr(token_cache, "identify", lambda *_: pytest.fail("asked again"))
    key = {"content": "texts", "tokenizer": words(), "max_length": 9, "cache": tmp_path, "identity": known}
    assert list(cached_tokens(["1 2"], **key)) == [[1, 2]]
    assert len(list((tmp_path / "tokens").iterdir())) == 1


def test_large_token_numbers_are_kept_whole_and_small_ones_take_two_bytes(tmp_path):
    texts = ["65535 0", "1"] * 7
    narrow = build(texts, tmp_path / "narrow", words(70000))
    wide = build([*texts[:-1], "65536"], tmp_path / "wide", words(70000))
    assert (narrow[0], narrow[13], wide[13], wide[0]) == ([65535, 0], [1], [65536], [65535, 0])
    sizes = [[len(content) for content in shards(tmp_path / name).values()] for name in ("narrow", "wide")]
    assert sizes[0][0] == sizes[1][0]
    tokens_in_last = sum(map(len, wide.take(range(7, 14))))
    assert sizes[1][1] - sizes[0][1] == 2 * tokens_in_last


def test_tokens_cannot_be_changed_and_keep_no_file_open(tmp_path):
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    tokens = build(TEXTS, tmp_path, words())
    with pytest.raises(ValueError, match="read-only"):
        tokens._shards[0].ids[:] = 0
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_there_is_not_read_again(tmp_path):
    texts = Watched(TEXTS)
    told: list[tuple[int, int]] = []
    build(texts, tmp_path, words())
    assert sorted((part.start, part.stop) for part in texts.read)[:4] == [(0, 3), (3, 6), (6, 7), (7, 10)]
    assert sum(part.stop - part.start for part in texts.read) == len(TEXTS)
    texts.read.clear()
    key = {"content": "texts", "tokenizer": words(), "max_length": 9, "cache": tmp_path}
    cached_tokens(texts, **key, progress=lambda *done: told.append(done))
    (manifest,) = tmp_path.glob("tokens/*/tokens.json")
    manifest.unlink()  # then shards are compared with their hashes
    cached_tokens(texts, **key, progress=lambda *done: told.append(done))
    assert texts.read == told == []
    assert manifest.exists()


@pytest.mark.parametrize("breaks_at", [1, 3, 4, 17, 40])
def test_a_stopped_build_goes_on_and_the_result_is_the_same(breaks_at, tmp_path):
    texts = TEXTS[:105]  # 15 shards of three slices
    build(texts, tmp_path / "at once", words())
    with pytest.raises(RuntimeError, match="stopped"):
        build(Watched(texts, breaks_at), tmp_path / "stopped", words())
    there = len(shards(tmp_path / "stopped"))
    assert there == (breaks_at - 1) // 3
    assert not list(tmp_path.glob("stopped/tokens/*/.*"))  # what is not complete is not left behind
    rest, told = Watched(texts), []
    key = {"content": "texts", "tokenizer": words(), "max_length": 9, "cache": tmp_path / "stopped"}
    tokens = cached_tokens(rest, **key, progress=lambda *done: told.append(done))
    assert told == [(7 * number, 105) for number in range(there + 1, 16)]
    assert len(rest.read) == 45 - 3 * there
    assert list(tokens) == tokenize(words(), texts, 9)
    assert shards(tmp_path / "stopped") == shards(tmp_path / "at once")


def cut_short(content: bytes) -> bytes:
    """A file that was not written to its end."""
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    """A file of the right size with one wrong token."""
    return content[:-12] + bytes([content[-12] ^ 1]) + content[-11:]


@pytest.mark.parametrize("damage", [cut_short, flip, lambda _: b"", lambda c: c + b"\0", lambda c: bytes(len(c))])
def test_a_damaged_shard_is_made_again(damage, tmp_path):
    texts = Watched([f"{i} {i + 1} {i + 2}" for i in range(40)])
    tokens = build(texts, tmp_path, words())
    good = shards(tmp_path)
    (damaged,) = tmp_path.glob("tokens/*/shard-000002.bin")
    damaged.unlink()
    damaged.write_bytes(damage(good[damaged.name]))
    texts.read.clear()
    again = build(texts, tmp_path, words())
    assert sorted((part.start, part.stop) for part in texts.read) == [(14, 17), (17, 20), (20, 21)]
    assert shards(tmp_path) == good
    assert again.take(range(40)) == tokens.take(range(40)) == tokenize(words(), list(texts), 9)


def test_a_shard_in_the_place_of_another_is_made_again(tmp_path):
    texts = [f"{i} {i + 1} {i + 2}" for i in range(40)]
    build(texts, tmp_path, words())
    good = shards(tmp_path)
    (folder,) = (tmp_path / "tokens").iterdir()
    (folder / "shard-000001.bin").replace(folder / "shard-000003.bin")
    assert list(build(texts, tmp_path, words())) == tokenize(words(), texts, 9)
    assert shards(tmp_path) == good


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"stamps": 3}', '{"stamps": [1, null]}'])
def test_a_damaged_list_of_shards_does_no_harm(content, tmp_path):
    tokens = build(TEXTS, tmp_path, words())
    (manifest,) = tmp_path.glob("tokens/*/tokens.json")
    manifest.write_text(content)
    assert list(build(TEXTS, tmp_path, words())) == list(tokens)
    about = json.loads(manifest.read_text())
    assert (about["content"], about["max_length"], about["texts"]) == ("texts", 9, len(TEXTS))


def test_whatever_changes_tokens_changes_the_key(tokenizers):
    def variants() -> Iterator[str]:
        tokenizer = AutoTokenizer.from_pretrained(tokenizers["bert"].name_or_path)
        yield identify(tokenizer, 9)
        yield identify(tokenizer, 10)
        yield identify(tokenizer.backend_tokenizer, 9)  # a plain tokenizer adds no special tokens
        tokenizer.truncation_side = "left"
        yield identify(tokenizer, 9)
        tokenizer.add_tokens(["beehive"])
        yield identify(tokenizer, 9)
        tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
        yield identify(tokenizer, 9)
        tokenizer.backend_tokenizer.encode_special_tokens = True
        yield identify(tokenizer, 9)
        yield from (identify(tokenizers[name], 9) for name in ("qwen2", "llama", "mistral", "static", "slow"))
        yield identify(tokenizers["slow"], 10)

    keys = list(variants())
    assert len(set(keys)) == len(keys)
    assert keys == list(variants())


def test_other_texts_or_lengths_have_their_own_folder(tmp_path):
    one = build(["1 2 3"], tmp_path, words(), max_length=2)
    two = build(["1 2 3"], tmp_path, words(), max_length=3)
    three = cached_tokens(["4 5"], content="others", tokenizer=words(), max_length=2, cache=tmp_path)
    assert (one[0], two[0], three[0]) == ([1, 2], [1, 2, 3], [4, 5])
    assert len(list((tmp_path / "tokens").iterdir())) == 3


def test_the_tokenizers_own_truncation_and_padding_do_not_count_and_stay(tokenizers):
    tokenizer = AutoTokenizer.from_pretrained(tokenizers["bert"].name_or_path)
    before = identify(tokenizer, 9)
    tokenizer.backend_tokenizer.enable_truncation(128, stride=3)
    tokenizer.backend_tokenizer.enable_padding(length=128)
    saved = tokenizer.backend_tokenizer.to_str()
    assert identify(tokenizer, 9) == before
    assert tokenizer.backend_tokenizer.to_str() == saved


def test_tokens_drawn_by_chance_are_not_kept(tmp_path):
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")], dropout=0.1))
    with pytest.raises(ConfigError, match="by chance"):
        build(["ab"], tmp_path, tokenizer)
    assert not list(tmp_path.iterdir())


def test_python_code_in_a_tokenizer_is_refused(tmp_path):
    class Custom:
        def pre_tokenize(self, text: object) -> None: ...

    tokenizer = words()
    tokenizer.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(Custom())
    with pytest.raises(ConfigError, match="cannot be identified"):
        build(["1"], tmp_path, tokenizer)


def test_a_length_without_room_for_the_text_is_refused(tokenizers, tmp_path):
    with pytest.raises(ConfigError, match="at least 3 tokens"):
        build([], tmp_path, tokenizers["bert"], max_length=2)


def test_a_folder_that_cannot_be_written_is_named_before_any_work(tmp_path):
    (tmp_path / "tokens").write_text("a file in the way")
    texts = Watched(TEXTS)
    with pytest.raises(EnvironmentProblem, match=r"(?s)tokens cannot be kept.*where: .*tokens.*do: "):
        build(texts, tmp_path, words())
    assert not texts.read


def test_a_full_disk_is_reported_and_leaves_good_shards(tmp_path, monkeypatch):
    written: list[int] = []

    def fsync(handle: int) -> None:
        written.append(handle)
        if len(written) == 3:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        with pytest.raises(EnvironmentProblem, match="No space left"):
            build(TEXTS, tmp_path, words())
    assert len(shards(tmp_path)) == 2 and not list(tmp_path.glob("tokens/*/.*"))
    assert list(build(TEXTS, tmp_path, words())) == tokenize(words(), TEXTS, 9)


def test_memory_does_not_grow_with_the_number_of_texts(tmp_path):
    class Numbers(list[str]):
        def __init__(self, count: int) -> None:
            super().__init__()
            self.count = count

        def __len__(self) -> int:
            return self.count

        def __getitem__(self, part: slice) -> list[str]:
            return ["1 2 3 4 5 6 7 8 9 " * 20] * len(range(self.count)[part])

    def peak(count: int) -> int:
        tracemalloc.start()
        tokens = cached_tokens(Numbers(count), content=f"{count}", tokenizer=words(), max_length=200, cache=tmp_path)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert tokens.lengths_n.sum() == 180 * count
        return top

    token_cache._SHARD, token_cache._BLOCK = 64, 16  # the fixture puts them back
    peak(128)
    assert peak(64 * 32) < peak(64 * 4) + 28 * 2000  # 2 kB for each shard that is mapped; its tokens are 23 kB


def test_a_shard_that_another_process_finished_and_cleared_up_after_is_taken(tmp_path, monkeypatch):
    moved: list[Path] = []
    replace = os.replace

    def raced(source: Path, target: Path) -> None:
        replace(source, target)
        moved.append(target)
        if len(moved) == 2:
            raise FileNotFoundError(source)

    monkeypatch.setattr(os, "replace", raced)
    assert list(build(TEXTS, tmp_path, words())) == tokenize(words(), TEXTS, 9)


PROCESS = """
import os, sys, time
from pathlib import Path
from tokenizers import Tokenizer
from tdro.data import token_cache

class Slow(list):
    def __getitem__(self, part):
        time.sleep(float(sys.argv[3]))
        return super().__getitem__(part)

token_cache._SHARD, token_cache._BLOCK = 7, 3
texts = Slow(Path(sys.argv[2]).read_text(encoding="utf-8").split("|"))
tokenizer = Tokenizer.from_file(sys.argv[1] + "/tokenizer.json")
cache = Path(sys.argv[1], "cache")
print("ready", flush=True)
sys.stdin.readline()
tokens = token_cache.cached_tokens(texts, content="texts", tokenizer=tokenizer, max_length=9, cache=cache)
print(list(tokens) == [tokens[i] for i in range(len(texts))], tokens.truncated, flush=True)
"""


def start(folder: Path, seconds_per_slice: float) -> subprocess.Popen:
    """Start a process that builds the tokens of `folder/texts` when it is told to."""
    words().save(str(folder / "tokenizer.json"))
    (folder / "texts").write_text("|".join(f"{i % 50} " * (i % 13) for i in range(200)), encoding="utf-8")
    command = [sys.executable, "-c", PROCESS, str(folder), str(folder / "texts"), str(seconds_per_slice)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_processes_that_build_the_same_tokens_do_not_disturb_each_other_nor_does_a_killed_one(tmp_path):
    processes = [start(tmp_path, seconds) for seconds in (0.002, 0.002, 0.1)]
    texts = (tmp_path / "texts").read_text(encoding="utf-8").split("|")
    expected = build(texts, tmp_path / "alone", words())
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    *good, killed = processes
    killed.stdin.write("\n")
    killed.stdin.flush()
    while not list(tmp_path.glob("cache/tokens/*/.*.tmp")):
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert list(tmp_path.glob("cache/tokens/*/.*.tmp"))
    for process in good:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in good:
        assert process.communicate()[0] == f"True {expected.truncated}\n"
        assert process.returncode == 0
    assert shards(tmp_path / "cache") == shards(tmp_path / "alone")
    assert list(build(texts, tmp_path / "cache", words())) == list(expected)
    assert not list(tmp_path.glob("cache/tokens/*/.*"))
