"""What a person sees before and after a study: what it is, its plan, the scores and a verdict."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from tdro.config import Study, TrainingConfig

if TYPE_CHECKING:
    from tdro.training.run import Run


LONG_WARM_UP = "the warm-up is as long as the training; the peak learning rate is never reached"
"""Said of a stage whose steps were shortened and whose warm-up was not."""


def print_plan(study: Study, planned: dict[str, dict[str, float]]) -> None:
    """Print what a study would sample."""
    console = wide_console()
    alone = len(study.data.datasets) == 1  # nothing to weigh
    stages: dict[str, TrainingConfig] = {"robust" if alone else "reference and robust": study.reference}
    if not alone:
        stages["weights"] = study.weights
    for title, config in stages.items():
        console.print(
            f"{title}: {config.steps} steps of {config.batch_size} queries x {config.passages_per_query} passages, "
            f"temperature {config.temperature}, learning rate {config.learning_rate}, {config.schedule}, "
            f"warm-up {config.warmup_steps}"
        )
        if config.warmup_steps >= config.steps:
            console.print(f"  WARNING: {LONG_WARM_UP}")
    console.print(
        "one dataset has nothing to weigh: robust is the model trained on it" if alone else f"robust: {_mixture(study)}"
    )
    columns = ["rows"] if alone else ["rows", "epochs reference", "epochs weights"]
    table = Table("dataset", *columns, box=None, header_style="bold")
    fixed = study.robust.weights != "learned"
    if fixed:
        table.add_column("probability robust")
        table.add_column("epochs robust")
    for name, row in planned.items():
        cells = [f"{row['size']:,.0f}"]
        cells += [] if alone else [f"{row['reference_epochs']:.2f}", f"{row['weights_epochs']:.2f}"]
        if fixed:
            cells += [f"{row['robust_probability']:.4f}", f"{row['robust_epochs']:.2f}"]
        table.add_row(name, *cells)
    console.print(table)
    console.print("not checked here: base encoder, evaluation sets, rows of datasets that name their size")


def print_weights(weights: dict[str, float], how: str) -> None:
    """Print weights that were learned without training anything."""
    table = Table("dataset", "weight", box=None, header_style="bold")
    for name, weight in weights.items():
        table.add_row(name, f"{weight:.4f}")
    console = wide_console()
    console.print(how)
    console.print(table)


def print_outcome(run: "Run", scores: dict[str, dict[str, dict[str, float]]] | None, last: str) -> None:
    """Print the weights, the scores and a verdict, as far as a run went."""
    from tdro.devices import peak_memory_gb

    console = wide_console()
    if last == "weights" or (last in ("robust", "evaluate") and _has_plan(run)):
        _print_plan_and_weights(run, console, last)
    if scores and all(scores.values()):
        print_scores(scores, console)
        print_oddities(run.folder / "evaluation", scores, console)
        if said := verdict(run.folder):
            console.print(said, markup=False)
    peaks = ", ".join(f"{name} {value:.2f} GB" for name, value in peak_memory_gb().items())
    console.print(f"everything is in {run.folder}; peak memory: {peaks}")


def _mixture(study: Study) -> str:
    """Say what the robust model is sampled with."""
    robust = study.robust
    if robust.weights in ("uniform", "size") or robust.weights.startswith("temperature-"):
        return f"{robust.weights} mixture"
    said = {"top-share": f"top {robust.share:.0%} by", "bottom-share": f"bottom {robust.share:.0%} by"}
    said |= {"reweight": "sampled by", "reweight-loss": "loss weighed by"}
    return f"{said[robust.plan]} {robust.weights} weights"


def _has_plan(run: "Run") -> bool:
    """Whether the robust model's weights are known."""
    return run.study.robust.weights != "learned" or (run.folder / "weights" / "weights.json").exists()


def _print_plan_and_weights(run: "Run", console: Console, last: str) -> None:
    """Print weights, what the plan makes of them and, where they were learned, how sure they are."""
    from tdro.data.weights_file import read_diagnostics, read_sizes, read_weights
    from tdro.training.diagnose import sentences
    from tdro.training.planning import plan_of, plan_weights

    path = run.folder / "weights" / "weights.json"
    learned = last == "weights" or run.study.robust.weights == "learned"
    sizes = read_sizes(path) if learned else {name: len(rows) for name, rows in run.source_rows.items()}
    planned = plan_weights(run.study, sizes)
    weights, plan = read_weights(path) if learned else planned, plan_of(run.study, planned, sizes).probabilities
    diagnostics = read_diagnostics(path) if learned else {}
    table = Table("dataset", "weight", box=None, header_style="bold")
    selects = diagnostics.get("selects", True)
    columns = ["95 % interval", *(["at the cut"] if selects else [])] if diagnostics else []
    for column in [*columns, "robust samples it with"]:
        table.add_column(column)
    for name in sorted(weights, key=lambda n: -weights[n]):
        row = [f"{weights[name]:.4f}"]
        if diagnostics:
            low, high = diagnostics["datasets"][name]["interval"]
            row += [f"{low:.4f} to {high:.4f}", *([diagnostics["datasets"][name]["verdict"]] if selects else [])]
        table.add_row(name, *row, f"{plan[name]:.4f}" if name in plan else "left out")
    console.print(table)
    if diagnostics:
        console.print("\n".join(sentences(diagnostics)))


def verdict(folder: Path) -> str:
    """Say in plain words what the evaluation of a run amounts to: what its report says, with the numbers.

    Args:
        folder: Run folder, with evaluation/.

    Returns:
        Some sentences; empty where there are no two models to compare.
    """
    from tdro.report.reading import RunFiles
    from tdro.report.scores import compare_models, describe
    from tdro.report.verdict import headline

    comparison = compare_models(RunFiles(folder))
    if not comparison.contrasts:
        return f"{headline(comparison)}: {comparison.problem}." if comparison.problem else ""
    return " ".join([
        f"Verdict: {headline(comparison)}.", *map(describe, comparison.contrasts), "One training seed of each model."
    ])  # fmt: skip


def print_scores(scores: dict[str, dict[str, dict[str, float]]], console: Console) -> None:
    """Print the main measure of every task and model in points (0 to 100), and its mean over the tasks that have it.

    Args:
        scores: Task -> model -> measure -> mean. Every task has every model.
        console: Where to.
    """
    models = list(next(iter(scores.values())))
    mains = {task: main_measure(by_model[models[0]]) for task, by_model in scores.items()}
    several = len(set(mains.values())) > 1
    table = Table("points" if several else measure_name(mains[next(iter(mains))]), box=None, header_style="bold")
    for model in models:
        table.add_column(model, justify="right")
    for task, by_model in scores.items():
        label = f"{task} ({measure_name(mains[task])})" if several else task
        table.add_row(label, *(f"{100 * by_model[model][mains[task]]:.2f}" for model in models))
    for main in dict.fromkeys(mains.values()):
        tasks = [task for task in scores if mains[task] == main]
        means = [sum(scores[task][model][main] for task in tasks) / len(tasks) for model in models]
        label = f"mean {measure_name(main)}" if several else "mean"
        table.add_row(label, *(f"{100 * mean:.2f}" for mean in means), style="bold")
    console.print(table)


def print_oddities(folder: Path, scores: dict[str, dict[str, dict[str, float]]], console: Console) -> None:
    """Print what did not fit together, a line for each task, or for each model where they differ.

    Args:
        folder: Has MODEL/TASK/summary.json.
        scores: Task -> model.
        console: Where to.
    """
    from tdro.evaluation.results import describe_oddities, read_summary

    for task, by_model in scores.items():
        said = {model: describe_oddities(read_summary(folder / model / task)["oddities"]) for model in by_model}
        if len(set(said.values())) == 1:
            said = {"": next(iter(said.values()))}
        for model, line in said.items():
            if line:
                console.print(f"{task}{f', {model}' if model else ''}: {line}", markup=False)


def main_measure(measures: dict[str, float]) -> str:
    """Return the measure that stands for a task."""
    return "ndcg@10" if "ndcg@10" in measures else "acc@10"


def measure_name(measure: str) -> str:
    """Write the name of a measure as people do."""
    return measure.replace("ndcg", "nDCG").replace("acc", "Acc")


def wide_console() -> Console:
    """Make a console for tables; wide enough for them where there is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=120)


def clock(seconds: float) -> str:
    """Write seconds as m:ss, or h:mm:ss.

    Example:
        >>> clock(75.9), clock(3675)
        ('1:15', '1:01:15')
    """
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
