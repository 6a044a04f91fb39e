"""The texts of a step, cached and fresh, against a plain version that reads rows and compares strings."""

from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
from studies import sentence, tiny_study

from tdro.data.collate import tokenize
from tdro.data.examples import with_instruction
from tdro.data.mixture import Draw, MixedMixture, seeded
from tdro.data.reading import Rows, write_rows
from tdro.data.records import Passage, Row
from tdro.training.dataset_tokens import CachedTokens, FreshTokens, study_tokens
from tdro.training.negatives import negatives
from tdro.training.run import Run
from tdro.training.texts import StepTexts, TextSource

OPTIONS = {
    "one": {"instruction": "bee hive"},
    "two": {"instruction": "find {query}", "symmetric": True},
    "three": {},
}
WORDINGS = {"one": ["bee hive"], "two": ["find {query}", "sun moon", "tide"], "three": []}
"""With choices: dataset `two` has further wordings, and a third of the visits no instruction."""
SHARE = 2 / 3


def random_row(random: np.random.Generator, number: int, scored: bool) -> Row:
    """A row with up to four positives and six negatives of a small pool, so that rows share passages and queries."""
    pool = [
        Passage(f"p{j}", "bird" * (j % 3 == 0), sentence(*range(j, j + j % 9 + 1)), j / 7 if scored else None)
        for j in range(30)
    ]
    chosen = [pool[j] for j in random.permutation(30)[: random.integers(1, 11)]]
    positives = int(random.integers(1, min(4, len(chosen)) + 1))
    query = sentence(*random.integers(20, size=2)) if number % 3 else sentence(number % 2)
    return Row(f"q{number}", query, tuple(chosen[:positives]), tuple(chosen[positives:]))


def make_run(
    folder: Path, seed: int, tokens: str = "auto", family: str = "bert", choices: bool = False
) -> tuple[Run, dict[str, Rows]]:
    """A run over random datasets with instructions, and selections from its rows; those of `one` have scores."""
    data = {"datasets": {n: {"path": f"train/{n}.jsonl", **o} for n, o in OPTIONS.items()}}
    data |= {"tokens": tokens, "query_max_length": 60}
    if choices:
        data["instruction_share"] = SHARE
        data["datasets"]["two"]["more_instructions"] = WORDINGS["two"][1:]
    study = tiny_study(folder, family, data=data, mining={"when": "never"})
    random = np.random.default_rng(seed)
    for name in OPTIONS:
        rows = [random_row(random, i, name == "one") for i in range(int(random.integers(30, 60)))]
        write_rows(rows, folder / "root" / "train" / f"{name}.jsonl")
    run = Run(study)
    return run, {name: rows.select(random.permutation(len(rows))[:25]) for name, rows in negatives(run).items()}


Chosen = tuple[str, Row, list[int], list[int], str]
"""Dataset, row, places of passages and of other positives, and the instruction."""


def plain(run: Run, chosen: list[Chosen]) -> dict[str, object]:
    """The texts of a step as strings say they are; which texts are equal does not depend on instructions."""
    data, tokenizer = run.study.data, run.load_base().tokenizer
    queries, passages, others, written, scores = [], [], [], {"queries": [], "passages": []}, []
    for query, (name, row, shown, unshown, instruction) in enumerate(chosen):
        every = [(name, p.full_text) for p in (*row.positives, *row.negatives)]
        symmetric = instruction if data.datasets[name].symmetric else ""
        queries.append((name, row.query))
        passages += [every[place] for place in shown]
        others += [(query, every[place]) for place in unshown]
        written["queries"].append(with_instruction(row.query, instruction, data.instruction_template))
        for place in shown:
            written["passages"].append(with_instruction(every[place][1], symmetric, data.instruction_template))
            identifier = (*row.positives, *row.negatives)[place].id
            scores.append(int(identifier[1:]) / 7 if name == "one" else None)
    query_keys, passage_keys = ({text: i for i, text in enumerate(dict.fromkeys(t))} for t in (queries, passages))
    return {
        "queries_B": tokenize(tokenizer, written["queries"], data.query_max_length),
        "passages_P": tokenize(tokenizer, written["passages"], data.passage_max_length),
        "count_B": [len(shown) for _, _, shown, _, _ in chosen],
        "query_key_B": [query_keys[text] for text in queries],
        "passage_key_P": [passage_keys[text] for text in passages],
        "known_K2": [[query, passage_keys[text]] for query, text in others if text in passage_keys],
        "place_P": [place for _, _, shown, _, _ in chosen for place in shown],
        "score_P": scores,
    }


def plain_instruction(name: str, choices: bool, *key: object) -> str:
    """The instruction of a visit: of all wordings one, with a probability."""
    if not choices:
        return OPTIONS[name].get("instruction", "")
    random = seeded("instruction", *key)
    if not WORDINGS[name] or random.random() >= SHARE:
        return ""
    return WORDINGS[name][random.integers(len(WORDINGS[name]))]


def plain_choice(row: Row, passages_per_query: int, *key: object) -> tuple[list[int], list[int]]:
    """One positive and some negatives, drawn from the row itself."""
    random, positives = seeded(*key), list(range(len(row.positives)))
    first = positives.pop(int(random.integers(len(positives))))
    wanted = min(passages_per_query - 1, len(row.negatives))
    return [first, *(len(row.positives) + i for i in random.permutation(len(row.negatives))[:wanted])], positives


def as_lists(texts: StepTexts) -> dict[str, object]:
    """A step's texts without tensors; None stands for no score."""
    found = {name: value if isinstance(value, list) else value.tolist() for name, value in vars(texts).items()}
    return {**found, "score_P": [None if np.isnan(score) else score for score in found["score_P"]]}


def sources(run: Run, rows: dict[str, Rows], seed: int = 42) -> dict[str, TextSource]:
    """The same texts, tokenised in the step and from the cache."""
    model, data = run.load_base(), run.study.data
    cached = study_tokens(run, rows, model)
    assert all(isinstance(tokens, CachedTokens) for tokens in cached.values())
    return {"fresh": TextSource(rows, data, model, seed), "cached": TextSource(rows, data, model, seed, cached)}


@pytest.mark.parametrize("seed", range(6))
def test_texts_of_mixed_and_homogeneous_draws_are_the_plain_ones(tmp_path, seed):
    choices = seed >= 3
    run, rows = make_run(tmp_path, seed, "cached", ("bert", "qwen2", "static")[seed % 3], choices)
    names, random = list(rows), np.random.default_rng(seed)
    mixed = MixedMixture({name: len(r) for name, r in rows.items()}, 40, seed).draw(1)
    alone = Draw(np.full(60, seed % 3), random.integers(25, size=60), random.integers(3, size=60))
    for kind, source in sources(run, rows, seed).items():
        for passages_per_query in (1, 3, 8):
            for draw in (mixed, alone):
                chosen = []
                for dataset, number, visit in zip(draw.dataset_B, draw.row_B, draw.visit_B, strict=True):
                    name, row = names[dataset], rows[names[dataset]][number]
                    key = (seed, name, int(number), int(visit))
                    instruction = plain_instruction(name, choices, *key)
                    chosen.append((name, row, *plain_choice(row, passages_per_query, *key), instruction))
                found = as_lists(source.texts(draw, passages_per_query))
                assert found == plain(run, chosen), kind
                assert passages_per_query == 1 or found["known_K2"]


@pytest.mark.parametrize("seed", range(2))
def test_whole_rows_are_the_plain_ones_also_over_other_rows(tmp_path, seed):
    run, rows = make_run(tmp_path, seed, "cached", choices=seed == 1)
    every = {name: dataset.source for name, dataset in rows.items()}
    for source in sources(run, rows).values():
        for over, some in ((source, rows), (source.over(every), every)):
            wanted = [some["two"][i] for i in range(4, 20)]
            chosen = [("two", r, list(range(len(r.positives) + len(r.negatives))), [], "find {query}") for r in wanted]
            texts = over.whole_rows(1, range(4, 20))
            assert as_lists(texts) == plain(run, chosen)
            starts = [0, *accumulate(len(r.positives) + len(r.negatives) for r in wanted)]
            assert texts.positive_B.tolist() == starts[:-1]


def test_cached_texts_read_no_strings_and_make_no_tokens(tmp_path, monkeypatch):
    run, rows = make_run(tmp_path, 0, "cached")
    source = sources(run, rows)["cached"]
    for name in ("queries_at", "passages_at", "query_texts", "passage_texts", "__getitem__"):
        monkeypatch.setattr(Rows, name, lambda *_: pytest.fail("a string was read"))
    monkeypatch.setattr("tdro.data.collate._tokenize", lambda *_: pytest.fail("a text was tokenised"))
    draw = MixedMixture({name: len(r) for name, r in rows.items()}, 40, 0).draw(0)
    assert len(source.texts(draw, 4).queries_B) == 40
    assert source.whole_rows(0, range(3)).queries_B


def test_steps_may_be_prepared_in_another_thread(tmp_path):
    run, rows = make_run(tmp_path, 0, "cached")
    mixture = MixedMixture({name: len(r) for name, r in rows.items()}, 40, 0)
    draws = [mixture.draw(step) for step in range(20)]
    for source in sources(run, rows).values():
        expected = [as_lists(source.texts(draw, 4)) for draw in draws]
        with ThreadPoolExecutor(2) as threads:
            assert list(threads.map(lambda draw: as_lists(source.texts(draw, 4)), draws)) == expected  # noqa: B023


@pytest.mark.parametrize(
    ("tokens", "changes", "expected"),
    [
        ("fresh", {}, FreshTokens),
        (
            "cached",
            {"reference": {"steps": 1, "batch_size": 1}, "weights": {"steps": 1, "batch_size": 1}},
            CachedTokens,
        ),
        ("auto", {"reference": {"steps": 1, "batch_size": 1}, "weights": {"steps": 1, "batch_size": 1}}, FreshTokens),
        ("auto", {"weights": {"steps": 1, "batch_size": 1, "reference_similarities": "all"}}, CachedTokens),
        # Of 30 to 60 rows a study draws 2 * 9 * 3 / 3 texts in stages 0 and 2, or nine times as many.
        ("auto", {"reference": {"steps": 3, "batch_size": 3}, "weights": {"steps": 1, "batch_size": 1}}, FreshTokens),
        ("auto", {"reference": {"steps": 9, "batch_size": 9}, "weights": {"steps": 1, "batch_size": 1}}, CachedTokens),
    ],
)
def test_tokens_are_kept_where_that_is_less_work(tmp_path, tokens, changes, expected):
    run, rows = make_run(tmp_path, 0, tokens)
    sections = {
        name: getattr(run.study, name).model_copy(update={"passages_per_query": 2 + (name == "weights"), **values})
        for name, values in changes.items()
    }
    run.study = run.study.model_copy(update=sections)
    found = study_tokens(run, rows, run.load_base())
    assert {type(source) for source in found.values()} == {expected}
    of_many = study_tokens(run, rows, run.load_base(), many_models=True)
    assert {type(source) for source in of_many.values()} == {FreshTokens if tokens == "fresh" else CachedTokens}


def test_datasets_far_larger_than_the_study_are_not_even_read_for_it(tmp_path, monkeypatch):
    run, rows = make_run(tmp_path, 0)
    small = {"steps": 1, "batch_size": 1}
    sections = {name: getattr(run.study, name).model_copy(update=small) for name in ("reference", "weights")}
    run.study = run.study.model_copy(update=sections)
    monkeypatch.setattr(Rows, "passage_texts", lambda *_: pytest.fail("a string was read"))
    assert all(isinstance(tokens, FreshTokens) for tokens in study_tokens(run, rows, run.load_base()).values())


@pytest.mark.parametrize("option", ["positives", "negatives"])
def test_first_passages_are_shown_where_the_study_says_so(tmp_path, option):
    run, rows = make_run(tmp_path, 0)
    data = run.study.data.model_copy(update={option: "first"})
    source = TextSource(rows, data, run.load_base(), 42)
    draw = MixedMixture({name: len(r) for name, r in rows.items()}, 60, 0).draw(0)
    texts, names = source.texts(draw, 4), list(rows)
    place_P, starts_B = texts.place_P.tolist(), texts.positive_B.tolist()
    drawn = {"positives": [], "negatives": []}
    for start, count, dataset, number in zip(starts_B, texts.count_B.tolist(), draw.dataset_B, draw.row_B, strict=True):
        positives = len(rows[names[dataset]][number].positives)
        drawn["positives"].append(place_P[start] == 0)
        negatives = range(positives, positives + count - 1)
        drawn["negatives"].append(place_P[start + 1 : start + count] == list(negatives))
    assert {kind for kind, as_first in drawn.items() if all(as_first)} == {option}


def test_many_cut_texts_are_reported_once_per_study(tmp_path):
    run, rows = make_run(tmp_path, 0, "cached")
    run.study = run.study.model_copy(update={"data": run.study.data.model_copy(update={"passage_max_length": 5})})
    for _ in range(2):
        study_tokens(Run(run.study), rows, run.load_base())
    notes = [event["text"] for event in run.journal.read("note", "tokens")]
    assert len(notes) == len(set(notes)) == 3
