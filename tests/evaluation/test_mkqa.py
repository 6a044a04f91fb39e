"""MKQA in its real file layouts, over a generated corpus: what is left out, what is a hit, what is refused."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_answers import Documents, slow_first

from tdro.errors import DataError
from tdro.evaluation.mkqa import DEPTHS, is_mkqa, read_mkqa, tokenize_documents
from tdro.retrieval.documents import store_documents
from tdro.retrieval.search import Hits

CORPUS = [
    "Bees Bees dance in Sa\u0303o Paulo.",
    "Honey About 1,200.5 tons (3½ %) a year",
    "東京 is the capital of 日本",
    "Nothing to see",
    "Zoë Kravitz, born December 1, 1988",
    "10,000 years of wax",
    "ends with New",
    "York begins this one",
]


def entity(text: str | None, *aliases: str, kind: str = "entity") -> dict[str, Any]:
    """One of Apple's answers."""
    return {"type": kind, "entity": "Q1", "text": text, "aliases": list(aliases)}


def question(number: int, *answers: dict[str, Any], **texts: str | None) -> dict[str, Any]:
    """One of Apple's questions, in English, Russian and Chinese."""
    queries = {"en": f"q{number}", "ru": f"в{number}", "zh_cn": f"问{number}", **texts}
    other = [{"type": "entity", "text": "Нет", "entity": "Q1"}]
    answers_of = {"en": list(answers), "ru": other, "zh_cn": other}
    return {"example_id": -number, "query": queries["en"], "queries": queries, "answers": answers_of}


QUESTIONS = [
    question(1, entity("São Paulo", "Sampa")),
    question(2, entity("1,200.5", kind="number_with_unit")),
    question(3, entity("東京")),
    question(4, entity(None, kind="unanswerable")),
    question(5, entity("so and so, and so on", kind="long_answer")),
    question(6, entity("yes", kind="binary")),
    question(7, entity("", " "), entity("zoe\u0308  KRAVITZ")),
    question(8, entity(None, "\u200b")),
    question(9, entity("000", kind="number"), entity("10000", kind="number")),
    question(10, entity("New York")),
    question(11, entity("bees"), ru=" "),
    question(12, entity("Нет")),
]
KEPT = ("-1", "-2", "-3", "-7", "-9", "-10", "-12")


def write(file: Path, records: Sequence[Any]) -> Path:
    """Write records, gzipped where the name says so."""
    file.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
    return file


def write_languages(folder: Path, **changes: list[dict[str, Any]]) -> Path:
    """Write the layout of one file per language, as it is made from Apple's file."""
    for language in ("en", "ru", "zh_cn"):
        records = [
            {"id": of["example_id"], "lang": language, "question": of["queries"][language], "answers": answers}
            for of in QUESTIONS
            if (answers := [text for a in of["answers"]["en"] for text in (*a["aliases"], a["text"])])
            and of["answers"]["en"][-1]["type"] not in ("unanswerable", "long_answer", "binary")
        ]
        write(folder / f"{language}.jsonl", changes.get(language, records))
    return folder


def ranking(*rows: Sequence[int]) -> Hits:
    """Rankings of the whole corpus that begin with these documents, filled up with -1."""
    indices = np.array([[*row, *[-1] * (len(CORPUS) - len(row))] for row in rows])
    return Hits(indices, np.zeros(indices.shape, np.float32))


def test_apples_file_gives_the_questions_with_short_answers(tmp_path):
    found = read_mkqa(write(tmp_path / "mkqa.jsonl.gz", QUESTIONS))
    assert found.languages == ("ru", "zh_cn")
    assert found.queries("ru") == (KEPT, ("в1", "в2", "в3", "в7", "в9", "в10", "в12"))
    assert found.queries("zh_cn")[0] == KEPT == read_mkqa(tmp_path, ["zh_cn"]).query_ids
    assert found.dropped == {
        "unanswerable": 1,
        "long_answer": 1,
        "binary": 1,
        "empty_answer": 4,
        "empty_question": 1,
        "no_answer": 1,
    }


def test_both_layouts_give_the_same_questions(tmp_path):
    one = read_mkqa(write(tmp_path / "apple" / "mkqa.jsonl", QUESTIONS).parent)
    several = read_mkqa(write_languages(tmp_path / "several"))
    nested = read_mkqa(write_languages(tmp_path / "nested" / "test").parent)
    assert one.languages == several.languages == nested.languages
    for language in one.languages:
        assert one.queries(language) == several.queries(language) == nested.queries(language)
        for some, other in zip(one.answers[language], several.answers[language], strict=True):
            assert {tuple(a.tolist()) for a in some} == {tuple(a.tolist()) for a in other}


def test_english_is_read_where_it_is_asked_for_or_alone(tmp_path):
    file = write(tmp_path / "mkqa.jsonl", QUESTIONS)
    assert read_mkqa(file, ["zh_cn", "en"]).languages == ("zh_cn", "en")
    assert read_mkqa(file, ["en"]).queries("en")[1][0] == "q1"
    alone = write(tmp_path / "alone" / "en.jsonl.gz", [{"id": 1, "question": "who", "answers": ["bees"]}])
    assert read_mkqa(alone.parent).languages == ("en",)


def test_a_folder_of_mkqa_is_known(tmp_path):
    assert is_mkqa(write(tmp_path / "a" / "mkqa.jsonl.gz", QUESTIONS).parent)
    assert is_mkqa(write_languages(tmp_path / "b" / "test").parent)
    assert not is_mkqa(write(tmp_path / "c" / "corpus.jsonl", []).parent)


def test_the_last_english_answer_decides_and_the_usable_ones_count(tmp_path):
    mixed = [
        question(1, entity("yes", kind="binary"), entity("bees")),
        question(2, entity("bees"), entity("yes", kind="binary")),
    ]
    found = read_mkqa(write(tmp_path / "mkqa.jsonl", mixed))
    assert found.query_ids == ("-1",) and found.dropped == {"binary": 1}
    assert [len(answers) for answers in found.answers["ru"]] == [1]


def test_languages_with_answers_of_their_own_are_judged_by_them(tmp_path):
    write(tmp_path / "ru.jsonl", [{"id": "1", "question": "кто", "answers": ["bees"]}])
    write(tmp_path / "tr.jsonl", [{"id": "1", "question": "kim", "answers": ["wax", None]}])
    mkqa, documents = read_mkqa(tmp_path), Documents(CORPUS)
    tokens = tokenize_documents(documents, tmp_path)
    assert mkqa.judge("ru", ranking([0, 5]), documents, tokens)["acc@1"].tolist() == [1.0]
    assert mkqa.judge("tr", ranking([0, 5]), documents, tokens)["acc@1"].tolist() == [0.0]
    assert mkqa.dropped == {"empty_answer": 1}


def test_accuracy_at_k_counts_the_first_passage_with_an_answer(tmp_path):
    mkqa, documents = read_mkqa(write(tmp_path / "mkqa.jsonl", QUESTIONS)), Documents(CORPUS)
    tokens = tokenize_documents(documents, tmp_path)
    rows = [[0], [3, 0, 1], [3, 0, 1, 2], [3, 0, 1, 2, 5, 6, 7, 4], [5], [6, 7, 3], range(8)]
    hits = ranking(*rows)
    first = mkqa.first_hits("zh_cn", hits, documents, tokens)
    assert first.tolist() == [0, 2, 3, 7, 0, -1, -1]
    scores = mkqa.judge("zh_cn", hits, documents, tokens)
    assert list(scores) == [f"acc@{k}" for k in DEPTHS]
    assert {name: of.tolist() for name, of in scores.items()} == {
        "acc@1": [1, 0, 0, 0, 1, 0, 0],
        "acc@3": [1, 1, 0, 0, 1, 0, 0],
        "acc@5": [1, 1, 1, 0, 1, 0, 0],
        "acc@10": [1, 1, 1, 1, 1, 0, 0],
        "acc@20": [1, 1, 1, 1, 1, 0, 0],
        "acc@100": [1, 1, 1, 1, 1, 0, 0],
    }
    assert all(of.dtype == np.float64 for of in scores.values())


def test_an_answer_may_begin_in_the_title_and_end_in_the_text(tmp_path):
    records = [
        {"_id": "d1", "title": "New", "text": "York"},
        {"_id": "d2", "text": "New"},
        {"_id": "d3", "text": "York"},
    ]
    documents = store_documents(write(tmp_path / "corpus.jsonl.gz", records), tmp_path / "cache")
    mkqa = read_mkqa(write(tmp_path / "mkqa.jsonl", [question(1, entity("new york"))]))
    hits = Hits(np.array([[1, 2, 0]]), np.zeros((1, 3), np.float32))
    found = mkqa.first_hits("ru", hits, documents, tokenize_documents(documents, tmp_path / "cache"))
    assert found.tolist() == [2]


def test_only_the_best_hundred_count(tmp_path):
    mkqa = read_mkqa(write(tmp_path / "mkqa.jsonl", [question(1, entity("bees"))]))
    documents = Documents(["honey"] * 120 + ["bees"])
    tokens = tokenize_documents(documents, tmp_path)
    for place, expected in ((99, 99), (100, -1)):
        order = np.arange(120)
        order[place] = 120
        hits = Hits(order[None], np.zeros((1, 120), np.float32))
        assert mkqa.first_hits("ru", hits, documents, tokens).tolist() == [expected]
        assert mkqa.judge("ru", hits, documents, tokens)["acc@100"].tolist() == [float(expected >= 0)]


def test_a_generated_collection_is_judged_as_by_the_slow_definition(tmp_path):
    rng = np.random.default_rng(0)
    words = ["São", "Paulo", "1,200", "3.5", "東京", "bee", "the", "New", "York", "—", "ë", "(", "%", "Нет"]
    texts = [" ".join(rng.choice(words, rng.integers(0, 30))) for _ in range(130)]
    wanted = [[" ".join(rng.choice(words, rng.integers(1, 5))) for _ in range(rng.integers(1, 4))] for _ in range(60)]
    records = [question(i, entity(some[0], *some[1:])) for i, some in enumerate(wanted)]
    mkqa, documents = read_mkqa(write(tmp_path / "mkqa.jsonl.gz", records)), Documents(texts)
    order = np.array([rng.permutation(130)[:110] for _ in wanted])
    hits = Hits(order, np.zeros(order.shape, np.float32))
    first = mkqa.first_hits("ru", hits, documents, tokenize_documents(documents, tmp_path))
    expected = [slow_first([texts[i] for i in row[:100]], some) for row, some in zip(order, wanted, strict=True)]
    assert first.tolist() == expected
    assert min(expected) == -1 < 5 < max(expected)


def test_the_fingerprint_of_a_language_tells_questions_and_answers_apart(tmp_path):
    base = read_mkqa(write(tmp_path / "a.jsonl", QUESTIONS))
    again = read_mkqa(write(tmp_path / "b.jsonl", QUESTIONS))
    other_answer = read_mkqa(write(tmp_path / "c.jsonl", [question(1, entity("Sao Paulo")), *QUESTIONS[1:]]))
    other_text = read_mkqa(
        write(tmp_path / "d.jsonl", [question(1, entity("São Paulo", "Sampa"), ru="x"), *QUESTIONS[1:]])
    )
    assert base.content("ru") == again.content("ru")
    assert len({of.content("ru") for of in (base, other_answer, other_text)}) == 3
    assert base.content("zh_cn") == other_text.content("zh_cn") != base.content("ru")


FAULTS: list[tuple[Any, str, str]] = [
    ({"queries": {"ru": "a"}, "answers": {"en": []}}, ":example_id", "id is missing"),
    ({**QUESTIONS[1], "example_id": "a b"}, ":example_id", "id is missing"),
    ({**QUESTIONS[1], "example_id": True}, ":example_id", "neither text nor a whole number"),
    (QUESTIONS[0], ":example_id", "id occurs twice"),
    ({**QUESTIONS[1], "queries": "a"}, ":queries", "no question in any language"),
    ({**QUESTIONS[1], "queries": {"en": "a", "ru": "b"}}, ":queries.zh_cn", "question without text"),
    ({**QUESTIONS[1], "queries": {"en": "a", "ru": 3, "zh_cn": "b"}}, ":queries.ru", "question is not a string"),
    ({**QUESTIONS[1], "answers": {"ru": []}}, ":answers.en", "without English answers"),
    ({**QUESTIONS[1], "answers": {"en": ["bees"]}}, ":answers.en[0]", "answer without type"),
    (question(2, entity("a"), {"text": "b"}), ":answers.en[1]", "answer without type"),
    (question(2, {"type": "entity", "text": 7}), ":answers.en[0].text", "answer is not a string"),
    (question(2, {"type": "entity", "text": "a", "aliases": "b"}), ":answers.en[0].aliases", "not a list"),
    (question(2, {"type": "entity", "text": "a", "aliases": ["b", 1]}), ":answers.en[0].aliases[1]", "not a string"),
    ([1], "", "question is not an object"),
]


@pytest.mark.parametrize(("record", "field", "what"), FAULTS)
def test_a_fault_in_apples_file_is_named_with_line_and_field(tmp_path, record, field, what):
    file = write(tmp_path / "mkqa.jsonl", [QUESTIONS[0], record])
    with pytest.raises(DataError, match=what) as caught:
        read_mkqa(file)
    assert caught.value.where == f"{file}:2{field}"


@pytest.mark.parametrize(
    ("record", "field", "what"),
    [
        ({"id": 2, "question": "a", "answers": "b"}, ":answers", "not a list"),
        ({"id": 2, "question": "a", "answers": ["b", 3]}, ":answers[1]", "not a string"),
        ({"id": 2, "answers": ["b"]}, ":question", "question without text"),
        ({"id": -1, "question": "a", "answers": ["b"]}, ":id", "id occurs twice"),
    ],
)
def test_a_fault_in_the_file_of_a_language_is_named_with_line_and_field(tmp_path, record, field, what):
    good = {"id": -1, "question": "a", "answers": ["b"]}
    write_languages(tmp_path, ru=[good, record])
    with pytest.raises(DataError, match=what) as caught:
        read_mkqa(tmp_path)
    assert caught.value.where == f"{tmp_path / 'ru.jsonl'}:2{field}"


def test_languages_must_have_the_same_questions(tmp_path):
    write_languages(tmp_path, ru=[{"id": -1, "question": "a", "answers": ["b"]}])
    with pytest.raises(DataError, match="different questions") as caught:
        read_mkqa(tmp_path)
    assert "zh_cn" in str(caught.value.saw) and "-10" in str(caught.value.saw)
    assert read_mkqa(tmp_path, ["ru"]).query_ids == ("-1",)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_mkqa(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="without questions"):
        read_mkqa(tmp_path)
    file = write(tmp_path / "mkqa.jsonl", QUESTIONS)
    with pytest.raises(DataError, match="lacks a language") as caught:
        read_mkqa(file, ["ru", "xx"])
    assert caught.value.saw == "xx"
    with pytest.raises(DataError, match="lacks a language"):
        read_mkqa(write_languages(tmp_path / "several"), ["de"])
    with pytest.raises(DataError, match="no question is left"):
        read_mkqa(write(tmp_path / "empty.jsonl", []), ["ru"])
    with pytest.raises(DataError, match="no question is left") as caught:
        read_mkqa(write(tmp_path / "mkqa.jsonl", [QUESTIONS[3]]))
    assert "unanswerable" in str(caught.value.saw)


def test_hits_and_tokens_of_something_else_are_refused(tmp_path):
    mkqa, documents = read_mkqa(write(tmp_path / "mkqa.jsonl", QUESTIONS[:1])), Documents(CORPUS)
    tokens = tokenize_documents(documents, tmp_path)
    with pytest.raises(DataError, match="another corpus"):
        mkqa.judge("ru", ranking([0]), Documents(CORPUS[:5]), tokens)
    with pytest.raises(DataError, match="best passages of 1 questions"):
        mkqa.judge("ru", ranking([0], [1]), documents, tokens)
    few = ranking([0]).indices_QK[:, :3]
    with pytest.raises(DataError, match="the 8 best passages"):
        mkqa.judge("ru", Hits(few, np.zeros(few.shape, np.float32)), documents, tokens)
