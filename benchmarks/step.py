"""Speed and memory of our training steps against sentence-transformers and against the released design, on real texts.

    .venv/bin/python benchmarks/step.py                    # writes benchmarks/results/step.json
    .venv/bin/python benchmarks/step.py --quick            # a minute, tiny sizes: shows that it works, not how fast

All sides run in this process, in turn, on the same texts and the same model in float32 with dropout: forward and
backward passes, no optimizer. Ours is timed with choosing its texts and looking up their tokens; the others get tokens.

Stage 0/2: `ContrastiveStep.backward` against the cached loss of sentence-transformers, whose `mini_batch_size` or
`mini_batch_num_tokens` is the fastest of a sweep that needs no more memory than ours (5 % tolerance). Ours leaves false
negatives out of the loss, the other does not; that the gradients are equal is checked without exclusion and dropout.
Stage 1: `RobustStep.backward` with a live reference, and with similarities kept from before, against `PaddedStep`.

Figures (ratios of time are other / ours, of memory ours / other):
    stage02_vs_sentence_transformers   per dataset the median of ratios; their mean, weighted by our time
    stage02_peak_memory_ratio          peak anonymous memory of a fresh process, on the longest of the datasets
    stage1_vs_padded, stage1_cached_vs_padded    median of ratios
    padding_ratio                      tokens computed / real tokens, all forward passes of our timed steps
    step_overhead                      share of the time of our timed steps outside modules of the model and autograd
                                       (of both, the larger of the two stages')
    memory_growth_mb                   stage 0/2, small model: growth of our peak between two batch sizes
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import report  # notes the load before the run
import torch
from memory import PeakMemory
from meters import StepMeter, Timings, interleaved
from sentence_transformers import SentenceTransformer
from step_sides import (
    AsInTraining,
    PaddedStep,
    Settings,
    cached_loss,
    columns_of,
    contrastive_step,
    gradient_of,
    mined_rows,
    open_run,
    plain_loss,
    robust_step,
    step_texts,
    their_backward,
)

from tdro.data.mixture import Draw, HomogeneousMixture, MixedMixture
from tdro.data.reading import Rows
from tdro.training.run import Run
from tdro.training.stages import sizes_of
from tdro.training.texts import StepTexts

QUICK: dict[str, Any] = {
    "models": ("small",), "repeats": 2, "datasets": 2, "max_rows": 40, "query_length": 16, "passage_length": 32,
    "batch": 16, "queries": 8, "passages": 4, "trial_queries": 8, "growth": (8, 32), "small": (32, 2, 2),
    "lengths1": (16, 32), "fresh": False,
}  # fmt: skip
SWEEP = [{"mini_batch_size": n} for n in (4, 8, 16, 32)] + [{"mini_batch_num_tokens": n} for n in (512, 1024, 2048)]
CHUNKS = (1, 2, 4)
TOLERANCE = 1e-4

Found = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """One model and the datasets."""

    name: str
    settings: Settings
    rows: dict[str, Rows]
    run: Run
    model: SentenceTransformer

    def say(self, text: str) -> None:
        """Print a progress line."""
        print(f"[{time.strftime('%H:%M:%S')}] {self.name}: {text}", flush=True)

    def texts(self, draw: Draw) -> StepTexts:
        """Return the tokens of a draw of stage 0/2."""
        return step_texts(self.run, self.model, self.rows, draw, 2)

    def columns(self, draw: Draw) -> list[dict[str, torch.Tensor]]:
        """Return a draw of stage 0/2 as sentence-transformers wants it."""
        return columns_of(self.texts(draw), self.model.tokenizer.pad_token_id)

    def cached_loss(self, setting: dict[str, int]) -> torch.nn.Module:
        """Return the cached loss of sentence-transformers."""
        return cached_loss(self.model, self.settings.temperature, setting)

    def fresh(self, action: Callable[[], object]) -> object:
        """Do something that begins without gradients."""
        self.model.zero_grad(set_to_none=True)
        return action()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and write its result."""
    options = _parser().parse_args(arguments)
    if options.memory_of:
        print(json.dumps(memory_of(json.loads(options.memory_of))))
        return
    given = {key: value for key, value in vars(options).items() if value is not None}
    given = {key: value for key, value in given.items() if key in Settings.__dataclass_fields__}
    settings = Settings(**{**(QUICK if options.quick else {}), **given})
    _prepare(settings)
    began = time.perf_counter()
    rows = mined_rows(settings)
    print(f"texts ready after {time.perf_counter() - began:.0f} s", flush=True)
    name = "step-quick" if options.quick else "step"
    result = Path(options.results) / f"{name}.json"
    if options.stage1_only:
        figures, details = with_new_stage1(json.loads(result.read_text("utf-8")), settings, rows)
    else:
        found = {model: measure(settings, model, rows) for model in settings.models}
        growth, growth_details = memory_growth(settings, found[settings.models[-1]]["stage02"]["setting"])
        figures = {**figures_of(found[settings.models[0]]), "memory_growth_mb": growth}
        details = {"about": __doc__, "models": found, "growth": growth_details, "seconds": time.perf_counter() - began}
    shown = {key: value for key, value in asdict(settings).items() if key not in ("data", "work")}
    path = report.write_result(name, figures, shown, details, result.parent)
    print(json.dumps(figures, indent=1))
    print(f"{path}, {time.perf_counter() - began:.0f} s")


def measure(settings: Settings, name: str, rows: dict[str, Rows]) -> Found:
    """Measure one model."""
    run = open_run(settings, name)
    bench = Bench(name, settings, rows, run, run.load_base().train())
    draws = chosen_draws(bench)
    meter = StepMeter(bench.model)
    stage02 = stage02_speed(bench, draws, meter) | meter.found()
    stage02["memory"] = stage02_memory(bench, stage02["setting"], len(draws) - 1)
    found = {"stage02": stage02, "stage1": measure_stage1(settings, name, rows)}
    bench.say(json.dumps({key: round(value, 3) for key, value in figures_of(found).items()}))
    return found


def measure_stage1(settings: Settings, name: str, rows: dict[str, Rows]) -> Found:
    """Measure stage 1 of one model, with the lengths of the paper."""
    query_length, passage_length = settings.lengths1
    longer = replace(settings, query_length=query_length, passage_length=passage_length)
    run = open_run(longer, name)
    bench = Bench(name, longer, rows, run, run.load_base().train())
    meter = StepMeter(bench.model)
    return stage1_speed(bench, meter) | meter.found()


def figures_of(found: Found) -> dict[str, float]:
    """The figures of one model."""
    stage02, stage1 = found["stage02"], found["stage1"]
    return {
        "stage02_vs_sentence_transformers": stage02["ratio"],
        "stage02_peak_memory_ratio": stage02["memory"]["ratio"],
        "stage1_vs_padded": stage1["ratio_live"],
        "stage1_cached_vs_padded": stage1["ratio_cached"],
        "padding_ratio": max(stage02["padding_ratio"], stage1["padding_ratio"]),
        "step_overhead": max(stage02["step_overhead"], stage1["step_overhead"]),
    }


def with_new_stage1(known: Found, settings: Settings, rows: dict[str, Rows]) -> tuple[dict[str, float], Found]:
    """Measure stage 1 of some models again and put it in the place of what a result says of it."""
    details = known["details"]
    for model in details["models"].values():
        del model["stage1"]
    for name in settings.models:
        details["models"][name]["stage1"] = measure_stage1(settings, name, rows)
    details["stage02_measured"] = {key: known[key] for key in ("date", "commit", "machine")}
    figures = figures_of(details["models"][next(iter(details["models"]))])
    return {**figures, "memory_growth_mb": known["figures"]["memory_growth_mb"]}, details


def chosen_draws(bench: Bench) -> list[Draw]:
    """Draw a step of every dataset as training does, and keep some that span the range of lengths, shortest first."""
    equal = dict.fromkeys(bench.rows, 1 / len(bench.rows))
    mixture = HomogeneousMixture(sizes_of(bench.rows), equal, bench.settings.batch, bench.settings.seed)
    draws = sorted((mixture.draw(step) for step in range(len(bench.rows))), key=lambda d: _tokens(bench.texts(d)))
    wanted = min(bench.settings.datasets, len(draws))
    return [draws[int((number + 0.5) / wanted * len(draws))] for number in range(wanted)]


def stage02_speed(bench: Bench, draws: list[Draw], meter: StepMeter) -> Found:
    """Time a step of each draw on all sides."""
    difference = stage02_difference(bench, draws[0])
    setting, trials = tuned(bench, draws)
    loss, repeats = bench.cached_loss(setting), bench.settings.repeats
    datasets: dict[str, Found] = {}
    for draw in draws:
        name, columns = list(bench.rows)[int(draw.dataset_B[0])], bench.columns(draw)
        step = contrastive_step(bench.run, bench.model, bench.rows, [draw] * repeats)

        def ours(repeat: int, step: AsInTraining = step) -> None:
            with meter.watch():
                step.backward(repeat, repeat)

        def cached(_: int, columns: list[dict[str, torch.Tensor]] = columns) -> None:
            their_backward(loss, columns)

        sides = {"ours": ours, "cached": cached}
        if plain_fits(bench, columns):
            plain = plain_loss(bench.model, bench.settings.temperature)
            sides["plain"] = lambda _, columns=columns, plain=plain: their_backward(plain, columns)
        timings = timed(bench, sides, f"stage 0/2, {name}")
        texts = bench.texts(draw)
        tokens = {"tokens": _tokens(texts), "tokens_of_padded_columns": sum(c["input_ids"].numel() for c in columns)}
        datasets[name] = {**tokens, **asdict(timings)}
        for side in [side for side in sides if side != "ours"]:
            datasets[name] |= {f"ratio_{side}": timings.ratio(side, "ours")}
            datasets[name] |= {f"cpu_ratio_{side}": timings.cpu_ratio(side, "ours")}
    weight = {name: median(found["seconds"]["ours"]) for name, found in datasets.items()}

    def mean(ratio: str) -> float:
        return sum(weight[name] * datasets[name][ratio] for name in datasets) / sum(weight.values())

    return {
        "ratio": mean("ratio_cached"), "cpu_ratio": mean("cpu_ratio_cached"),
        "median_over_datasets": median(found["ratio_cached"] for found in datasets.values()),
        "gradient_difference": difference, "setting": setting, "trials": trials, "datasets": datasets,
    }  # fmt: skip


def stage02_difference(bench: Bench, draw: Draw) -> float:
    """Return how much the gradients of both sides differ, dropout and exclusion off."""
    step = contrastive_step(bench.run, bench.model, bench.rows, [draw], exclusion=False)
    columns, loss = bench.columns(draw), bench.cached_loss({"mini_batch_size": 32})
    ours = gradient_of(bench.model, lambda: step.backward(0, 0))
    return _agreed(bench, "stage 0/2", ours, gradient_of(bench.model, lambda: their_backward(loss, columns)))


def tuned(bench: Bench, draws: list[Draw]) -> tuple[dict[str, int], list[Found]]:
    """Find the fastest setting of the cached loss that needs no more memory than ours; the best three run twice."""
    few = [_first(draw, bench.settings.trial_queries) for draw in draws]
    step, columns = contrastive_step(bench.run, bench.model, bench.rows, few), [bench.columns(draw) for draw in few]

    def attempt(action: Callable[[int], object]) -> Found:
        with PeakMemory() as memory:
            began = time.perf_counter()
            for number in range(len(few)):
                bench.fresh(lambda number=number: action(number))
            return {"seconds": time.perf_counter() - began, "memory": memory}

    def theirs(setting: dict[str, int]) -> Found:
        loss = bench.cached_loss(setting)
        found = attempt(lambda number: their_backward(loss, columns[number]))
        return {"setting": setting, "seconds": found["seconds"], "memory_mb": found["memory"].above_start}

    allowed = attempt(lambda number: step.backward(number, 0))["memory"].above_start * 1.05
    trials = [theirs(setting) for setting in SWEEP]
    fitting = [trial for trial in trials if trial["memory_mb"] <= allowed]
    fitting = fitting or [min(trials, key=lambda trial: trial["memory_mb"])]
    for trial in sorted(fitting, key=lambda trial: trial["seconds"])[:3]:
        trial["seconds"] = min(trial["seconds"], theirs(trial["setting"])["seconds"])
    best: dict[str, int] = min(fitting, key=lambda trial: trial["seconds"])["setting"]
    shown = "; ".join(f"{_short(t['setting'])} {t['seconds']:.2f} s {t['memory_mb']:.0f} MB" for t in trials)
    bench.say(f"at most {allowed:.0f} MB: {_short(best)}, of {shown}")
    return best, trials


def plain_fits(bench: Bench, columns: list[dict[str, torch.Tensor]], probe: int = 8) -> bool:
    """Tell whether the loss without cache would leave half of the free memory free."""
    loss = plain_loss(bench.model, bench.settings.temperature)
    few = [{key: values[:probe] for key, values in column.items()} for column in columns]
    with PeakMemory() as memory:
        bench.fresh(lambda: their_backward(loss, few))
    line = next(s for s in Path("/proc/meminfo").read_text("utf-8").splitlines() if s.startswith("MemAvailable:"))
    return memory.above_start * len(columns[0]["input_ids"]) / probe < int(line.split()[1]) * 1024 / 1e6 / 2


def stage1_speed(bench: Bench, meter: StepMeter) -> Found:
    """Time steps of stage 1 on all sides; each repetition has its own batch."""
    settings, rows, proxy = bench.settings, bench.rows, bench.model
    difference = stage1_difference(bench)
    live = robust_step(open_run(settings, bench.name, live=True), proxy, rows, settings.queries, settings.repeats)
    began = time.perf_counter()
    cached = robust_step(bench.run, proxy, rows, settings.queries, settings.repeats)
    filling = time.perf_counter() - began
    batches = _mixed(bench, settings.queries, settings.repeats)
    padded_step = _padded_step(bench)
    trials = {chunk: _seconds(lambda c=chunk: padded_step.backward(*batches[0], c, min(4, settings.queries)))
              for chunk in CHUNKS}  # fmt: skip
    chunk = min(trials, key=lambda c: trials[c])

    def ours(repeat: int) -> None:
        with meter.watch():
            cached.backward(repeat, repeat)

    sides = {
        "live": lambda repeat: live.backward(repeat, repeat),
        "cached": ours,
        "padded": lambda repeat: padded_step.backward(*batches[repeat], chunk),
    }
    timings = timed(bench, sides, f"stage 1, chunks of {chunk}")
    return {
        "ratio_live": timings.ratio("padded", "live"), "cpu_ratio_live": timings.cpu_ratio("padded", "live"),
        "ratio_cached": timings.ratio("padded", "cached"), "cpu_ratio_cached": timings.cpu_ratio("padded", "cached"),
        "gradient_difference": difference, "chunk": chunk, "seconds_of_chunks": trials, **asdict(timings),
        "tokens": [_tokens(texts) for texts, _ in batches], "tokens_padded": [_padded(texts) for texts, _ in batches],
        "seconds_to_fill_cache": filling,
    }  # fmt: skip


def stage1_difference(bench: Bench, queries: int = 8) -> float:
    """Return how much the gradients of both sides differ on a small batch, dropout off."""
    step = robust_step(open_run(bench.settings, bench.name, live=True), bench.model, bench.rows, queries, 1)
    ((texts, draw),), padded_step = _mixed(bench, queries, 1), _padded_step(bench)
    ours = gradient_of(bench.model, lambda: step.backward(0, 0))
    return _agreed(bench, "stage 1", ours, gradient_of(bench.model, lambda: padded_step.backward(texts, draw, 1)))


def timed(bench: Bench, sides: dict[str, Callable[[int], object]], what: str) -> Timings:
    """Time sides in turn, each without gradients at its start."""
    fresh = {name: lambda repeat, side=side: bench.fresh(lambda: side(repeat)) for name, side in sides.items()}
    return interleaved(fresh, bench.settings.repeats, lambda text: bench.say(f"{what}: {text}"))


def stage02_memory(bench: Bench, setting: dict[str, int], number: int) -> Found:
    """Compare the peaks of fresh processes, each of which does one step of one side on a chosen draw."""
    job = {"settings": asdict(bench.settings), "model": bench.name, "number": number}
    ours, theirs = _in_fresh_process(job), _in_fresh_process({**job, "setting": setting})
    above = (ours["peak_mb"] - ours["start_mb"]) / (theirs["peak_mb"] - theirs["start_mb"])
    bench.say(f"peak memory: ours {ours}, theirs {theirs}")
    return {"ratio": ours["peak_mb"] / theirs["peak_mb"], "ratio_above_start": above, "ours": ours, "theirs": theirs}


def memory_growth(settings: Settings, setting: dict[str, int]) -> tuple[float, Found]:
    """Return by how many MB our peak grows between two batch sizes, and the numbers of both sides."""
    mined_rows(settings, growth=True)
    peaks: dict[str, list[float]] = {"ours": [], "theirs": []}
    for batch in settings.growth:
        job = {"settings": asdict(replace(settings, batch=batch)), "model": "small", "growth": True, "number": 0}
        peaks["ours"].append(_in_fresh_process(job)["peak_mb"])
        peaks["theirs"].append(_in_fresh_process({**job, "setting": setting})["peak_mb"])
        print(f"growth, batch {batch}: { ({side: round(found[-1]) for side, found in peaks.items()}) } MB", flush=True)
    growth = {side: last - first for side, (first, last) in peaks.items()}
    return growth["ours"], {"batches": settings.growth, "peak_mb": peaks, "growth_mb": growth, "setting": setting}


def memory_of(job: Found) -> dict[str, float]:
    """Do one step of stage 0/2 in this process and return its memory before and at the peak."""
    tuples = {"models", "growth", "small", "lengths1"}
    settings = Settings(**{key: tuple(v) if key in tuples else v for key, v in job["settings"].items()})
    _prepare(settings)
    run, rows = open_run(settings, job["model"]), mined_rows(settings, growth=job.get("growth", False))
    bench = Bench(job["model"], settings, rows, run, run.load_base().train())
    draws = chosen_draws(bench)
    if job.get("setting"):
        loss, columns = bench.cached_loss(job["setting"]), bench.columns(draws[job["number"]])
        action: Callable[[], object] = lambda: their_backward(loss, columns)  # noqa: E731
    else:
        step = contrastive_step(run, bench.model, rows, draws)
        action = lambda: step.backward(job["number"], 0)  # noqa: E731
    with PeakMemory() as memory:
        action()
    return {"start_mb": memory.start, "peak_mb": memory.peak}


def _in_fresh_process(job: Found) -> dict[str, float]:
    """Let a fresh process do one step; in quick mode it is this one."""
    if not job["settings"]["fresh"]:
        return memory_of(job)
    command = [sys.executable, __file__, "--memory-of", json.dumps(job)]
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    result: dict[str, float] = json.loads(found.splitlines()[-1])
    return result


def _mixed(bench: Bench, queries: int, steps: int) -> list[tuple[StepTexts, Draw]]:
    """Return the batches that `robust_step` draws."""
    mixture = MixedMixture(sizes_of(bench.rows), queries, bench.settings.seed)
    draws = [mixture.draw(step) for step in range(steps)]
    return [(step_texts(bench.run, bench.model, bench.rows, d, bench.settings.passages), d) for d in draws]


def _padded_step(bench: Bench) -> PaddedStep:
    """Build the other side of stage 1."""
    reference = bench.run.load(str(bench.run.folder / "reference" / "model")).requires_grad_(False).eval()
    return PaddedStep(bench.model, reference, bench.settings.temperature, len(bench.rows))


def _agreed(bench: Bench, what: str, ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the relative difference of two gradients; end the benchmark where they are not the same."""
    difference = float((ours - theirs).norm() / theirs.norm())
    bench.say(f"{what}: gradients differ by {difference:.1e}")
    if not difference < TOLERANCE:
        raise SystemExit(f"{what}: the sides do not compute the same")
    return difference


def _short(setting: dict[str, int]) -> str:
    """Write a setting in few letters."""
    return ", ".join(f"{key.removeprefix('mini_batch_')} {value}" for key, value in setting.items())


def _seconds(action: Callable[[], object]) -> float:
    """Time something once."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def _first(draw: Draw, queries: int) -> Draw:
    """Return the first queries of a draw."""
    return Draw(draw.dataset_B[:queries], draw.row_B[:queries], draw.visit_B[:queries])


def _tokens(texts: StepTexts) -> int:
    """Count the tokens of a step."""
    return sum(len(tokens) for tokens in [*texts.queries_B, *texts.passages_P])


def _padded(texts: StepTexts) -> int:
    """Count the tokens of a step when all queries, and all passages, are as long as the longest."""
    return sum(len(side) * max(len(tokens) for tokens in side) for side in (texts.queries_B, texts.passages_P))


def _prepare(settings: Settings) -> None:
    """Set threads, and a cache of the benchmark's own."""
    torch.set_num_threads(settings.threads)
    os.environ["TDRO_CACHE"] = str(Path(settings.work) / "cache")


def _parser() -> argparse.ArgumentParser:
    """Describe the options."""
    root = Path(__file__).parent.parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(root.parent / "shared" / "data"), help="folder with train/*.jsonl.gz")
    parser.add_argument("--work", default=str(root / "runs" / "benchmark-step"), help="kept from run to run")
    parser.add_argument("--results", default=str(report.RESULTS), help="folder of the result")
    parser.add_argument("--models", nargs="+", choices=["minilm", "small"], help="the figures are the first one's")
    for name in ("repeats", "datasets", "max_rows", "query_length", "passage_length", "batch", "queries", "threads"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    parser.add_argument("--growth", nargs=2, type=int, help="two batch sizes")
    parser.add_argument("--stage1-only", action="store_true", help="replace stage 1 in an earlier result")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; writes step-quick.json")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
