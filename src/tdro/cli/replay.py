"""`tdro weights --replay RUN` and `tdro weights --from-losses FILE`: weights from records, without a model."""

from dataclasses import dataclass, field
from pathlib import Path

from tdro.cli.overrides import parse
from tdro.config import WeightsConfig
from tdro.errors import ConfigError
from tdro.study_file import load_study


@dataclass
class Arguments:
    """Settings of the weights stage, changed on the command line."""

    weights: WeightsConfig = field(default_factory=WeightsConfig)
    save: str = ""
    """Write the weights to this JSON file."""


def command(arguments: list[str]) -> int:
    """Replay a run, or learn from a table of losses, and print the weights."""
    flag = arguments[0]
    if len(arguments) < 2 or arguments[1].startswith("-"):
        what = "RUN" if flag == "--replay" else "losses.parquet"
        raise ConfigError("nothing to learn from", saw=flag, do=f"tdro weights {flag} {what} [--weights.option value]")
    path = Path(arguments[1])
    if flag == "--replay" and not (path / "resolved.yaml").exists():
        runs = sorted(str(folder.parent) for folder in path.parent.glob("*/resolved.yaml"))
        do = f"did you mean one of: {', '.join(runs[:5])}?" if runs else "give the folder of a run, runs/NAME"
        raise ConfigError("there is no run in this folder", where=path, do=do)
    study = load_study(path / "resolved.yaml") if flag == "--replay" else None
    default = Arguments(study.weights if study else WeightsConfig())
    parsed = parse(Arguments, f"tdro weights {flag} {path}", arguments[2:], default)
    from tdro.cli.display import print_weights
    from tdro.files import write_json
    from tdro.training.replay import replay_losses, replay_run

    if study:
        replayed = replay_run(path, parsed.weights, study.reference.steps * study.reference.batch_size)
    else:
        replayed = replay_losses(path, parsed.weights)
    weights = replayed.exported(parsed.weights.export)
    print_weights(weights, f"{parsed.weights.measure}, {parsed.weights.update}, {replayed.steps} steps")
    if parsed.save:
        write_json(Path(parsed.save), weights)
    return 0
