"""`tdro VERB ...`: finds the verb, and turns errors into one block of text and an exit code."""

import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout

from tdro import __version__
from tdro.errors import ConfigError, EnvironmentProblem, TdroError

STUDY_VERBS = {
    "run": "all stages of a study; finished ones are skipped",
    "mine": "hard negatives only",
    "reference": "up to stage 0: the reference, sampled uniformly",
    "weights": "up to stage 1: the weights",
    "robust": "up to stage 2: the model with the learned mixture",
    "evaluate": "evaluate the models that are there",
}
OTHER_VERBS = {
    "init": "write a study file for a folder of datasets",
    "doctor": "is this machine ready? versions, devices, memory, disk",
    "estimate": "time, memory and disk that a study will take on this machine",
    "usefulness": "what each dataset is worth, by many trainings on random mixtures",
    "report": "the page that says what a run has shown",
    "export": "a run's model with its card, or its mixture for other trainers",
    "track": "send a run to TensorBoard, Weights & Biases or trackio",
    "config": "show, compare or describe studies",
    "completion": "complete verbs and options in your shell",
    "import-args": "turn arguments of the released tDRO code into a study file",
    "check": "read every dataset of a study and say what is wrong with it",
    "convert": "write datasets in another layout",
    "dedup": "find and remove training rows that leak evaluation queries",
    "compare": "are the differences between evaluated models more than chance?",
    "fetch": "download BEIR, MIRACL or MKQA",
    "index": "encode a corpus, to search it",
    "search": "the passages of an index that answer a query",
}
COMPLETE = {"doctor", "fetch"}
"""Verbs that need nothing behind them; the others are explained, and fail."""
HELP = """\
usage: tdro VERB ...

Learn how often each dataset should be sampled when a retriever is fine-tuned on many of them.

examples:
  tdro demo                                        the whole method in minutes, no download
  tdro run study.yaml --weights.step-size 0.05     a study, with one option changed

verbs:
{verbs}

`tdro VERB --help` explains a verb; `tdro run STUDY.yaml --help` lists every option with the value it has there.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 done, 1 done but a check failed, 2 user error, 3 environment, 130 interrupted with state saved.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help"):
        verbs = {
            "demo": "build demo datasets from this machine's documentation and run the method on them",
            **STUDY_VERBS,
            **OTHER_VERBS,
        }
        print(HELP.format(verbs="\n".join(f"  {verb:11} {what}" for verb, what in verbs.items())), end="")
        return 0
    if arguments[0] == "--version":
        print(f"tdro {__version__}")
        return 0
    try:
        with _signals_interrupt():
            if len(arguments) == 1 and arguments[0] in {*STUDY_VERBS, *OTHER_VERBS} - COMPLETE:
                with redirect_stdout(sys.stderr):
                    _dispatch(arguments[0], ["--help"])
                return ConfigError.exit_code
            return _dispatch(arguments[0], arguments[1:])
    except TdroError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # as in `tdro ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if debug:
            raise
        do = "check disk space, rights and the length of the name"
        saw = error.strerror or str(error)
        problem = EnvironmentProblem("the system refused a file", where=error.filename, saw=saw, do=do)
        print(f"error: {problem}", file=sys.stderr)
        return problem.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


def entry() -> None:
    """Be the command `tdro`: run it and end the process."""
    code = main()
    if "tdro.devices" in sys.modules:
        sys.modules["tdro.devices"].end_rank(code)
    sys.exit(code)


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Let SIGTERM interrupt as ctrl-C does, and both again after a second: libraries may swallow it."""
    again: list[threading.Timer] = []

    def interrupt(*_: object) -> None:
        again.append(threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)))
        again[-1].start()
        raise KeyboardInterrupt

    def ignored(thrown: "sys.UnraisableHookArgs") -> None:
        if not isinstance(thrown.exc_value, KeyboardInterrupt):  # in some __del__; it comes again
            sys.__unraisablehook__(thrown)

    if threading.current_thread() is not threading.main_thread():  # which alone may ask for signals
        yield
        return
    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    for name in (name for name, handler in before.items() if handler is not signal.SIG_IGN):
        signal.signal(name, interrupt)
    sys.unraisablehook = ignored
    try:
        yield
    finally:
        sys.unraisablehook = sys.__unraisablehook__
        for timer in again:
            timer.cancel()
        for name, handler in before.items():
            signal.signal(name, handler)


def _dispatch(verb: str, arguments: list[str]) -> int:
    """Call the module of a verb."""
    if verb == "demo":
        from tdro.cli import demo

        return demo.command(arguments)
    if verb == "weights" and arguments and arguments[0] in ("--replay", "--from-losses"):
        from tdro.cli import replay

        return replay.command(arguments)
    if verb in OTHER_VERBS:
        module = importlib.import_module(f"tdro.cli.{verb.replace('-', '_')}")
        return int(module.command(arguments))
    if verb == "mine" and arguments and not arguments[0].endswith((".yaml", ".yml", "-h", "--help")):
        from tdro.cli import mine

        return mine.command(arguments)
    if verb == "evaluate" and arguments and not arguments[0].endswith((".yaml", ".yml")):
        from tdro.cli import evaluate

        return evaluate.command(arguments)
    if verb in STUDY_VERBS:
        from tdro.cli import study

        return study.command(verb, STUDY_VERBS[verb], arguments)
    import difflib

    close = difflib.get_close_matches(verb, ["demo", *STUDY_VERBS, *OTHER_VERBS], n=1)
    do = f"did you mean {close[0]!r}?" if close else "see tdro --help"
    raise ConfigError("unknown verb", saw=verb, do=do)
