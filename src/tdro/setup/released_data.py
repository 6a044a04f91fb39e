"""From domain configs and single files to the data and robust sections of a study."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdro.errors import ConfigError
from tdro.setup.released_domains import Domains, dataset_of, domains_of, read_domains, valid_name
from tdro.setup.released_inputs import Arguments, find_file
from tdro.setup.released_sections import Notes, Value, from_here

_ROWS = (".jsonl", ".jsonl.gz", ".parquet")


@dataclass(frozen=True)
class Data:
    """The data section, and what other sections need of it.

    Attributes:
        section: Keys of the data section.
        names: Datasets.
        rows: Rows of all of them; None if a size is not known.
        root: Folder that the paths start from, as seen from here.
    """

    section: dict[str, Any]
    names: tuple[str, ...]
    rows: int | None
    root: str

    def located(self, args: Arguments, option: str) -> str:
        """Return a path that an argument names, as it is to be written under this root."""
        found = find_file(args.text(option), args.launch.folder)
        return args.text(option) if found is None else _under(found, self.root)


def domain_config(args: Arguments) -> Domains | None:
    """Read the domain config of a launch; None where it names none, or one that is not there.

    Raises:
        ConfigError: It is there and cannot be read.
    """
    inside = args.raw("domain_config")
    if isinstance(inside, dict):
        return domains_of(inside, args.where("domain_config"))
    path = str(args.raw("domain_config_path") or "")
    found = find_file(path, args.launch.folder)
    if found is not None:
        return read_domains(found)
    saved = args.raw("domain_size")
    if isinstance(saved, dict) and not path:
        content = {"domain_weights": args.raw("domain_weights"), "domain_ids": args.raw("domain_to_idx"), "size": saved}
        return domains_of(content, args.where("domain_size"))
    return None


def has_learned_weights(args: Arguments, config: Domains | None) -> bool:
    """Whether a launch trains with weights that are not equal, or that stage 1 wrote."""
    if config is not None:
        return config.is_learned or not config.is_uniform
    stem = Path(str(args.raw("domain_config_path") or "")).stem
    return _learned_file(stem) is not None


def data_section(stages: Mapping[Any, Arguments], data_root: str, notes: Notes) -> Data:
    """Translate which datasets there are and how their texts become input.

    Args:
        stages: Stage -> arguments.
        data_root: Folder of the datasets; empty: --preprocessed_dir.
        notes: Gets what is lost.

    Raises:
        ConfigError: The arguments name no datasets.
    """
    first = next(iter(stages.values()))
    configs = {stage: config for stage, args in stages.items() if (config := domain_config(args))}
    if configs:
        root, datasets = _of_domains(stages, configs, data_root, notes)
    elif any(args.text("corpus_path") for args in stages.values()):
        root, datasets = data_root or ".", _of_one_file(first, data_root)
    elif first.launch.model_alone and data_root:
        root, datasets = data_root, _of_folder(Path(data_root))
    else:
        raise _no_datasets(first)
    sizes = [dataset["size"].value for dataset in datasets.values() if "size" in dataset]
    section: dict[str, Any] = {"root": Value(root, "" if data_root else "--preprocessed_dir" if configs else "")}
    section |= _texts(first, notes)
    section["datasets"] = datasets
    if len(sizes) < len(datasets):
        notes.other.append("not every dataset has a size: --dry-run counts rows in the files")
    return Data(section, tuple(datasets), sum(sizes) if len(sizes) == len(datasets) else None, root)


def robust_section(stages: Mapping[Any, Arguments], data: Data, notes: Notes) -> dict[str, Value]:
    """Translate how the robust model is sampled."""
    if len(data.names) == 1:
        return {"plan": Value("reweight", "one dataset"), "weights": Value("uniform")}
    args = stages.get("robust")
    if args is None:
        return _of_one_share(stages.get("weights"))
    config = domain_config(args)
    if config is not None and config.path is not None:
        comment = "--domain_config_path"
        return {"plan": Value("reweight", comment), "weights": Value(from_here(config.path), comment)}
    if config is not None:
        do = "write it to a file and name that as domain_config_path"
        raise ConfigError("unequal weights stand among the arguments", where=args.where("domain_config"), do=do)
    return _of_stage_1(args, "weights" in stages, notes)


def _of_one_share(args: Arguments | None) -> dict[str, Value]:
    """Translate the share of datasets that stage 1 was to keep, where it was one; else it is the paper's."""
    option = "dro_save_top_percent_uniform_weights"
    if args is None or not args.has(option) or len(args.numbers(option)) != 1:
        return {"plan": Value("top-share", "the paper's"), "share": Value(0.7, "the paper's")}
    return {"plan": Value("top-share"), "share": Value(args.numbers(option)[0] / 100, f"--{option}")}


def _of_stage_1(args: Arguments, learned_here: bool, notes: Notes) -> dict[str, Value]:
    """Translate a weights file that is not there: the study's own stage 1 writes its like."""
    path = str(args.raw("domain_config_path"))
    found = _learned_file(Path(path).stem)
    if not learned_here:
        do = "put it there, or import the script of stage 1 too"
        raise ConfigError("weights file is not there", where=args.where("domain_config_path"), saw=path, do=do)
    notes.other.append(
        f"--domain_config_path {path} is not there: robust.weights is what this study's stage 1 will learn"
    )
    if found is None or "$" in path:
        notes.lost.append(
            f"--domain_config_path {path}: which weights it names is not known; the plan is the paper's, top 70 %"
        )
        return {"plan": Value("top-share"), "share": Value(0.7), "weights": Value("learned")}
    if found.startswith("top"):
        share = int(found.removeprefix("top")) / 100
        return {"plan": Value("top-share", found), "share": Value(share, found), "weights": Value("learned")}
    return {"plan": Value("reweight", found), "weights": Value("learned")}


def exported_average(stages: Mapping[Any, Arguments]) -> str:
    """Return `mean` or `ema` where the robust model takes these weights of the study's own stage 1, else nothing."""
    args = stages.get("robust")
    if args is None or domain_config(args) is not None:
        return ""
    found = _learned_file(Path(str(args.raw("domain_config_path"))).stem)
    return found if found in ("mean", "ema") else ""


def _learned_file(stem: str) -> str | None:
    """Tell which of stage 1's files a name is; any `..._weights` file whose name has a variable counts."""
    found = re.fullmatch(r"(curr|mean|ema|top\d+|\$.*)_weights", stem)
    return found[1] if found else None


def _of_domains(
    stages: Mapping[Any, Arguments], configs: Mapping[Any, Domains], data_root: str, notes: Notes
) -> tuple[str, dict[str, Any]]:
    """Make datasets of domains; those that no stage samples are left out."""
    root = data_root or _preprocessed(stages)
    folder = Path(root)
    for stage, args in stages.items():
        path = str(args.raw("domain_config_path") or "")
        if path and stage not in configs and stage != "robust":
            notes.lost.append(
                f"--domain_config_path {path} of stage {stage} is not there; it has the other stages' datasets"
            )
    by_name = any(args.flag("add_domain_name") for args in stages.values())
    datasets: dict[str, Any] = {}
    for stage, config in configs.items():
        if stage != "robust" and not config.is_uniform:
            where = stages[stage].raw("domain_config_path")
            notes.lost.append(f"weights of {where} in stage {stage}: it samples every dataset equally here")
        for domain, weight in config.weights.items():
            name = valid_name(domain)
            if weight == 0 and all(other.weights.get(domain, 0) == 0 for other in configs.values()):
                notes.other.append(f"{domain} has weight 0, so it is no dataset of the study")
                continue
            known = datasets.setdefault(name, {})
            for key, value in dataset_of(domain, config, folder, hard_only_by_name=by_name).items():
                if key not in known or (key == "path" and domain in config.categories):
                    known[key] = Value(value)
            if name != domain:
                notes.lost.append(f"{domain} is called {name} here; rename it in weights files, too")
    for name, dataset in datasets.items():
        _say_of_dataset(name, dataset, notes)
    return root, datasets


def _say_of_dataset(name: str, dataset: Mapping[str, Value], notes: Notes) -> None:
    """Say what its name did, and that it is a category."""
    if "in_batch_negatives" in dataset:
        notes.broken.append(
            f"{name}: its name made it use hard negatives only there (`classification` or `clustering` in it); "
            "in_batch_negatives: false says so here, whatever the name"
        )
    if isinstance(dataset["path"].value, list):
        notes.other.append(f"{name}: a category of {len(dataset['path'].value)} files; one dataset with one weight")


def _preprocessed(stages: Mapping[Any, Arguments]) -> str:
    """Return --preprocessed_dir as seen from here."""
    args = next((args for args in stages.values() if args.has("preprocessed_dir")), None)
    if args is None:
        return "."
    if "$" in str(args.raw("preprocessed_dir")):
        do = "add --data-root FOLDER"
        saw = args.raw("preprocessed_dir")
        raise ConfigError(
            "the script does not say where the data are", where=args.where("preprocessed_dir"), saw=saw, do=do
        )
    found = find_file(args.text("preprocessed_dir"), args.launch.folder)
    return from_here(found) if found else str(Path(args.text("preprocessed_dir")))


def _of_one_file(args: Arguments, data_root: str) -> dict[str, Any]:
    """Make a dataset of --corpus_path, with the texts of its ids where they are elsewhere."""
    data = Data({}, (), None, data_root or ".")
    path = data.located(args, "corpus_path")
    dataset: dict[str, Any] = {"path": Value(path, "--corpus_path")}
    for option, ours in (("query_collection", "queries"), ("passage_collection", "passages")):
        if args.text(option):
            dataset[ours] = Value(data.located(args, option), f"--{option}")
    file = Path(data.root, path)
    if file.is_file() and file.suffix == ".jsonl":
        with file.open("rb") as lines:
            dataset["size"] = Value(max(sum(1 for line in lines if line.strip()), 1))
    return {valid_name(Path(path).name.split(".")[0]): dataset}


def _of_folder(folder: Path) -> dict[str, Any]:
    """Make a dataset of every file of rows in a folder."""
    files = sorted(file for file in folder.glob("*") if file.name.endswith(_ROWS)) if folder.is_dir() else []
    if not files:
        do = f"give the folder of files that end in {', '.join(_ROWS)}"
        raise ConfigError("there are no datasets in this folder", where=folder, do=do)
    return {valid_name(file.name.split(".")[0]): {"path": Value(file.name)} for file in files}


def _texts(args: Arguments, notes: Notes) -> dict[str, Any]:
    """Translate lengths, instructions and which passages of a row are shown."""
    section: dict[str, Any] = {}
    if args.flag("add_prompt"):
        section["instructions"] = Value("auto", "--add_prompt, joined as --prompt_type e5")
        notes.other.append(
            "--add_prompt: instructions are in tdro's own words; data.datasets.NAME.instruction takes other ones"
        )
        share = args.number("add_prompt_prob")
        if share != 1:
            section["instruction_share"] = Value(min(max(share, 0.0), 1.0), "--add_prompt_prob")
        if args.text("prompt_type") != "e5":
            kind = args.text("prompt_type")
            notes.lost.append(f"--prompt_type {kind}: instructions are joined as in e5; see data.instruction_template")
    for option, ours in (("positive_passage_no_shuffle", "positives"), ("negative_passage_no_shuffle", "negatives")):
        if args.flag(option):
            section[ours] = Value("first", f"--{option}")
    if not args.launch.model_alone:
        section["query_max_length"] = Value(args.whole("q_max_len"), args.origin("q_max_len"))
        section["passage_max_length"] = Value(args.whole("p_max_len"), args.origin("p_max_len"))
    return section


def _no_datasets(args: Arguments) -> ConfigError:
    """Say that no datasets are known."""
    path = str(args.raw("domain_config_path") or "")
    if "$" in path:
        variable = re.search(r"\$\{?(\w+)", path)
        do = f"add --set {variable[1]}=VALUE" if variable else "write the path into the script"
        where = args.where("domain_config_path")
        return ConfigError("the script does not say which domain config", where=where, saw=path, do=do)
    if path:
        do = "put it there, or run this from the folder that the script runs in"
        return ConfigError("domain config is not there", where=args.where("domain_config_path"), saw=path, do=do)
    do = "give the script with --domain_config_path or --corpus_path; for a saved model alone add --data-root FOLDER"
    return ConfigError("the arguments name no datasets", where=args.launch.source, do=do)


def _under(path: Path, root: str) -> str:
    """Write a path as seen from the root where it is inside."""
    absolute, base = path.absolute(), Path(root).absolute()
    return str(absolute.relative_to(base)) if absolute.is_relative_to(base) else from_here(path)
