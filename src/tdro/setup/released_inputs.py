"""Scripts and files of arguments as they were given to the released code: which trainings they launch, with what."""

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from tdro.errors import ConfigError
from tdro.setup.released_options import names_of, training_options
from tdro.setup.released_shell import Command, read_script

_LAUNCHERS = {"torch.distributed.launch", "torch.distributed.run", "accelerate.commands.launch"}
_MODEL_ALONE = names_of("ModelArguments") | names_of("DistributationRobustOptimizationModelArguments")
_EVALUATION = names_of("EvalArguments")
_OTHER_PROGRAMS = (_EVALUATION | {"train_collection", "save_to"}) - set(training_options())
_YES, _NO = {"true", "yes", "t", "y", "1"}, {"false", "no", "f", "n", "0"}
_NEGATIVE = re.compile(r"-\d*\.?\d+(e[-+]?\d+)?")


@dataclass(frozen=True)
class Launch:
    """One training.

    Attributes:
        source: File that launches it.
        folder: Where the paths of its arguments may start.
        program: Module or file that was started; empty for a file of arguments.
        given: Argument -> value: text, list, or what JSON and YAML have; True for a flag alone.
        processes: How many were started; None where nothing says it.
        conditional: Variables of the script that depend on a condition.
    """

    source: Path
    folder: Path
    program: str
    given: Mapping[str, Any]
    processes: int | None = None
    conditional: tuple[str, ...] = ()

    @property
    def model_alone(self) -> bool:
        """Whether it is the `model_args.yaml` of a saved model, which says nothing about data and training."""
        return not self.program and set(self.given) <= _MODEL_ALONE


class Arguments:
    """Typed values of a launch, with the released defaults where something is not given.

    Args:
        launch: The launch.
        fallback: Values of a saved `model_args.yaml` beside it.
    """

    def __init__(self, launch: Launch, fallback: Mapping[str, Any] | None = None) -> None:
        self.launch = launch
        given = {**(fallback or {}), **launch.given}
        self.given = {name: value for name, value in given.items() if value is not None and value != []}
        self._options = training_options()

    def has(self, name: str) -> bool:
        """Whether an argument is given."""
        return name in self.given

    def raw(self, name: str) -> Any:
        """Value as it was given, or the default."""
        return self.given.get(name, self._options[name].default)

    def text(self, name: str) -> str:
        """Value as text; empty where there is none.

        Raises:
            ConfigError: It holds a variable that the script does not set.
        """
        value = self.raw(name)
        text = "" if value is None else str(value[-1] if isinstance(value, list) else value)
        if "$" in text:
            variable = re.search(r"\$\{?(\w+)", text)
            do = f"add --set {variable[1]}=VALUE" if variable else "write the value into the script"
            raise ConfigError("the script does not say what this is", where=self.where(name), saw=text, do=do)
        return text

    def whole(self, name: str) -> int:
        """Value as a whole number."""
        number = self.number(name)
        if not number.is_integer():
            raise self._wrong(name, "a whole number")
        return int(number)

    def number(self, name: str) -> float:
        """Value as a number."""
        try:
            number = float(self.text(name))
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise self._wrong(name, "a number")
        return number

    def flag(self, name: str) -> bool:
        """Value as yes or no."""
        value = self.raw(name)
        text = self.text(name).lower()
        if isinstance(value, bool) or text in _YES | _NO:
            return value if isinstance(value, bool) else text in _YES
        if value is None:
            return False
        raise self._wrong(name, "True or False")

    def numbers(self, name: str) -> list[float]:
        """Value as a list of numbers."""
        value = self.raw(name)
        try:
            return [float(item) for item in (value if isinstance(value, list) else [value])]
        except (TypeError, ValueError):
            raise self._wrong(name, "numbers") from None

    def where(self, name: str) -> str:
        """Say where an argument stands."""
        return f"{self.launch.source} --{name}"

    def origin(self, *names: str) -> str:
        """Say in a comment which arguments a value comes from, and whether they were given."""
        given = [f"--{name}" for name in names if self.has(name)]
        return ", ".join(given) or f"default of --{names[0]}"

    def _wrong(self, name: str, wanted: str) -> ConfigError:
        """Say that a value is of the wrong kind."""
        return ConfigError(f"--{name} is not {wanted}", where=self.where(name), saw=self.raw(name), do="mend it")


def read_launches(
    sources: Sequence[Path], variables: Mapping[str, str], *, ignore_unknown: bool = False
) -> tuple[list[Launch], list[str]]:
    """Read scripts and files of arguments.

    Args:
        sources: Shell scripts, JSON or YAML files.
        variables: Set from outside, for the scripts.
        ignore_unknown: Leave out arguments that the released code did not have.

    Returns:
        Trainings in their order, and the arguments that were left out.

    Raises:
        ConfigError: A file cannot be read, launches no training, or has unknown arguments.
    """
    launches = [launch for source in sources for launch in _read(source, variables)]
    known = training_options()
    unknown = list(dict.fromkeys(name for launch in launches for name in launch.given if name not in known))
    if unknown and not ignore_unknown:
        lines = [f"--{name}{_close(name, known)}" for name in unknown]
        files = dict.fromkeys(str(launch.source) for launch in launches if set(unknown) & set(launch.given))
        do = "correct them, or add --ignore-unknown to leave them out"
        raise ConfigError(f"unknown arguments: {', '.join(lines)}", where=", ".join(files), do=do)
    return [
        replace(launch, given={name: value for name, value in launch.given.items() if name in known})
        for launch in launches
    ], unknown


def find_file(path: str, folder: Path) -> Path | None:
    """Find a file or folder that an argument names: as it stands, or seen from a script's folder or one above."""
    starts = [Path(), folder, *folder.absolute().parents][:5]
    return next((start / path for start in starts if path and (start / path).exists()), None)


def _close(name: str, known: Iterable[str]) -> str:
    """Suggest a known argument."""
    close = difflib.get_close_matches(name, list(known), n=2, cutoff=0.6)
    return f" (did you mean {' or '.join('--' + other for other in close)}?)" if close else ""


def _read(source: Path, variables: Mapping[str, str]) -> list[Launch]:
    """Read one script or file."""
    try:
        text = source.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        do = "give a shell script, or a JSON or YAML file of arguments"
        raise ConfigError("arguments cannot be read", where=source, saw=str(error), do=do) from None
    if source.suffix in (".json", ".yaml", ".yml"):
        return [Launch(source, source.parent, "", _read_mapping(text, source))]
    script = read_script(text, source, variables)
    split = [(command, parts) for command in script.commands if (parts := _split(command.words))]
    trainings = [(command, parts) for command, parts in split if _trains(parts[2])]
    if not trainings:
        trainings = [(c, parts) for c, parts in split if parts[2] and not set(parts[2]) & _OTHER_PROGRAMS]
    if not trainings:
        programs = ", ".join(dict.fromkeys(parts[1] for _, parts in split)) or "no program with arguments"
        do = "give the script that trains; for an evaluation see tdro evaluate --help"
        raise ConfigError("the script launches no training", where=source, saw=programs, do=do)
    known = training_options()
    conditional = tuple(
        dict.fromkeys(
            assigned.name
            for assigned in script.conditional
            if not assigned.adds or any(word.removeprefix("--") in known for word in assigned.value.split())
        )
    )
    launches = []
    for command, (launcher, program, given) in trainings:
        processes = _processes(command, launcher, source)
        arguments = _in_file(given, source)
        if not {"bf16", "fp16"} & set(arguments):
            arguments = {**arguments, **_precision(launcher, source)}
        launches.append(Launch(source, source.parent, program, arguments, processes, conditional))
    return launches


def _read_mapping(text: str, source: Path) -> dict[str, Any]:
    """Read a JSON or YAML file of arguments; those without a value count as not given."""
    try:
        content = json.loads(text) if source.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        kind = "JSON" if source.suffix == ".json" else "YAML"
        raise ConfigError(f"not {kind}", where=source, saw=str(error), do="mend the file") from None
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        do = 'write {"argument": value, ...}'
        raise ConfigError("arguments are a mapping of names to values", where=source, saw=content, do=do)
    given = {name: value for name, value in content.items() if value is not None}
    if set(given) <= _MODEL_ALONE:  # a saved model says every default
        known = training_options()
        given = {name: value for name, value in given.items() if value != known[name].default}
    return given


def _in_file(given: Mapping[str, Any], source: Path) -> Mapping[str, Any]:
    """Read the JSON file that is the only argument, if it is one."""
    path = given.get("")
    if path is None:
        return given
    found = find_file(path, source.parent)
    if found is None:
        raise ConfigError("file of arguments is not there", where=source, saw=path, do="put it beside the script")
    return _read_mapping(found.read_text("utf-8-sig"), found)


def _trains(given: Mapping[str, Any]) -> bool:
    """Whether arguments are those of a training, and not of another program of the released code."""
    training = names_of("DataArguments") | names_of("RetrieverTrainingArguments") | names_of("TrainingArguments")
    training |= names_of("DistributationRobustOptimizationModelArguments")
    return "" in given or bool(set(given) & (training - _EVALUATION))


def _split(words: Sequence[str]) -> tuple[Sequence[str], str, dict[str, Any]] | None:
    """Split a command into launcher, program and the program's arguments; None if it starts no Python program."""
    for i, word in enumerate(words):
        following = words[i + 1] if i + 1 < len(words) else ""
        if word in ("-m", "--module") and following and following not in _LAUNCHERS and following[0] != "-":
            return words[:i], following, _parse(words[i + 2 :])
        if word.endswith(".py") and not word.startswith("-"):
            return words[:i], word, _parse(words[i + 1 :])
    return None


def _parse(words: Sequence[str]) -> dict[str, Any]:
    """Read arguments as transformers' parser does; the only argument, a JSON file, has the name ''."""
    if len(words) == 1 and words[0].endswith(".json"):
        return {"": words[0]}
    given: dict[str, Any] = {}
    name, known = "", training_options()
    for word in words:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            name = name if name in known else name.replace("-", "_")
            if name.startswith("no_") and name not in known and name[3:] in known:
                name, equals, value = name[3:], "=", "False"
            given[name] = value if equals else True
        elif name and (not word.startswith("-") or _NEGATIVE.fullmatch(word)):
            before = given[name]
            given[name] = word if before is True else [*(before if isinstance(before, list) else [before]), word]
    return given


def _precision(launcher: Sequence[str], source: Path) -> dict[str, str]:
    """Read the precision that accelerate hands to the trainer where its own arguments name none."""
    if "accelerate" not in " ".join(launcher):
        return {}
    options = {name.replace("-", "_"): value for name, value in _parse(launcher).items()}
    precision, file = options.get("mixed_precision"), find_file(str(options.get("config_file", "")), source.parent)
    if precision is None and file is not None:
        found = re.search(r"^mixed_precision:\s*['\"]?(\w+)", file.read_text("utf-8", errors="replace"), re.M)
        precision = found[1] if found else None
    return {str(precision): "True"} if precision in ("bf16", "fp16") else {}


def _processes(command: Command, launcher: Sequence[str], source: Path) -> int | None:
    """Count the processes that a launcher starts."""
    options = {name.replace("-", "_"): value for name, value in _parse(launcher).items()}

    def count(*names: str) -> int | None:
        texts = [str(options[name]).split(":")[-1] for name in names if name in options]
        return int(texts[0]) if texts and texts[0].isdigit() else None

    file = find_file(str(options.get("config_file", "")), source.parent) if "accelerate" in " ".join(launcher) else None
    if file and "num_processes" not in options:
        try:
            content = yaml.safe_load(file.read_text("utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            return None
        number = content.get("num_processes") if isinstance(content, dict) else None
        return number if isinstance(number, int) and number > 0 else None
    visible = command.variables.get("CUDA_VISIBLE_DEVICES", "")
    on_a_node = count("nproc_per_node", "num_gpus")
    if on_a_node is not None:
        if {"nnodes", "num_nodes"} & set(options) and count("nnodes", "num_nodes") is None:
            return None
        return on_a_node * (count("nnodes", "num_nodes") or 1)
    if "include" in options:  # deepspeed: host:0,1@host:0,1
        return sum(len(host.partition(":")[2].split(",")) for host in str(options["include"]).split("@"))
    if (all_together := count("num_processes")) is not None:
        return all_together
    if not launcher or launcher[0].startswith("python"):
        return 1
    return len(visible.split(",")) if visible and "$" not in visible else None
