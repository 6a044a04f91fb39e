"""MIRACL: 18 languages, each with its own Wikipedia; full, or with the documents of a pool only (hard negatives).

The full variant is read in the layout in which it is published:

    miracl-v1.0-LANG/topics/topics.miracl-v1.0-LANG-dev.tsv     query id, tab, query
    miracl-v1.0-LANG/qrels/qrels.miracl-v1.0-LANG-dev.tsv       query id, Q0, document id, relevance
    miracl-corpus-v1.0-LANG/docs-N.jsonl.gz                     docid, title, text

The variant with hard negatives, which `mteb` has as MIRACLRetrievalHardNegatives, is a folder in BEIR layout for each
language: LANG/corpus.jsonl, LANG/queries.jsonl, LANG/qrels/dev.tsv. Its scores are far higher, so that a folder that
has both is refused, every summary names its variant, and neither a mean nor a comparison takes both.
"""

from collections.abc import Sequence
from pathlib import Path

from tdro.config import TaskConfig
from tdro.errors import ConfigError, DataError
from tdro.evaluation.beir import beir_part, has_texts
from tdro.evaluation.benchmarks import Benchmark, Part, Task, judged_queries
from tdro.evaluation.judgements import read_qrels, read_topics
from tdro.retrieval.documents import store_documents
from tdro.retrieval.shards import Progress

LANGUAGES = {
    "ar": "ara-Arab", "bn": "ben-Beng", "de": "deu-Latn", "en": "eng-Latn", "es": "spa-Latn", "fa": "fas-Arab",
    "fi": "fin-Latn", "fr": "fra-Latn", "hi": "hin-Deva", "id": "ind-Latn", "ja": "jpn-Jpan", "ko": "kor-Kore",
    "ru": "rus-Cyrl", "sw": "swa-Latn", "te": "tel-Telu", "th": "tha-Thai", "yo": "yor-Latn", "zh": "zho-Hans",
}  # fmt: skip
"""Language -> language and script, as mteb writes them."""

_QUERIES = "miracl-v1.0-"
_CORPUS = "miracl-corpus-v1.0-"


def is_miracl(folder: Path) -> bool:
    """Whether a folder is MIRACL, in whatever variant."""
    children = [child.name for child in folder.iterdir() if child.is_dir()]
    texts = [name for name in children if has_texts(folder / name)]
    return any(name.startswith(_QUERIES) for name in children) or (bool(texts) and set(texts) <= set(LANGUAGES))


def find_miracl(name: str, folder: Path, options: TaskConfig, corpus: Path | None) -> Task:
    """Find the languages of MIRACL.

    Args:
        name: Of the task.
        folder: The folder that holds the languages.
        options: Of the task; by default every language that is there, judged on dev.
        corpus: Folder of the documents of the full variant, where it is not `folder`.

    Raises:
        DataError: Files are missing; the folder holds both variants, or none.
        ConfigError: A language is not there; an option does not go with the variant.
    """
    names = sorted(child.name for child in folder.iterdir() if child.is_dir()) if folder.is_dir() else []
    full = [name.removeprefix(_QUERIES) for name in names if name.startswith(_QUERIES)]
    pooled = [name for name in names if name in LANGUAGES and has_texts(folder / name)]
    if bool(full) == bool(pooled):
        what = "the folder holds both variants of MIRACL" if full else "MIRACL not found"
        do = f"give a folder with {_QUERIES}LANG folders, or one with a BEIR folder for each language"
        raise DataError(what, where=folder, saw=", ".join(names) or "nothing", do=do)
    languages = _chosen(full or pooled, options.languages, name)
    if full:
        return Task(name, tuple(_full(name, language, folder, options, corpus or folder) for language in languages))
    if corpus is not None:
        do = "leave it out: with hard negatives every language has its own corpus.jsonl"
        raise ConfigError("a corpus of MIRACL is not read", where=name, saw=str(corpus), do=do)
    settings: dict[str, object] = {"kind": "miracl", "variant": "hard-negatives"}
    return Task(
        name,
        tuple(
            beir_part(name, language, folder / language, options, {**settings, "language": language}, "dev")
            for language in languages
        ),
    )


def _full(task: str, language: str, folder: Path, options: TaskConfig, corpus: Path) -> Part:
    """Return a language of the full variant."""
    split = options.split or "dev"
    place, stem = folder / f"{_QUERIES}{language}", f"miracl-v1.0-{language}-{split}.tsv"
    topics, qrels = place / "topics" / f"topics.{stem}", place / "qrels" / f"qrels.{stem}"
    for file in (topics, qrels):
        if not file.is_file():
            present = sorted(path.name for path in file.parent.iterdir()) if file.parent.is_dir() else []
            do = "name another split, or in languages those that are complete"
            raise DataError("language without its file", where=file, saw=", ".join(present) or "nothing", do=do)
    documents = corpus / f"{_CORPUS}{language}"
    files = sorted(documents.glob("*.jsonl*")) or sorted(documents.glob("*.parquet"))
    if not files:
        do = "put the documents there, or name the folder that holds them in corpus"
        raise DataError("language without documents", where=documents, saw="no docs-N.jsonl.gz", do=do)
    ignore = bool(options.ignore_identical_ids)

    def read(cache: Path, progress: Progress | None) -> Benchmark:
        judged, queries = read_qrels(qrels), read_topics(topics)
        stored = store_documents(documents, cache)
        return judged_queries(f"{task}/{language}", stored, queries, judged, where=qrels, ignore_identical_ids=ignore)

    settings: dict[str, object] = {"kind": "miracl", "split": split, "ignore_identical_ids": ignore}
    settings |= {"variant": "full", "language": language}
    return Part(task, language, (*files, topics, qrels), settings, read, lambda: read_qrels(qrels))


def _chosen(present: Sequence[str], wanted: Sequence[str], task: str) -> list[str]:
    """Return the languages to evaluate, in the order of their names."""
    if missing := sorted(set(wanted) - set(present)):
        do = f"choose among: {', '.join(present)}"
        raise ConfigError("language is not there", where=f"{task}: languages", saw=", ".join(missing), do=do)
    return sorted(set(wanted) or present)
