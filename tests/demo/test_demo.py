"""The demo's data is real, clean, the same in every build, and its evaluation has not been trained on."""

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

import tdro.demo.build as build
from tdro.data.reading import read_dataset
from tdro.demo import DemoSummary, build_demo
from tdro.demo.docstrings import examples, parameters, prose, related, summary
from tdro.demo.encoder import build_encoder
from tdro.demo.manuals import readme_sections, topic_sections
from tdro.demo.pairs import EVALUATION, TRAINING, Kind, Pair, error_code, function_code
from tdro.demo.selection import Candidate, SeenInTraining, choose, clean, key
from tdro.demo.sources import Package, SourceFile, find_packages, is_held_out, reference_topics
from tdro.demo.syntax import Module, read_module
from tdro.errors import ConfigError, EnvironmentProblem

FEW = {"accelerate", "networkx", "scikit-learn", "numpy", "packaging", "stdlib/email", "stdlib/asyncio"}
SOURCE = '''"""Count bees."""
raise SystemExit("a scanned module must not run")

class BeeCounter(Base):
    """Counts bees as they pass."""

    @cached
    def count(self, hive: str, limit=3) -> int:
        """Count the bees of a hive.

        Args:
            hive: The hive to watch.
        """
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}", hive)
        # Wait until the queen
        # has left the hive.
        while self.queen:
            sleep(1)

        text = """
        # this is no comment
        """
        return len(hive)
'''


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Module:
    """The source above, read."""
    path = tmp_path_factory.mktemp("source") / "bees.py"
    path.write_text(SOURCE, encoding="utf-8")
    read = read_module(SourceFile(path, "hives.bees"))
    assert read is not None
    return read


@pytest.fixture(scope="module", autouse=True)
def few_packages():
    """Let every build in this file read a handful of packages that tdro depends on."""
    patch = pytest.MonkeyPatch()
    patch.setattr(build, "find_packages", lambda **kw: [p for p in find_packages(**kw) if p.name in FEW])
    patch.setattr(build, "MIN_ROWS", 3)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DemoSummary]:
    """A small demo and its summary."""
    folder = tmp_path_factory.mktemp("demos") / "demo"
    return folder, build_demo(folder, max_files=8)


def training_rows(folder: Path) -> dict[str, list[dict]]:
    """All training rows by dataset."""
    files = sorted((folder / "train").glob("*.jsonl.gz"))
    return {
        f.name.removesuffix(".jsonl.gz"): list(map(json.loads, gzip.open(f, "rt", encoding="utf-8"))) for f in files
    }


def evaluation_set(folder: Path) -> tuple[dict[str, str], dict[str, str], list[list[str]]]:
    """Corpus, queries and judgements of one evaluation set."""
    corpus = {d["_id"]: d["text"] for d in map(json.loads, (folder / "corpus.jsonl").open(encoding="utf-8"))}
    queries = {q["_id"]: q["text"] for q in map(json.loads, (folder / "queries.jsonl").open(encoding="utf-8"))}
    lines = (folder / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "query-id\tcorpus-id\tscore"
    return corpus, queries, [line.split("\t") for line in lines[1:]]


def digests(folder: Path) -> dict[str, str]:
    """Hash of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_every_training_dataset_is_read_back_with_the_rows_that_the_summary_says(demo, tmp_path):
    folder, found = demo
    assert set(found.train) == {kind.name for kind in TRAINING} and len(found.train) >= 8
    for name, count in found.train.items():
        rows = read_dataset(name, folder / "train" / f"{name}.jsonl.gz", cache=tmp_path)
        assert len(rows) == count >= 3
        assert rows.info.layout == "tevatron"
        assert all(len(row.positives) == 1 and not row.negatives for row in rows)


def test_no_query_and_no_passage_comes_twice_in_a_dataset_and_lengths_are_bounded(demo):
    for name, rows in training_rows(demo[0]).items():
        queries = [row["query"] for row in rows]
        texts = [row["positive_passages"][0]["text"] for row in rows]
        assert len(set(map(key, queries))) == len(set(map(key, texts))) == len(rows), name
        assert all(0 < len(query) <= 300 and query == " ".join(query.split()) for query in queries)
        assert all(40 <= len(text) <= 1000 and text == text.strip() for text in texts)


def test_evaluation_has_one_judged_document_per_query_in_the_beir_layout(demo):
    folder, found = demo
    assert set(found.evaluation) == {kind.name for kind in EVALUATION}
    for name, size in found.evaluation.items():
        corpus, queries, judged = evaluation_set(folder / "eval" / name)
        assert (len(queries), len(corpus)) == (size.queries, size.documents) and size.documents > size.queries
        assert sorted(query for query, _, _ in judged) == sorted(queries)
        assert all(document in corpus and score == "1" for _, document, score in judged)


def test_no_package_and_no_text_of_the_evaluation_occurs_in_training(demo):
    folder, _ = demo
    rows = [row for dataset in training_rows(folder).values() for row in dataset]
    trained = {key(row["query"]) for row in rows} | {key(row["positive_passages"][0]["text"]) for row in rows}
    packages = {row["query_id"].rpartition(":")[0] for row in rows}
    assert {"networkx", "stdlib/email"} <= packages and "numpy" not in packages
    for name in (kind.name for kind in EVALUATION):
        corpus, queries, _ = evaluation_set(folder / "eval" / name)
        assert trained.isdisjoint(map(key, [*corpus.values(), *queries.values()]))
        assert packages.isdisjoint(document.rpartition(":")[0] for document in corpus)


def test_a_demo_that_is_up_to_date_is_left_alone_and_another_seed_replaces_all_of_it(demo, tmp_path):
    folder = shutil.copytree(demo[0], tmp_path / "demo")
    before, said = digests(folder), list[str]()
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert build_demo(folder, max_files=8, progress=said.append) == demo[1]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times and "up to date" in said[0]
    assert build_demo(folder, max_files=8, seed=1).fingerprint != demo[1].fingerprint
    after = digests(folder)
    assert after.keys() == before.keys()
    assert {path for path in before if after[path] == before[path]} <= {
        path for path in before if "config" in path or "modules" in path
    }
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_a_demo_with_a_part_missing_is_built_again_to_the_same_bytes(demo, tmp_path):
    folder = shutil.copytree(demo[0], tmp_path / "demo")
    shutil.rmtree(folder / "encoder")
    assert build_demo(folder, max_files=8) == demo[1]
    assert digests(folder) == digests(demo[0])


def test_a_folder_with_other_things_is_refused_and_kept(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"thesis\.tex"):
        build_demo(tmp_path)
    with pytest.raises(ConfigError, match="something else"):
        build_demo(tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_too_little_source_code_is_an_environment_problem_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "find_packages", lambda **kw: [])
    with pytest.raises(EnvironmentProblem, match="too little source code"):
        build_demo(tmp_path / "demo")
    assert list(tmp_path.iterdir()) == []


def test_the_untrained_encoder_loads_and_finds_more_than_chance(demo):
    folder, _ = demo
    model = SentenceTransformer(str(folder / "encoder"), device="cpu")
    corpus, queries, judged = evaluation_set(folder / "eval" / "code_search")
    scores = model.encode(list(queries.values())) @ model.encode(list(corpus.values())).T
    found = np.array(list(corpus))[scores.argsort(axis=1)[:, -10:]]
    relevant = {query: document for query, document, _ in judged}
    hits = np.mean([relevant[query] in top for query, top in zip(queries, found, strict=True)])
    assert model.get_embedding_dimension() == 256
    assert hits > 10 * 10 / len(corpus)


def test_camel_case_and_underscores_are_the_same_words_and_rare_words_have_longer_vectors(tmp_path):
    texts = ["get the max retries", "get the pool", "get the bees"] * 3 + ["get the max", "get the hive", "get hive"]
    build_encoder(tmp_path, texts, seed=0)
    model = SentenceTransformer(str(tmp_path), device="cpu")
    tokens = [model[0].tokenizer.encode(text).tokens for text in ("maxRetries", "max retries", "MAXRetries")]
    assert tokens[0] == tokens[1] == tokens[2]
    row = model[0].tokenizer.get_vocab()
    length = np.linalg.norm(model[0].embedding.weight.detach().numpy(), axis=1)
    in_12_texts, in_3_texts, in_no_text = (length[row[token]] for token in ("▁get", "▁pool", "[PAD]"))
    assert in_3_texts / in_12_texts == pytest.approx(np.log(1 + 12 / 4) / np.log(1 + 12 / 13), rel=0.2)
    assert in_no_text / in_12_texts == pytest.approx(np.log(1 + 12 / 1) / np.log(1 + 12 / 13), rel=0.2)


def test_whole_packages_are_held_out_by_their_name_alone():
    packages = find_packages(max_files=2, seed=0)
    assert {p.name for p in packages if p.held_out} >= {"numpy", "packaging", "stdlib/asyncio"}
    assert is_held_out("_pyio") == is_held_out("pyio")
    assert "tdro" not in {p.name for p in packages}
    assert not [
        file for p in packages for file in p.files if {"tests", "_vendor", "_distutils"} & set(file.module.split("."))
    ]


def test_reading_a_module_does_not_run_it_and_finds_what_it_says(module):
    (function,) = module.functions
    assert function.signature == "BeeCounter.count(hive: str, limit=3) -> int"
    assert function.code.splitlines()[:2] == ["def count(self, hive: str, limit=3) -> int:", "    if limit < 1:"]
    assert "Count the bees" not in function.code
    assert [(c.text, c.code) for c in function.comments] == [
        ("Wait until the queen has left the hive.", "while self.queen:\n    sleep(1)")
    ]
    assert (module.classes[0].name, module.classes[0].doc) == ("BeeCounter", "Counts bees as they pass.")


def test_the_message_is_blotted_out_of_the_code_that_raises_it(module):
    (error,) = module.functions[0].errors
    assert (error.exception, error.message) == ("ValueError", "limit must be at least 1, not ...")
    assert "raise ValueError(...)" in error.code and "at least 1" not in error.code


def test_a_file_that_is_not_python_is_skipped(tmp_path):
    (tmp_path / "template.py").write_text("class {{ name }}: pass")
    (tmp_path / "latin.py").write_bytes(b"name = '\xe9'\n")
    assert [read_module(SourceFile(path, "x")) for path in sorted(tmp_path.iterdir())] == [None, None]


@pytest.mark.parametrize(
    "doc",
    [
        "Sort.\n\nParameters\n----------\nkey : callable, optional\n    What to\n    compare.\nother : int\n",
        "Sort.\n\nArgs:\n    key (`callable`, *optional*): What to\n        compare.\n",
        "Sort.\n\nArgs:\n    key (callable):\n        What to compare.\n\nReturns:\n    list: sorted\n",
        "Sort.\n\n:param callable key: What to\n    compare.\n:returns: a list",
    ],
    ids=["numpy", "google", "hugging face", "sphinx"],
)
def test_parameters_are_found_in_every_docstring_style(doc):
    assert list(parameters(doc)) == [("key", "What to compare.")]
    assert prose(doc) == summary(doc) == "Sort."


def test_related_names_are_found_with_their_descriptions():
    doc = "Sum.\n\nSee Also\n--------\nnp.mean, median : Averages\n    of numbers.\n:func:`~np.prod`\n"
    assert list(related(doc)) == [("mean", "Averages of numbers."), ("median", "Averages of numbers."), ("prod", "")]


def test_examples_are_found_with_the_paragraph_above():
    doc = "Examples\n--------\nA list has\na sum:\n\n>>> sum([1])\n1\n\n>>> sum([])\n0\n"
    assert list(examples(doc)) == [("A list has a sum", ">>> sum([1])\n1"), ("", ">>> sum([])\n0")]


def test_readme_sections_end_at_the_list_of_changes_and_lose_badges():
    text = "# Bees\n[![b](u)](v)\nThey <b>dance</b>.\n\nInstall\n-------\n```\n# pip\n```\nSee [here](u).\n"
    text += "\n## v1.2.0\nMore bees.\n"
    found = [(section.heading, section.text) for section in readme_sections(text)]
    assert found == [("", ""), ("Bees", "They dance."), ("Install", "# pip\nSee here.")]


def test_reference_topics_have_sections_and_definitions():
    found = {s.heading: s.text for text in reference_topics().values() for s in topic_sections(text)}
    assert found["object.__len__(self)"].startswith("Called to implement")
    assert "context manager" in found['The "with" statement']


def test_a_dataset_never_takes_more_than_a_fifth_from_one_package_and_ignores_the_order_of_candidates():
    candidates = [Candidate("a" if n % 2 else "b", Pair(f"query {n}", "", f"text {n}")) for n in range(100)]
    chosen = choose(candidates, 10, seed=0)
    assert sorted(c.package for c in chosen) == ["a", "a", "b", "b"]
    assert choose(candidates[::-1], 10, seed=0) == chosen != choose(candidates, 10, seed=1)


def test_useless_texts_are_dropped_and_a_useless_query_is_emptied():
    kind = Kind("t", function_code, most=1, words=3)
    text = "def count(hive):\n\treturn len(hive.bees)  \n\n"
    assert clean(Pair("count the\n bees", "", text), kind) == Pair(
        "count the bees", "", "def count(hive):\n    return len(hive.bees)"
    )
    assert clean(Pair("count", "", text), kind).query == ""
    assert clean(Pair("count the bees", "", "0 1 2 3 4 5 6 7 8 9 " * 5), kind) is None


def test_copies_and_near_copies_of_training_texts_are_recognised():
    seen = SeenInTraining()
    words = [f"word{n}" for n in range(40)]
    seen.add(" ".join(words))
    assert " ".join(words).upper() + "!" in seen
    assert " ".join([*words[3:], "and", "more"]) in seen
    assert " ".join(words[:16] + [f"other{n}" for n in range(30)]) not in seen


def test_functions_serve_code_or_errors_but_never_both(module):
    package = Package("p", "1", False, "", "", ())
    assert not (list(function_code(package, [module])) and list(error_code(package, [module])))


@pytest.mark.slow
def test_the_full_demo_has_the_promised_sizes_and_is_the_same_in_every_process(tmp_path):
    code = "import sys; from pathlib import Path; from tdro.demo import build_demo; build_demo(Path(sys.argv[1]))"
    source = str(Path(build.__file__).parents[2])
    for hash_seed in "1", "2":
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": source}
        subprocess.run([sys.executable, "-c", code, str(tmp_path / hash_seed)], env=environment, check=True)
    assert digests(tmp_path / "1") == digests(tmp_path / "2")
    found = json.loads((tmp_path / "1" / "demo.json").read_text())
    assert max(found["train"].values()) == 3000 and min(found["train"].values()) >= 100
    assert all(s["queries"] >= 200 and 800 <= s["documents"] <= 3000 for s in found["evaluation"].values())
