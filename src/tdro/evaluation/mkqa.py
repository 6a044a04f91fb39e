"""MKQA: the same questions in many languages over one English Wikipedia; a hit is a passage that contains an answer.

Source: the protocol of BGE-M3 (arXiv 2402.03216) and of the paper (arXiv 2408.10613). Questions of `mkqa.jsonl` are
selected as by the preparation script of Contriever, on which both rest: 6,619 of 10,000 remain. Answers are the English
ones in every language, because the corpus is English. Matching: `tdro.evaluation.answers`.

Departures: an answer without a token, which is a hit in every passage there, is left out here. BGE-M3 unifies dashes
and quotes in the passages but not in the answers; here, as in the paper's released code, texts stay as they are. The
released code rates English as well; the 25 languages of the published means are the others.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from tdro.data.fields import Fault, identifier_of, optional_text
from tdro.data.sources import find_source
from tdro.errors import DataError
from tdro.evaluation.answers import (
    Answers,
    DocumentTokens,
    NamedTexts,
    answer_tokens,
    first_hits,
    tokenize,
    tokenize_documents,
)
from tdro.retrieval.arrays import content_of
from tdro.retrieval.search import Hits

__all__ = ["DEPTHS", "LANGUAGES", "DocumentTokens", "Mkqa", "is_mkqa", "read_mkqa", "tokenize_documents"]

DEPTHS = (1, 3, 5, 10, 20, 100)
"""The measures are acc@1, acc@3, ...: whether one of the best so many passages has an answer in it."""

LANGUAGES = (
    "ar", "da", "de", "en", "es", "fi", "fr", "he", "hu", "it", "ja", "km", "ko",
    "ms", "nl", "no", "pl", "pt", "ru", "sv", "th", "tr", "vi", "zh_cn", "zh_hk", "zh_tw",
)  # fmt: skip
"""The languages of the original."""

_UNUSABLE = ("unanswerable", "long_answer", "binary")
_LAYOUTS = "give Apple's mkqa.jsonl(.gz), its folder, or a folder with a file LANGUAGE.jsonl(.gz) for each language"
_APPLE = 'write {"example_id": ..., "queries": {language: text}, "answers": {"en": [{"type", "text", "aliases"}]}}'


class _Question(NamedTuple):
    """A question in one language, with its answers as they are written."""

    text: str
    answers: tuple[str, ...]


_Questions: TypeAlias = dict[str, _Question]  # by id


@dataclass(frozen=True, slots=True)
class Mkqa:
    """Questions of MKQA, the same ones in every language; made by `read_mkqa`.

    Args:
        query_ids: Q ids, the same for every language.
        texts: Language -> the texts of the questions, [Q].
        answers: Language -> the answers to the questions, [Q].
        dropped: What was left out, and how much of it; a reason that did not occur is absent. Questions:
            "unanswerable", "long_answer", "binary" (their kind of answer), "empty_question" (in some language) and
            "no_answer" (none has a token, in some language). Answers of all questions: "empty_answer" (without a token;
            counted once where the languages share it).
    """

    query_ids: tuple[str, ...]
    texts: Mapping[str, tuple[str, ...]]
    answers: Mapping[str, tuple[Answers, ...]]
    dropped: Mapping[str, int]

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages: as they were asked for, or in the order of the file, or of the names of files."""
        return tuple(self.texts)

    def queries(self, language: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return ids and texts of the questions."""
        return self.query_ids, self.texts[language]

    def content(self, language: str) -> str:
        """Fingerprint ids, questions and answers of a language."""
        answers = (str([answer.tolist() for answer in of]) for of in self.answers[language])
        return content_of([*self.query_ids, *self.texts[language], *answers])

    def first_hits(self, language: str, hits: Hits, documents: NamedTexts, tokens: DocumentTokens) -> np.ndarray:
        """Find the best-ranked passage of every question that has an answer in it, among the best 100.

        Args:
            language: Which answers.
            hits: The passages found, in the order of the questions; at least 100 each if the corpus has so many.
            documents: The corpus.
            tokens: Its tokens.

        Returns:
            int64 [Q], ranks counted from 0; -1 where there is none.

        Raises:
            DataError: The tokens are of another corpus, or the hits of other questions or too few.
        """
        if tokens.content != documents.content:
            raise DataError("the tokens are those of another corpus", where="MKQA", do="tokenise this one")
        questions, depth = len(self.query_ids), min(DEPTHS[-1], len(documents))
        if len(hits.indices_QK) != questions or hits.indices_QK.shape[1] < depth:
            what = f"MKQA needs the {depth} best passages of {questions} questions"
            do = "search with a larger k, for these questions"
            raise DataError(what, where=language, saw=hits.indices_QK.shape, do=do)
        return first_hits(hits.indices_QK[:, : DEPTHS[-1]], self.answers[language], tokens)

    def judge(self, language: str, hits: Hits, documents: NamedTexts, tokens: DocumentTokens) -> dict[str, np.ndarray]:
        """Compute acc@k: 1 where one of the k best passages has an answer in it, 0 elsewhere.

        Arguments and errors are those of `first_hits`.

        Returns:
            Measure -> float64 [Q].
        """
        first_Q = self.first_hits(language, hits, documents, tokens)
        return {f"acc@{k}": ((first_Q >= 0) & (first_Q < k)).astype(np.float64) for k in DEPTHS}


def read_mkqa(path: Path, languages: Sequence[str] = ()) -> Mkqa:
    """Read MKQA in one of two layouts.

    Apple's `mkqa.jsonl` has all languages: {"example_id", "queries": {language: text}, "answers": {"en": [{"type",
    "text", "aliases"}]}}. A question is unusable if the last of its English answers is of the type unanswerable,
    long_answer or binary; of the others, texts and aliases of all answers count whose type is none of these. In the
    other layout `LANGUAGE.jsonl` has {"id", "question", "answers": [text]}, already selected, and the answers in a file
    count for its language.

    A question that is empty in one language, or none of whose answers has a token, is left out in all languages: all of
    Apple's file, which thus has the same questions whatever languages are asked for, or all whose files are read.

    Args:
        path: The file, or a folder that has it, or that has the files LANGUAGE.jsonl itself or in its folder `test`.
        languages: Which languages, in this order; by default all but English, to which the corpus is not foreign.

    Returns:
        The questions.

    Raises:
        DataError: A file or language is missing, a record is faulty, an id is repeated, the languages have different
            questions, or no question remains. Names file, line and field.
    """
    dropped: Counter[str] = Counter()
    found = _locate(path, languages)
    if isinstance(found, Path):
        questions = _read_apple(found, dropped)
        chosen = _choose(questions, languages, path)
    else:
        chosen = _choose(found, languages, path)
        questions = {name: _read_language(found[name]) for name in chosen}
    return _select(questions, chosen, dropped, path)


def is_mkqa(folder: Path) -> bool:
    """Whether a folder has files of MKQA, in one of the two layouts."""
    return any(_files(place, names) for place, names in _places(folder, ()))


def _locate(path: Path, languages: Sequence[str]) -> Path | dict[str, Path]:
    """Find the file with all languages, or else the file of each."""
    if not path.is_dir():
        return path
    for folder, names in _places(path, languages):
        if found := _files(folder, names):
            return found.get("mkqa", found)
    present = ", ".join(sorted(item.name for item in path.iterdir())) or "nothing"
    raise DataError("MKQA without questions", where=path, saw=f"in this folder: {present}", do=_LAYOUTS)


def _places(folder: Path, languages: Sequence[str]) -> list[tuple[Path, tuple[str, ...]]]:
    """Return where questions may be, and what the files may be called."""
    names = (*LANGUAGES, *languages)
    return [(folder, ("mkqa",)), (folder, names), (folder / "test", names)]


def _files(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """Find files of these names."""
    files = ((name, folder / f"{name}{suffix}") for name in names for suffix in (".jsonl.gz", ".jsonl"))
    return {name: file for name, file in files if file.is_file()}


def _choose(found: Iterable[str], languages: Sequence[str], path: Path) -> list[str]:
    """Return the languages asked for; by default all but English, or English where there is no other."""
    there = list(found)
    if there and (missing := [name for name in languages if name not in there]):
        raise DataError("MKQA lacks a language", where=path, saw=missing[0], do=f"choose from {', '.join(there)}")
    return list(languages) or [name for name in there if name != "en"] or there


def _read_apple(file: Path, dropped: Counter[str]) -> dict[str, _Questions]:
    """Read the usable questions of a file with all languages, and count the others."""
    questions: dict[str, _Questions] = {}
    seen: set[str] = set()
    for _, place, record in find_source(file).records(repeat(True)):
        with _at(place):
            identifier = _identifier(record, "example_id", seen)
            texts = record.get("queries")
            if not isinstance(texts, dict):
                raise Fault("no question in any language", ":queries", texts, _APPLE)
            questions = questions or {name: {} for name in texts}
            kind, answers = _english(record)
            if kind in _UNUSABLE:
                dropped[kind] += 1
                continue
            for name, those in questions.items():
                those[identifier] = _Question(_query(texts, name, f":queries.{name}"), answers)
    return questions


def _english(record: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Return the type of the last English answer, and the texts of all that are usable."""
    answers = record.get("answers")
    english = answers.get("en") if isinstance(answers, dict) else None
    if not isinstance(english, list):
        raise Fault("question without English answers", ":answers.en", english, _APPLE)
    kind, texts = _UNUSABLE[0], []
    for i, answer in enumerate(english):
        field = f":answers.en[{i}]"
        if not isinstance(answer, dict) or not isinstance(answer.get("type"), str):
            raise Fault("answer without type", field, answer, _APPLE)
        kind = answer["type"]
        if kind not in _UNUSABLE:
            texts.append(optional_text(answer.get("text"), "answer", f"{field}.text"))
            texts.extend(_texts(answer.get("aliases") or [], f"{field}.aliases"))
    return kind, tuple(texts)


def _read_language(file: Path) -> _Questions:
    """Read the file of one language."""
    questions: _Questions = {}
    seen: set[str] = set()
    for _, place, record in find_source(file).records(repeat(True)):
        with _at(place):
            identifier = _identifier(record, "id", seen)
            answers = _texts(record.get("answers"), ":answers")
            questions[identifier] = _Question(_query(record, "question", ":question"), answers)
    return questions


def _identifier(record: Any, field: str, seen: set[str]) -> str:
    """Return the id of a question, which must be new and fit into a run file."""
    if not isinstance(record, dict):
        raise Fault("question is not an object", "", record, _LAYOUTS)
    found = identifier_of(record.get(field), f":{field}")
    if found is None or found.split() != [found]:
        do = "give every question an id without white space, the same in all languages"
        raise Fault("id is missing or contains white space", f":{field}", record.get(field), do)
    if found in seen:
        raise Fault("id occurs twice", f":{field}", found, "keep one of the two")
    seen.add(found)
    return found


def _query(texts: dict[str, Any], name: str, field: str) -> str:
    """Return the text of a question; empty where it is null."""
    if name not in texts:
        raise Fault("question without text", field, texts, "write the question, or null where it is unknown")
    return optional_text(texts[name], "question", field)


def _texts(value: Any, field: str) -> tuple[str, ...]:
    """Return a list of answers; empty ones where they are null."""
    if not isinstance(value, list):
        raise Fault("answers are not a list", field, value, "write the answers in a list: [...]")
    return tuple(optional_text(text, "answer", f"{field}[{i}]") for i, text in enumerate(value))


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Add the place of a record to what is wrong with one of its fields."""
    try:
        yield
    except Fault as fault:
        raise DataError(fault.what, where=f"{place}{fault.field}", saw=fault.saw, do=fault.do) from None


def _select(questions: dict[str, _Questions], chosen: Sequence[str], dropped: Counter[str], path: Path) -> Mkqa:
    """Tokenise the answers and keep what can be judged in every language."""
    first = next(iter(questions.values()), {})
    for name, those in questions.items():
        if differing := sorted(first.keys() ^ those.keys()):
            saw = f"{len(differing)} of {name} differ from those of {next(iter(questions))}, such as {differing[0]}"
            do = "use complete files, or ask for the languages that are complete"
            raise DataError("the languages have different questions", where=path, saw=saw, do=do)
    tokens: dict[tuple[str, tuple[str, ...]], Answers] = {}
    for those in questions.values():
        for identifier, question in those.items():
            if (identifier, question.answers) not in tokens:
                tokens[identifier, question.answers] = answer_tokens(question.answers)
                dropped["empty_answer"] += sum(not tokenize(answer) for answer in question.answers)
    empty = {i for those in questions.values() for i, question in those.items() if not question.text.strip()}
    unanswered = {identifier for (identifier, _), found in tokens.items() if not found} - empty
    dropped.update(empty_question=len(empty), no_answer=len(unanswered))
    lost = empty | unanswered
    kept = tuple(identifier for identifier in first if identifier not in lost)
    if not kept:
        raise DataError("no question is left", where=path, saw=f"left out: {dict(+dropped)}", do=_LAYOUTS)
    return Mkqa(
        query_ids=kept,
        texts={name: tuple(questions[name][i].text for i in kept) for name in chosen},
        answers={name: tuple(tokens[i, questions[name][i].answers] for i in kept) for name in chosen},
        dropped=dict(+dropped),
    )
