"""`tdro evaluate MODEL [...] --tasks PATH [...] --out FOLDER`: models outside a study on evaluation tasks."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from tdro.cli.overrides import parse
from tdro.config import TaskConfig, fingerprint
from tdro.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from tdro.devices import Ranks
    from tdro.evaluation.benchmarks import Task
    from tdro.retrieval.rankers import Ranker

HELP = """\
usage: tdro evaluate MODEL [MODEL ...] --tasks PATH [PATH ...] --out FOLDER [options]
       tdro evaluate STUDY.yaml [--section.option VALUE ...]

examples:
  tdro evaluate sentence-transformers/all-MiniLM-L6-v2 bm25 --tasks beir/scifact beir/nfcorpus --out results
  torchrun --nproc-per-node 8 -m tdro evaluate ours=runs/a/robust/model --tasks beir miracl --out results

Rank the documents of each task for its queries, exactly unless --search says otherwise, and score the rankings.

  MODEL     a folder, a hub name or bm25 (extra `mine`); NAME= in front says what to call it
  --tasks   folders in the layout of BEIR, CQADupStack, MIRACL or MKQA (docs/evaluation.md), or folders of such folders
  --search  exact (default), or flat or ivf-pq with faiss (extra `faiss`), whose recall is printed beside the scores

FOLDER gets MODEL/TASK/ with scores per query, the run in TREC's form, the best documents and a JSON file for mteb;
`tdro compare FOLDER/A FOLDER/B` compares them. What is finished is skipped, so that an interrupted evaluation goes on.
A study's own models are evaluated by `tdro evaluate STUDY.yaml`.

`tdro evaluate MODEL --help` lists every option.
"""
BM25 = "bm25"
_FORM = 2  # part of every fingerprint: raise it when the files of the same evaluation would differ


@dataclass
class Arguments:
    """Evaluate models on tasks."""

    models: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders, hub names, or bm25; NAME= in front says what to call one."""
    tasks: tuple[str, ...] = ()
    """Folders of tasks."""
    out: str = ""
    """Folder for the results."""
    kind: Literal["auto", "beir", "miracl", "mkqa", "rows"] = "auto"
    """Layout of the tasks; auto: as their files tell."""
    split: str = ""
    """Which qrels; empty: test, but dev for MS MARCO and MIRACL."""
    languages: tuple[str, ...] = ()
    """MIRACL and MKQA: these languages only."""
    corpus: str = ""
    """MIRACL and MKQA: folder or file of the documents, where it is not in the task's folder."""
    ignore_identical_ids: bool | None = None
    """Drop a result whose id is the query's id; where not given, as the benchmark does (BEIR: ArguAna, Quora)."""
    instruction: str = ""
    """Task description put in front of the queries; empty: the prompts that a model was saved with."""
    instruction_template: str = "Instruct: {instruction}\nQuery: {query}"
    """How instruction and query are joined."""
    query_max_length: int | None = None
    """Tokens of a query, the rest is cut; where not given, 512 or what the model takes."""
    passage_max_length: int | None = None
    """Tokens of a document; the same."""
    precision: Literal["float32", "float16"] = "float32"
    """How embeddings are stored in the cache."""
    search: Literal["exact", "flat", "ivf-pq"] = "exact"
    """How encoders search; flat and ivf-pq with faiss, in one process, and their recall is measured. Not for bm25."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What an evaluation has found.

    Attributes:
        folders: Model -> folder of its results.
        summaries: Task -> model -> summary of the task.
        seconds: Task -> model -> seconds that it took just now; 0 where it was finished before.
    """

    folders: dict[str, Path]
    summaries: dict[str, dict[str, Mapping[str, Any]]] = field(default_factory=dict)
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)


def command(arguments: list[str]) -> int:
    """Evaluate models and print their scores."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if arguments[0].startswith("-"):
        raise ConfigError("the models come first", saw=arguments[0], do="tdro evaluate MODEL [...] --tasks PATH [...]")
    parsed = parse(Arguments, "tdro evaluate", arguments)
    from tdro.cli.display import wide_console
    from tdro.devices import join_ranks

    ranks = join_ranks()
    console = wide_console()
    console.quiet = ranks.number > 0
    evaluated = evaluate_models(parsed, console, ranks)
    if ranks.number == 0:
        _print(evaluated, parsed.out, console)
    return 0


def evaluate_models(parsed: Arguments, console: "Console", ranks: "Ranks") -> Evaluated:
    """Evaluate models on tasks; what is finished is skipped.

    Args:
        parsed: Models, tasks and settings.
        console: Hears how far it is.
        ranks: The processes that share the work; the first one scores and writes.

    Raises:
        ConfigError: Options contradict each other, or a model is not found.
        DataError: A task cannot be read.
    """
    from tdro.evaluation.writing import join_parts

    _check(parsed, ranks)
    models, tasks = _models(parsed, ranks), _tasks(parsed)
    with _bars(console) as bars:
        folders = {model.name: Path(parsed.out, model.name) for model in models}
        evaluated = Evaluated(folders, {t.name: {} for t in tasks}, {t.name: {} for t in tasks})
        for model in models:
            for task in tasks:
                began, folder = time.monotonic(), folders[model.name] / task.name
                worked = _evaluate(model, task, Path(parsed.out), bars, ranks)
                if ranks.number == 0:
                    evaluated.summaries[task.name][model.name] = join_parts(task, folder)
                    evaluated.seconds[task.name][model.name] = time.monotonic() - began if worked else 0.0
    return evaluated


class _Encoder:
    """An encoder, loaded when it is first asked to rank."""

    def __init__(self, name: str, source: str, parsed: Arguments, ranks: "Ranks") -> None:
        from tdro.devices import pick_device

        self.name, self._source, self._parsed, self._ranks = name, source, parsed, ranks
        self._device = pick_device()
        self._tell: Callable[[int, int], None] = lambda done, of: None

    @cached_property
    def identity(self) -> str:
        """Identifies everything that decides its rankings."""
        from tdro.retrieval.encoders import encoder_fingerprint

        parsed, device = self._parsed, self._device
        lengths = parsed.query_max_length, parsed.passage_max_length
        asked = [parsed.instruction, parsed.instruction_template] if parsed.instruction else []
        settings = [*lengths, parsed.precision, str(device.dtype), device.autocast, parsed.search]
        return fingerprint(encoder_fingerprint(self._source), asked, settings)

    def ranker(self, progress: Callable[[int, int], None]) -> "Ranker":
        """Return it as a ranker that reports to `progress`."""
        self._tell = progress
        return self._ranker

    @cached_property
    def _ranker(self) -> "Ranker":
        """The encoder, loaded."""
        from tdro.retrieval.encoders import open_encoder
        from tdro.retrieval.rankers import DenseRanker, FaissRanker

        parsed = self._parsed
        query, document = open_encoder(
            self._source,
            device=self._device,
            precision=parsed.precision,
            query_instruction=parsed.instruction,
            instruction_template=parsed.instruction_template,
            query_max_length=parsed.query_max_length,
            passage_max_length=parsed.passage_max_length,
            ranks=self._ranks,
            progress=lambda done, of: self._tell(done, of),
        )
        exact = DenseRanker(query, document, self.name, self._device.name, self._ranks)
        return exact if parsed.search == "exact" else FaissRanker(exact, parsed.search)


class _Bm25:
    """BM25, for which the first rank works alone."""

    def __init__(self, name: str) -> None:
        from tdro.retrieval.rankers import Bm25Ranker

        self.name = name
        self._ranker = Bm25Ranker(lambda done, of: self._tell(done, of))
        self._tell: Callable[[int, int], None] = lambda done, of: None

    @cached_property
    def identity(self) -> str:
        """Identifies it by its settings."""
        return fingerprint(dict(self._ranker.about))

    def ranker(self, progress: Callable[[int, int], None]) -> "Ranker":
        """Return it as a ranker that reports to `progress`."""
        self._tell = progress
        return self._ranker


def _check(parsed: Arguments, ranks: "Ranks") -> None:
    """Refuse options that contradict each other, before anything is read."""
    if not parsed.tasks:
        raise ConfigError("no tasks to evaluate on", where="--tasks", do="add --tasks FOLDER [FOLDER ...]")
    if not parsed.out:
        raise ConfigError("nowhere to write to", where="--out", do="add --out FOLDER")
    for part in ("{instruction}", "{query}"):
        if part not in parsed.instruction_template:
            raise ConfigError(f"the template lacks {part}", where="--instruction-template", do=f"put {part} into it")
    if parsed.search != "exact":
        from tdro.retrieval.approximate import require_faiss

        if ranks.count > 1:
            do = "start it without torchrun, or search exactly"
            raise ConfigError(
                "faiss searches in one process only", where="--search", saw=f"{ranks.count} processes", do=do
            )
        require_faiss()


def _tasks(parsed: Arguments) -> "list[Task]":
    """Find all tasks and read their judgements."""
    from tdro.evaluation.tasks import find_tasks, refuse_mixed_variants

    options = TaskConfig(
        path="",
        kind=parsed.kind,
        split=parsed.split,
        languages=parsed.languages,
        corpus=parsed.corpus,
        ignore_identical_ids=parsed.ignore_identical_ids,
    )
    tasks = [task for path in parsed.tasks for task in find_tasks(Path(path), options)]
    _refuse_twins([task.name for task in tasks], "--tasks")
    refuse_mixed_variants(tasks)
    for task in tasks:
        for part in task.parts:
            part.check()
    return tasks


def _models(parsed: Arguments, ranks: "Ranks") -> list[_Encoder | _Bm25]:
    """Find all models, without loading them."""
    from tdro.evaluation.results import model_folder
    from tdro.models.bases import find_encoder

    models: list[_Encoder | _Bm25] = []
    for given in parsed.models:
        label, equals, source = given.partition("=")
        name, source = model_folder(label), source if equals else given
        if source == BM25:
            models.append(_Bm25(name))
        else:
            find_encoder(source)
            models.append(_Encoder(name, source, parsed, ranks))
    _refuse_twins([model.name for model in models], "MODEL")
    return models


def _refuse_twins(names: Sequence[str], where: str) -> None:
    """Refuse names whose results would go to one folder."""
    twins = [name for name in names if names.count(name) > 1]
    if twins:
        do = "write NAME=MODEL" if where == "MODEL" else "evaluate them one after the other, in folders of their own"
        raise ConfigError("two would have one name", where=where, saw=twins[0], do=do)


def _evaluate(model: _Encoder | _Bm25, task: "Task", out: Path, bars: "Progress", ranks: "Ranks") -> bool:
    """Evaluate a model on the parts of a task that are not finished; return whether there were any."""
    from tdro.evaluation.results import finished
    from tdro.evaluation.writing import evaluate_part
    from tdro.files import cache_folder

    worked, cache, leads = False, cache_folder(), ranks.number == 0
    for part in task.parts:
        folder = out / model.name / part.label
        inputs = fingerprint(_FORM, model.identity, part.content(cache))
        if ranks.agree(finished(folder, inputs) is not None) or (not leads and isinstance(model, _Bm25)):
            continue
        worked, bar = True, bars.add_task(f"{model.name} {part.label}", total=None)
        progress = partial(_move, bars, bar)
        ranker = model.ranker(progress)
        evaluate_part(
            part, ranker, folder, model=model.name, inputs=inputs, cache=cache, leads=leads, progress=progress
        )
        bars.remove_task(bar)
    ranks.barrier()
    return worked


def _move(bars: "Progress", bar: "TaskID", done: int, of: int) -> None:
    """Move a bar."""
    bars.update(bar, completed=done, total=of)


def _bars(console: "Console") -> "Progress":
    """Make bars that vanish at the end; nothing is drawn where there is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _print(evaluated: Evaluated, out: str, console: "Console") -> None:
    """Print scores, what did not fit together, times, and where everything is."""
    from tdro.cli.display import clock, print_oddities, print_scores

    scores = {
        task: {model: dict(summary["measures"]) for model, summary in by_model.items()}
        for task, by_model in evaluated.summaries.items()
    }
    print_scores(_with_recall(evaluated, scores), console)
    print_oddities(Path(out), scores, console)
    for model in evaluated.folders:
        seconds = {task: by_model[model] for task, by_model in evaluated.seconds.items() if by_model[model]}
        skipped = len(evaluated.seconds) - len(seconds)
        spent = [f"{task} {clock(took)}" for task, took in seconds.items()]
        spent += [f"{skipped} finished before"] if skipped else []
        console.print(f"{model}: {', '.join(spent)} -> {evaluated.folders[model]}", markup=False)


def _with_recall(
    evaluated: Evaluated, scores: dict[str, dict[str, dict[str, float]]]
) -> dict[str, dict[str, dict[str, float]]]:
    """Put beside every model that was searched approximately a column with its recall of the exact results."""
    shown: dict[str, dict[str, dict[str, float]]] = {task: {} for task in scores}
    for model in evaluated.folders:
        search = {task: by_model[model]["search"] for task, by_model in evaluated.summaries.items()}
        kind = next((found["kind"] for found in search.values() if "recall" in found), "")
        for task, by_model in scores.items():
            shown[task][model] = by_model[model]
            if kind:
                shown[task][f"recall of {model} ({kind})"] = dict.fromkeys(
                    by_model[model], search[task].get("recall", 1.0)
                )
    return shown
