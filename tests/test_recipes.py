"""The recipes: every row of the paper is planned as the paper did, without model or data; and the small grid."""

import importlib.util
import re
from pathlib import Path

import pytest

from tdro.cli.main import main
from tdro.config import Study
from tdro.study_file import load_study, study_text
from tdro.training.pipeline import planned

RECIPES = Path(__file__).parents[1] / "recipes"
PAPER = sorted((RECIPES / "paper").glob("*.yaml"))
MODELS = ("qwen1.5-0.5b", "qwen1.5-1.8b", "qwen1.5-4b", "qwen1.5-7b", "mistral-7b", "llama3-8b")
ABLATIONS = ("top60", "top80", "bottom50", "reweight-loss", "relative", "excess", "raw")


@pytest.fixture(scope="module")
def studies() -> dict[str, Study]:
    """Every row, by the name of its file."""
    return {path.stem: load_study(path) for path in PAPER}


def test_every_row_of_the_papers_tables_is_there(studies):
    main = {f"{model}-{mixture}" for model in MODELS for mixture in ("uniform", "top70", "reweight")}
    assert set(studies) == main | {f"qwen1.5-0.5b-{row}" for row in ABLATIONS}
    readme = (RECIPES / "paper" / "README.md").read_text()
    for name, study in studies.items():
        assert study.name == f"paper-{name}" and f"]({name}.yaml)" in readme
        first, second = (RECIPES / "paper" / f"{name}.yaml").read_text().splitlines()[:2]
        assert re.match(r"# \d GPUs .*hours.* in the paper|# \d GPUs .*in the paper.*hours", first), first
        assert "not run here" in first and second.startswith("# ")


@pytest.mark.parametrize("recipe", [RECIPES / "paper-qwen1.5-0.5b.yaml", *PAPER], ids=lambda path: path.stem)
def test_the_papers_rows_dry_run(recipe, capsys):
    assert main(["run", str(recipe), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("miracl", "AllNLI", "1000 steps"))


def test_rows_differ_from_each_other_in_nothing_but_what_they_are_about(studies):
    about = {"name", "model", "robust", "evaluation", "weights"}
    base = studies["qwen1.5-0.5b-top70"]
    for name, study in studies.items():
        assert study.model_dump(exclude=about) == base.model_dump(exclude=about)
        assert study.model.model_dump(exclude={"base"}) == base.model.model_dump(exclude={"base"})
        assert (study.model.base == base.model.base) == name.startswith("qwen1.5-0.5b")
        assert study.weights.model_dump(exclude={"measure"}) == base.weights.model_dump(exclude={"measure"})
        assert study.evaluation.tasks == base.evaluation.tasks and len(base.evaluation.tasks) == 17


def test_measure_and_plan_of_every_row_are_written_and_not_the_default(studies):
    minilm = load_study(RECIPES / "multidomain-minilm.yaml")
    for study in (*studies.values(), minilm):
        assert "measure" in study.weights.model_fields_set and "plan" in study.robust.model_fields_set
    assert (minilm.weights.measure, minilm.robust.plan, minilm.robust.share) == ("relative", "top-share", 0.7)


def test_plans_sample_what_the_paper_says(studies):
    kept = {
        name: {dataset: row["robust_probability"] for dataset, row in planned(study).items()}
        for name, study in studies.items()
        if study.robust.weights != "learned"
    }
    assert set(studies) - set(kept) == {f"qwen1.5-0.5b-{row}" for row in ("top70", "relative", "excess", "raw")}
    for model in MODELS:
        assert set(kept[f"{model}-uniform"].values()) == {1 / 25}
        assert kept[f"{model}-reweight"]["miracl"] == pytest.approx(0.1314, abs=1e-4)
    counts = {name: sum(p > 0 for p in plan.values()) for name, plan in kept.items()}
    assert [counts[f"qwen1.5-0.5b-{row}"] for row in ("top60", "top80", "bottom50")] == [15, 20, 12]
    assert {counts[f"{model}-top70"] for model in MODELS[1:]} == {17}
    assert kept["qwen1.5-0.5b-bottom50"]["AllNLI"] > 0 == kept["qwen1.5-0.5b-bottom50"]["miracl"]
    assert set(kept["qwen1.5-0.5b-reweight-loss"].values()) == {1 / 25}
    measures = {name.removeprefix("qwen1.5-0.5b-"): study.weights.measure for name, study in studies.items()}
    assert [measures[row] for row in ("top70", "relative", "excess", "raw")] == [
        "relative-sample", "relative", "excess-sample", "raw",
    ]  # fmt: skip


def test_the_papers_numbers_are_beside_their_rows():
    # One of each table, as the paper prints them.
    assert "66.3, R@100 93.4; MKQA Acc@10 67.0, Acc@100 76.8; BEIR nDCG@10 55.0" in head("llama3-8b-reweight")
    assert "45.8, R@100 80.5; MKQA Acc@10 43.1, Acc@100 61.3; BEIR nDCG@10 47.5" in head("qwen1.5-0.5b-uniform")
    assert "BEIR nDCG@10 45.2, MIRACL nDCG@10 44.6, MKQA Acc@100 60.7" in head("qwen1.5-0.5b-bottom50")


def head(row: str) -> str:
    """The second line of a recipe."""
    return (RECIPES / "paper" / f"{row}.yaml").read_text().splitlines()[1]


def test_every_row_of_the_small_grid_is_a_study(tmp_path):
    spec = importlib.util.spec_from_file_location("grid", RECIPES / "grid.py")
    grid = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(grid)
    rows = dict(grid.rows(Path("runs/grid")))
    assert set(rows) == {"top70", *ABLATIONS, "reweight"} and next(iter(rows)) == "top70"
    content = load_study(grid.STUDY).model_dump(mode="json")
    for name, options in rows.items():
        changed = {section: dict(content[section]) for section in ("weights", "robust", "evaluation")}
        for option, value in options.items():
            section, key = option.split(".")
            assert key in changed[section]
            changed[section][key] = [value] if key == "models" else value
        study = Study.model_validate({**content, **changed, "name": f"grid-{name}"})
        if name in grid.MEASURES:  # its reference is that of the first row
            assert study.reference == load_study(grid.STUDY).reference and study.robust.weights == "learned"
    kept = tmp_path / "study.yaml"
    kept.write_text(study_text(grid.STUDY))
    assert load_study(kept) == load_study(grid.STUDY)
