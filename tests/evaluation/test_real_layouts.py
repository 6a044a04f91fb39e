"""MIRACL, MKQA and cross-lingual retrieval through the command line, in the layouts of their files; kills and ranks."""

import gzip
import json
import os
import re
import subprocess
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import ir_measures
import numpy as np
import pytest
from evaluation_sets import write_beir, write_lines
from launch import run_ranks, start_ranks
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from studies import sentence
from test_answers import slow_first
from tiny_models import make_tiny_model
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from tdro.cli.main import main
from tdro.evaluation.results import FILES, find_results, read_result

XQUAD = Path(__file__).parents[2].parent / "shared" / "data" / "eval" / "xquad-multi"
needs_xquad = pytest.mark.skipif(not XQUAD.is_dir(), reason="the real data is not on this machine")
IN_MIRACL = ("ar", "de", "en", "es", "hi", "ru", "th", "zh")
"""The languages of xquad-multi that MIRACL has too."""
OTHERS = ("ar", "de", "el", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh")
"""The languages of xquad-multi besides English."""
NEAR = ("de", "es", "ro", "tr", "vi")
"""Those in which names are spelt as in English."""
CHANCE = sum(1 / np.log2(rank + 1) for rank in range(1, 11)) / 240
"""nDCG@10 of a random ranking of its 240 paragraphs a language, one of which is relevant."""
DEPTHS = (1, 3, 5, 10, 20, 100)


class Collection(NamedTuple):
    """Documents and queries: id -> text; judgements: query -> document -> relevance."""

    documents: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]


@cache
def all_texts(name: str) -> dict[str, str]:
    """Read the corpus or the queries of xquad-multi."""
    lines = (XQUAD / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return {record["_id"]: record["text"] for record in map(json.loads, lines)}


@cache
def xquad(language: str) -> Collection:
    """Take a language of xquad-multi: all its paragraphs, and every fifth query so that the tests are quick.

    The paragraph after the relevant one is judged too, as not relevant.
    """
    documents, queries = (
        {name: text for name, text in all_texts(kind).items() if name.startswith(f"{language}-")}
        for kind in ("corpus", "queries")
    )
    asked = dict(list(queries.items())[::5])
    rows = [line.split("\t") for line in (XQUAD / "qrels" / "test.tsv").read_text().splitlines()[1:]]
    numbers = {query: int(document.partition("-d")[2]) for query, document, _ in rows if query in asked}
    qrels = {q: {f"{language}-d{n}": 1, f"{language}-d{(n + 1) % len(documents)}": 0} for q, n in numbers.items()}
    return Collection(documents, asked, qrels)


def in_articles(collection: Collection) -> Collection:
    """Name the documents as MIRACL does: article, #, paragraph; four paragraphs to an article."""

    def name(document: str) -> str:
        number = int(document.partition("-d")[2])
        return f"{number // 4}#{number % 4}"

    qrels = {q: {name(document): score for document, score in of.items()} for q, of in collection.qrels.items()}
    return Collection({name(i): text for i, text in collection.documents.items()}, collection.queries, qrels)


def write_miracl(folder: Path, language: str, collection: Collection, size: int = 100) -> None:
    """Write a language as MIRACL is published: numbered queries, the first word of a text as the document's title."""
    place = folder / f"miracl-v1.0-{language}"
    numbers = {query: number for number, query in enumerate(collection.queries)}
    topics = [f"{numbers[query]}\t{text}\n" for query, text in collection.queries.items()]
    qrels = [f"{numbers[q]}\tQ0\t{d}\t{score}\n" for q, of in collection.qrels.items() for d, score in of.items()]
    for kind, lines in (("topics", topics), ("qrels", qrels)):
        (place / kind).mkdir(parents=True)
        (place / kind / f"{kind}.miracl-v1.0-{language}-dev.tsv").write_text("".join(lines), encoding="utf-8")
    records = []
    for docid, text in collection.documents.items():
        title, space, rest = text.partition(" ")
        title, rest = (title, rest) if space else ("", text)
        records.append(json.dumps({"docid": docid, "title": title, "text": rest}, ensure_ascii=False) + "\n")
    documents = folder / f"miracl-corpus-v1.0-{language}"
    documents.mkdir()
    for start in range(0, len(records), size):
        packed = gzip.compress("".join(records[start : start + size]).encode())
        (documents / f"docs-{start // size}.jsonl.gz").write_bytes(packed)


def write_flat(folder: Path, collection: Collection, split: str = "test") -> None:
    """Write a collection in BEIR layout."""
    documents, queries = (
        [{"_id": name, "title": "", "text": text} for name, text in texts.items()] for texts in collection[:2]
    )
    lines = [f"{q}\t{d}\t{score}\n" for q, of in collection.qrels.items() for d, score in of.items()]
    write_beir(folder, documents, queries, "query-id\tcorpus-id\tscore\n" + "".join(lines), split)


def word_model(folder: Path, texts: Sequence[str]) -> Path:
    """Save a model that knows the words that some texts share: each has a random direction, rare ones are longer."""
    normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    counts = Counter(w for text in texts for w, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    words = ["[PAD]", "[UNK]", *sorted(word for word, count in counts.items() if count > 1)]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    lengths = np.array([0, 0, *(counts[word] ** -0.5 for word in words[2:])])
    vectors = np.random.default_rng(0).standard_normal((len(words), 128)) * lengths[:, None]
    static = StaticEmbedding(tokenizer, embedding_weights=vectors.astype(np.float32))
    SentenceTransformer(modules=[static], device="cpu").save_pretrained(str(folder), create_model_card=False)
    return folder


def evaluate(*arguments: object) -> int:
    """Run `tdro evaluate` and return its exit code."""
    return main(["evaluate", *map(str, arguments)])


def read_run(folder: Path) -> dict[str, list[str]]:
    """Read the rankings of a result: query -> documents, best first."""
    found: dict[str, list[str]] = {}
    for line in gzip.decompress((folder / "run.trec.gz").read_bytes()).decode().splitlines():
        query, _, document, rank, _, _ = line.split()
        found.setdefault(query, []).append(document)
        assert int(rank) == len(found[query])
    return found


def recomputed(folder: Path, qrels: Path) -> dict[str, float]:
    """Let ir-measures read a run file and judgements in TREC's form, and compute the means."""
    run = list(ir_measures.read_trec_run(gzip.decompress((folder / "run.trec.gz").read_bytes()).decode()))
    judged = list(ir_measures.read_trec_qrels(str(qrels)))
    measures = {"ndcg@10": ir_measures.nDCG @ 10, "recall@100": ir_measures.R @ 100, "mrr@10": ir_measures.RR @ 10}
    means = ir_measures.calc_aggregate(measures.values(), judged, run)
    return {name: means[measure] for name, measure in measures.items()}


def summary_of(folder: Path) -> dict[str, Any]:
    """Read a summary."""
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def files(folder: Path) -> dict[str, bytes]:
    """All files under a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with xquad-multi as MIRACL, evaluated in that layout and in BEIR's, by BM25 and by the word model."""
    pytest.importorskip("bm25s")
    folder = tmp_path_factory.mktemp("layouts")
    for language in IN_MIRACL:
        write_miracl(folder / "miracl", language, in_articles(xquad(language)))
        write_flat(folder / "flat" / f"{language}-flat", in_articles(xquad(language)))
    word_model(folder / "words", [*all_texts("corpus").values(), *all_texts("queries").values()])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TDRO_CACHE", str(folder / "cache"))
        tasks = ["--tasks", folder / "miracl", folder / "flat"]
        assert evaluate(f"words={folder}/words", "bm25", *tasks, "--out", folder / "out") == 0
        yield folder


@needs_xquad
@pytest.mark.parametrize("model", ["bm25", "words"])
def test_miracl_in_its_own_files_gives_the_rankings_and_scores_of_beirs_layout(place: Path, model: str) -> None:
    for language in IN_MIRACL:
        found = read_result(place / "out" / model / "miracl" / language)
        flat = read_result(place / "out" / model / f"{language}-flat")
        assert found.query_ids == tuple(map(str, range(40))) and flat.query_ids == tuple(xquad(language).queries)
        assert found.summary["documents"] == 240 and not found.summary["oddities"].keys() - {"no_results"}
        assert found.summary["corpus"] == flat.summary["corpus"]
        for measure, scores in flat.scores.items():
            assert np.array_equal(found.scores[measure], scores), measure
        one, other = read_run(found.folder), read_run(flat.folder)
        assert [one.get(query) for query in found.query_ids] == [other.get(query) for query in flat.query_ids]
        assert found.summary["measures"]["ndcg@10"] > (0.8 if model == "bm25" else 2 * CHANCE), language


@needs_xquad
@pytest.mark.parametrize("model", ["bm25", "words"])
def test_ir_measures_finds_miracls_scores_in_the_run_and_the_judgements_as_published(place: Path, model: str) -> None:
    for language in IN_MIRACL:
        qrels = place / "miracl" / f"miracl-v1.0-{language}" / "qrels" / f"qrels.miracl-v1.0-{language}-dev.tsv"
        folder = place / "out" / model / "miracl" / language
        assert summary_of(folder)["measures"] == pytest.approx(recomputed(folder, qrels), abs=1e-6)


@needs_xquad
def test_miracls_score_is_the_mean_over_the_languages_asked_for(place: Path, tmp_path: Path) -> None:
    miracl, asked = place / "miracl", ("th", "en", "de")
    arguments = (f"words={place}/words", "--tasks", miracl, "--languages", *asked, "--out", tmp_path)
    assert evaluate(*arguments) == 0
    for folder, languages in ((place / "out", IN_MIRACL), (tmp_path, tuple(sorted(asked)))):
        task = folder / "words" / "miracl"
        summary, parts = summary_of(task), [summary_of(task / language) for language in languages]
        assert tuple(summary["parts"]) == languages == tuple(path.name for path in sorted(task.glob("*/")))
        for measure, mean in summary["measures"].items():
            assert mean == pytest.approx(sum(part["measures"][measure] for part in parts) / len(parts), abs=1e-12)
        (scores,) = json.loads((task / "mteb.json").read_text())["scores"].values()
        assert [subset["hf_subset"] for subset in scores] == list(languages)
    for language in asked:  # what a language gets does not depend on the others
        other = files(place / "out" / "words" / "miracl" / language)
        assert files(tmp_path / "words" / "miracl" / language) == other
    assert summary_of(tmp_path / "words" / "miracl")["measures"] != summary_of(place / "out/words/miracl")["measures"]
    assert evaluate(f"words={place}/words", "--tasks", miracl, "--languages", "sw", "--out", tmp_path) == 2


@needs_xquad
def test_miracl_with_hard_negatives_is_easier_and_never_mixed_with_the_full_one(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for language in ("de", "ru"):
        everything = in_articles(xquad(language))
        pool = {document for labels in everything.qrels.values() for document in labels}
        few = {name: text for name, text in everything.documents.items() if name in pool}
        assert 20 < len(few) < 240
        write_flat(tmp_path / "miracl" / language, everything._replace(documents=few), "dev")
    arguments = (f"words={place}/words", "--tasks", tmp_path / "miracl", "--out", tmp_path / "out")
    assert evaluate(*arguments) == 0
    for language in ("de", "ru"):
        pooled = summary_of(tmp_path / "out/words/miracl" / language)
        full = summary_of(place / "out/words/miracl" / language)
        assert (pooled["variant"], full["variant"]) == ("hard-negatives", "full")
        assert pooled["measures"]["ndcg@10"] > full["measures"]["ndcg@10"]
    capsys.readouterr()
    sides = [str(tmp_path / "out/words"), str(place / "out/words"), "--only", "miracl/de", "miracl/ru"]
    assert main(["compare", *sides]) == 2
    assert "variant" in capsys.readouterr().err
    write_miracl(tmp_path / "all", "th", in_articles(xquad("th")))
    both = (arguments[0], "--tasks", tmp_path / "miracl", tmp_path / "all", "--out", tmp_path / "out")
    assert evaluate(*both) == 2
    assert "no mean together" in capsys.readouterr().err
    write_miracl(tmp_path / "miracl", "th", in_articles(xquad("th")))
    before = files(tmp_path / "out")
    assert evaluate(*arguments) == 2
    assert "both variants" in capsys.readouterr().err and files(tmp_path / "out") == before


def cross_lingual(language: str) -> Collection:
    """Queries of a language for the English paragraphs: `xx-dN` and `en-dN` are the same one."""
    _, queries, qrels = xquad(language)
    renamed = {q: {re.sub("^.*-d", "en-d", d): score for d, score in of.items()} for q, of in qrels.items()}
    return Collection(xquad("en").documents, queries, renamed)


@needs_xquad
def test_the_english_version_of_a_paragraph_is_the_relevant_one(tmp_path: Path) -> None:
    def numbers(text: str) -> set[int]:
        return set(map(int, re.findall(r"\d{3,}", text)))  # of whatever script

    english = xquad("en").documents
    for language in OTHERS:
        own = next_one = 0
        for name, text in xquad(language).documents.items():
            number = int(name.partition("-d")[2])
            own += len(numbers(text) & numbers(english[f"en-d{number}"]))
            next_one += len(numbers(text) & numbers(english[f"en-d{(number + 1) % 240}"]))
        assert own > 5 * next_one, language
        collection = cross_lingual(language)
        assert collection.qrels.keys() == collection.queries.keys()
        assert all(labels.keys() <= english.keys() for labels in collection.qrels.values())
    assert cross_lingual("ar").qrels["ar-56d6f3500d65d21400198292"] == {"en-d0": 1, "en-d1": 0}
    assert cross_lingual("zh").qrels[next(iter(xquad("zh").queries))]["en-d0"] == 1
    assert "Panthers" in english["en-d0"] and "Panthers" in xquad("de").documents["de-d0"]


@needs_xquad
def test_queries_of_eleven_languages_are_judged_by_the_english_paragraphs(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for language in OTHERS:
        write_flat(tmp_path / "sets" / f"{language}-en", cross_lingual(language))
        qrels = [f"{q} 0 {d} {score}\n" for q, of in cross_lingual(language).qrels.items() for d, score in of.items()]
        (tmp_path / f"{language}.qrels").write_text("".join(qrels))
    monkeypatch.setenv("TDRO_CACHE", str(tmp_path / "cache"))
    assert evaluate(f"words={place}/words", "bm25", "--tasks", tmp_path / "sets", "--out", tmp_path / "out") == 0
    for model in ("words", "bm25"):
        found = find_results(tmp_path / "out" / model)
        assert list(found) == [f"{language}-en" for language in OTHERS]
        for language in OTHERS:
            summary = summary_of(found[f"{language}-en"])
            expected = recomputed(found[f"{language}-en"], tmp_path / f"{language}.qrels")
            assert summary["queries"] == 40 and summary["measures"] == pytest.approx(expected, abs=1e-6)
            own = summary_of(place / "out" / model / "miracl" / "en")["measures"]["ndcg@10"]
            if model == "bm25" and language in NEAR:
                assert 10 * CHANCE < summary["measures"]["ndcg@10"] < own, language
    kept = [json.loads(path.read_text())["texts"] for path in (tmp_path / "cache").glob("embeddings/*/manifest.json")]
    assert sorted(kept) == [40] * 11 + [240]  # the paragraphs are encoded once for all languages


CASES = (
    # answer, what the document says, whether that is a hit
    ("São Paulo", unicodedata.normalize("NFD", "in SÃO PAULO, today"), True),
    (unicodedata.normalize("NFD", "Gödel"), "Kurt GÖDEL proved", True),
    ("Gödel", "Kurt Godel proved", False),
    ("1,000", "some 1,000 bees", True),
    ("1,000", "some 1000 bees", False),
    ("1000", "some 1,000 bees", False),
    ("3.5 km", "after 3.5  km.", True),
    ("3.5", "after 3,5 km", False),
    ("東京", "日本、東京。", True),
    ("東京", "東京都", False),
    ("Жизнь", "так и ЖИЗНЬ", True),
    ("ale", "a pale moon", False),
    ("New York", "new, York", False),
    ("(C)", "the (c) sign", True),
)
LANGUAGES = ("de", "ja", "ar", "zh_cn")
FILLERS = {"en": "river stone", "de": "Fluß Stein", "ja": "川 石", "ar": "نهر حجر", "zh_cn": "河 岩"}


def answer(text: str | None, *aliases: str, kind: str = "entity") -> dict[str, Any]:
    """An answer in Apple's file."""
    return {"type": kind, "text": text, "aliases": list(aliases)}


def question(number: int, key: str, *answers: Mapping[str, Any], **changes: str | None) -> dict[str, Any]:
    """A question in Apple's file; its key stands in one document."""
    queries = {language: f"{key} {FILLERS[language].split()[number % 2]}" for language in FILLERS}
    return {"query": key, "example_id": number, "queries": {**queries, **changes}, "answers": {"en": list(answers)}}


def write_mkqa(folder: Path, documents: int = 300, languages: Sequence[str] = LANGUAGES) -> list[dict[str, Any]]:
    """Write MKQA as Apple does, with documents beside it: one for each of CASES, and generated ones."""
    rng = np.random.default_rng(5)
    said = [*(words for _, words, _ in CASES), *(text for text, _, _ in CASES), *" ".join(FILLERS.values()).split()]
    records = [{"_id": f"p{i}", "title": f"Key{i}a", "text": f"key{i}a {case[1]}"} for i, case in enumerate(CASES)]
    keys = [f"w{number}" for number in range(40)]
    for number in range(len(CASES), documents):
        picked = [*rng.choice(said, rng.integers(1, 5)), *rng.choice(keys, 3)]
        split = int(rng.integers(0, len(picked)))
        title, text = (" ".join(map(str, part)) for part in (picked[:split], picked[split:]))
        records.append({"_id": f"p{number}", "title": title, "text": text})
    write_lines(folder / "corpus.jsonl", records)
    texts = [text for text, _, _ in CASES]
    asked = [question(i, f"key{i}a", answer(case[0], "", " \u200b")) for i, case in enumerate(CASES)]
    for number, key in enumerate(keys, start=len(CASES)):
        one, two, three = (str(text) for text in rng.choice(texts, 3))
        more = [answer(three)] if number % 2 else []
        asked.append(question(number, key, answer(f"{one} {two}", f"{two}, {three}"), *more))
    dropped = [
        question(1000, "w1", answer(None, kind="unanswerable")),
        question(1001, "w2", answer("東京"), answer(None, kind="unanswerable")),
        question(1002, "w3", answer("yes", kind="binary")),
        question(1003, "w4", answer(None, kind="long_answer")),
        question(1004, "w5", answer("東京"), de=None),
        question(1005, "w6", answer("", "\t")),
    ]
    for each in (*asked, *dropped):
        each["queries"] = {name: text for name, text in each["queries"].items() if name in ("en", *languages)}
    order = rng.permutation(len(asked) + len(dropped)).tolist()
    write_lines(folder / "mkqa.jsonl", [[*asked, *dropped][i] for i in order])
    return asked


def test_mkqa_in_apples_layout_is_judged_as_by_a_slow_matcher_on_the_run_files(tmp_path: Path) -> None:
    asked = write_mkqa(tmp_path / "mkqa")
    records = list(map(json.loads, (tmp_path / "mkqa/corpus.jsonl").read_text(encoding="utf-8").splitlines()))
    texts = {each["_id"]: f"{each['title']} {each['text']}" for each in records}
    word_model(tmp_path / "words", [*texts.values(), *FILLERS.values()])
    assert evaluate(f"words={tmp_path}/words", "--tasks", tmp_path / "mkqa", "--out", tmp_path / "out") == 0
    found = find_results(tmp_path / "out/words")
    assert sorted(found) == sorted(f"mkqa/{language}" for language in LANGUAGES)
    answers = {
        str(each["example_id"]): [text for of in each["answers"]["en"] for text in (of["text"], *of["aliases"])]
        for each in asked
    }
    means = []
    for language in LANGUAGES:
        result, run = read_result(found[f"mkqa/{language}"]), read_run(found[f"mkqa/{language}"])
        assert sorted(result.query_ids, key=int) == list(answers)
        firsts = [slow_first([texts[d] for d in run[q][:100]], answers[q]) for q in result.query_ids]
        assert {-1, 0} < set(firsts) and max(firsts) > 10
        for k in DEPTHS:
            assert result.scores[f"acc@{k}"].tolist() == [float(0 <= first < k) for first in firsts], (language, k)
        best = dict(zip(result.query_ids, result.scores["acc@1"].tolist(), strict=True))
        for number, (text, words, hit) in enumerate(CASES):
            assert run[str(number)][0] == f"p{number}", (language, text)
            assert best[str(number)] == hit, (language, text, words)
        means.append(result.summary["measures"]["acc@10"])
    summary = summary_of(tmp_path / "out/words/mkqa")
    assert summary["measures"]["acc@10"] == pytest.approx(np.mean(means), abs=1e-12)
    assert {name: oddity["count"] for name, oddity in summary["oddities"].items()} == {
        "dropped: unanswerable": 2, "dropped: binary": 1, "dropped: long_answer": 1, "dropped: empty_question": 1,
        "dropped: no_answer": 1, "dropped: empty_answer": 2 * len(CASES) + 2,
    }  # fmt: skip


DRIVER = """
import os, re, runpy, signal, sys, tempfile, time
from pathlib import Path

import tdro.evaluation.tasks, tdro.evaluation.writing, tdro.retrieval.encoders, tdro.retrieval.rankers
from tdro.evaluation import answers
from tdro.retrieval import shards

shards.SHARD = answers._BLOCK = 16
FOLDER, MODES = Path(sys.argv[1]), sys.argv[2:]
LOG, REPLACE = FOLDER / "log", os.replace


def tdro(mode):
    place = FOLDER / mode
    (place / "scratch").mkdir(parents=True, exist_ok=True)
    os.environ["TDRO_CACHE"], tempfile.tempdir = str(place / "cache"), str(place / "scratch")
    tasks, out = str(FOLDER / "tasks"), str(place / "out")
    sys.argv = ["tdro", "evaluate", f"tiny={FOLDER}/tiny", "--tasks", tasks, "--out", out]
    runpy.run_module("tdro", run_name="__main__")


def replace(source, target):
    name = re.sub("[.]([^/.]+)[.][^/]*[.]tmp/", "\\\\1/", os.path.relpath(target, FOLDER / "writes"))
    seen = LOG.read_text().splitlines() if LOG.exists() else []
    if f"killed {name}" not in seen:
        note(f"killed {name}")
        os.kill(os.getpid(), signal.SIGKILL)
    REPLACE(source, target)
    note(f"written {name}")


def note(line):
    with LOG.open("a") as log:
        log.write(line + "\\n")


def start(mode):
    process = os.fork()
    if process == 0:
        if mode == "writes":
            os.replace = replace
        tdro(mode)
    return process


for mode in MODES:
    if "RANK" in os.environ:
        tdro(mode)
    delay, status, kills = 0.02, signal.SIGKILL, -1
    while os.WIFSIGNALED(status):
        process = start(mode)
        if mode == "moments":
            time.sleep(delay)
            os.kill(process, signal.SIGKILL)
            delay *= 1.25
        status, kills = os.waitpid(process, 0)[1], kills + 1
    print("kills:", mode, kills, flush=True)
    if status:
        sys.exit(f"{mode} ended with {status}")
"""
"""Runs `python -m tdro evaluate` in forks of itself, which need not load torch again, with 16 texts in a shard.

Modes: "writes" is killed once just before each file or folder appears under its name, "moments" after a longer and
longer time, until it is done; others are not killed. As a rank, it runs one mode without forking.
"""


def write_tasks(folder: Path) -> None:
    """Write a tiny model, MIRACL and MKQA; texts of very different lengths, so that forward passes depend on shards."""
    make_tiny_model("bert", folder / "tiny")
    (folder / "driver.py").write_text(DRIVER)
    for seed, language in enumerate(("sw", "yo")):
        documents = {f"{i // 4}#{i % 4}": sentence(*range(seed, seed + 1 + i % 7)) + f" {i}" for i in range(40)}
        queries = {f"q{i}": sentence(seed, i % 7) + f" {i}" for i in range(20)}
        qrels = {f"q{i}": {f"{i // 4}#{i % 4}": 1, f"{i}#0": 0} for i in range(1, 20)}
        write_miracl(folder / "tasks" / "miracl", language, Collection(documents, queries, qrels), 30)
    write_mkqa(folder / "tasks" / "mkqa", 40, LANGUAGES[:2])


def drive(folder: Path, *modes: str) -> dict[str, int]:
    """Run the driver; return how often each mode was killed."""
    command = [sys.executable, str(folder / "driver.py"), str(folder), *modes]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return {mode: int(kills) for mode, kills in re.findall(r"^kills: (\w+) (\d+)$", done.stdout, re.M)}


def left(folder: Path) -> dict[str, bytes]:
    """All that an evaluation leaves: results, and what it keeps, besides notes about the times of files."""
    found = files(folder)
    return {
        name: content
        for name, content in found.items()
        if not name.startswith("cache/datasets/") and Path(name).name != "manifest.json"
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tasks and the driver, and with an evaluation that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("kills")
    write_tasks(folder)
    assert drive(folder, "whole") == {"whole": 0}
    names = left(folder / "whole")
    assert {name for name in names if name.startswith("out/")} == {
        f"out/tiny/{place}/{name}"
        for place, of in (
            [("miracl", ("mteb.json", "summary.json")), ("mkqa", ("mteb.json", "summary.json"))]
            + [(f"miracl/{language}", FILES) for language in ("sw", "yo")]
            + [(f"mkqa/{language}", FILES) for language in LANGUAGES[:2]]
        )
        for name in of
    }
    shards = [name for name in names if re.fullmatch(r"cache/embeddings/\w+/shard-\d{6}\.npy", name)]
    assert len(shards) == 2 * (3 + 2) + 3 + 2 * 4
    assert len([name for name in names if re.fullmatch(r"cache/words/\w+/words-\d{6}\.npy", name)]) == 3
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["writes", "moments"])
def test_kills_at_any_moment_change_no_byte_and_leave_nothing_behind(whole: Path, mode: str) -> None:
    kills = drive(whole, mode)[mode]
    assert left(whole / mode) == left(whole / "whole")
    assert not [path for path in (whole / mode).rglob(".*") if path.suffix != ".lock"]
    if mode == "moments":
        assert kills > 5
        return
    log = [line.split(" ", 1) for line in (whole / "log").read_text().splitlines()]
    written = [name for when, name in log if when == "written"]
    assert kills == len(set(written)) and set(written) >= {name for name in left(whole / mode) if "out/" in name}
    times = Counter(written)
    assert {times[name] for name in times if "/shard-" in name or "/words-" in name} == {1}  # never made twice
    for language in ("miracl/sw", "miracl/yo", *(f"mkqa/{name}" for name in LANGUAGES[:2])):
        end = written.index(f"out/tiny/{language}/summary.json")
        assert not [name for name in written[end + 1 :] if name.startswith(f"out/tiny/{language}/")]


@pytest.mark.slow
def test_two_ranks_write_the_bytes_of_one_and_one_goes_on_where_two_were_killed(whole: Path) -> None:
    command = [str(whole / "driver.py"), str(whole)]
    run_ranks([*command, "two"], 2)
    assert left(whole / "two") == left(whole / "whole")
    ranks = start_ranks([*command, "lost"], 2)
    try:
        end = time.monotonic() + 120
        while not list((whole / "lost").glob("out/tiny/miracl/sw/scores.parquet")) and time.monotonic() < end:
            assert all(rank.poll() is None for rank in ranks), [rank.communicate()[0] for rank in ranks]
            time.sleep(0.005)
    finally:
        for rank in ranks:
            rank.kill()
        for rank in ranks:
            rank.communicate()
    kept = {path: path.stat().st_mtime_ns for path in (whole / "lost").glob("cache/embeddings/*/shard-*.npy")}
    assert len(kept) >= 5 and not (whole / "lost/out/tiny/miracl/summary.json").exists()
    drive(whole, "lost")
    assert left(whole / "lost") == left(whole / "whole")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
