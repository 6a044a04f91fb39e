"""The settings of the study: collections and models, seeds, measures, plans."""

from pathlib import Path

from tdro.config import Study
from tdro.study_file import load_study

RECIPES = Path(__file__).parents[2] / "recipes" / "study"
RESULTS = Path(__file__).parents[1] / "results" / "study"
CORE = ("given-pretrained", "given-scratch", "users-pretrained", "users-scratch")
"""Static models, of which a training takes seconds: random mixtures and all arms."""
SMALLER = {"users-transformer": "users-scratch", "users-decoder": "users-scratch"}
"""Larger models -> the setting that has a static model and the same datasets."""
SETTINGS = (*CORE, *SMALLER)
SEEDS = (0, 1, 2, 3, 4)
FEWER_SEEDS = SEEDS[:3]
MIXTURES = 60
OUT_OF_DOMAIN = ("cacm", "cranfield", "covidqa", "dbpedia-mini", "scifact", "wikiqa")
IN_DOMAIN = ("cosqa", "jaquad-indomain", "medquad-indomain", "quora-indomain")
LARGE = ("cranfield", "covidqa", "scifact", "wikiqa")
"""Sets out of domain with more than a hundred queries in either half; cacm and dbpedia-mini have about twenty."""
GOALS = {"out": OUT_OF_DOMAIN, "large": LARGE, "in": IN_DOMAIN, "all": OUT_OF_DOMAIN + IN_DOMAIN}
"""What usefulness may be for."""
MEASURES = ("relative", "relative-sample", "excess", "raw", "initial")
PLANS = {"reweight": ("reweight", 1.0), "top70": ("top-share", 0.7), "bottom50": ("bottom-share", 0.5)}
FIXED = ("uniform", "size", "temperature-2", "temperature-5")


def study_of(setting: str, work: Path) -> Study:
    """Load a recipe of the study, in a work folder."""
    study = load_study(RECIPES / f"{setting}.yaml")
    root = study.data.model_copy(update={"root": str(work / "data")})
    base = study.model.model_copy(update={"base": str(work / Path(study.model.base).name)})
    encoder = str(work / Path(study.mining.encoder).name) if study.mining.encoder else ""
    mining = study.mining.model_copy(update={"encoder": encoder})
    return study.model_copy(update={"output": str(work / setting), "data": root, "model": base, "mining": mining})
