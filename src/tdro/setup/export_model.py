"""A trained model as a folder that others can load and read about, and on the hub."""

import shutil
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError

from tdro import __version__
from tdro.errors import ConfigError, EnvironmentProblem
from tdro.files import atomic_folder, write_text
from tdro.prepare.card import card_of
from tdro.setup.model_card import card_text
from tdro.setup.options import show
from tdro.setup.run_facts import RunFacts

EXTRAS = "tdro"
"""Folder inside the model's, for what belongs to tdro: loaders do not look into it."""


def export_model(facts: RunFacts, target: Path, name: str = "") -> list[str]:
    """Write a model with its card to a folder, which plain `SentenceTransformer(folder)` loads.

    Beside the model: `README.md`, `tdro/study.yaml`, `tdro/weights.json` where weights were learned, and
    `tdro/data-card.md` where `tdro check` was run.

    Args:
        facts: Of the run.
        target: The folder; it appears when it is complete.
        name: Of the model in its card; empty: that of the folder.

    Returns:
        The files, relative to the folder.

    Raises:
        ConfigError: The folder holds something already.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError("the folder holds something already", where=target, do="give a folder that is not there yet")
    with atomic_folder(target) as fresh:
        shutil.copytree(facts.model, fresh, dirs_exist_ok=True)
        (fresh / EXTRAS).mkdir()
        write_text(fresh / "README.md", card_text(facts, name or target.resolve().name))
        write_text(fresh / EXTRAS / "study.yaml", _study_text(facts))
        weights = facts.folder / "weights" / "weights.json"
        if weights.is_file():
            shutil.copy(weights, fresh / EXTRAS / "weights.json")
        if facts.check is not None:
            write_text(fresh / EXTRAS / "data-card.md", card_of(facts.check))
    return sorted(file.relative_to(target).as_posix() for file in target.rglob("*") if file.is_file())


def _study_text(facts: RunFacts) -> str:
    """Write the study as it ran, with what was changed on the command line; the run folder is another one elsewhere."""
    study = facts.study.model_copy(update={"output": ""})
    version = facts.ran.get("versions", {}).get("tdro", __version__)
    lines = (line for line, _ in show(study, only_changed=True))
    return "\n".join([f"# As it ran; what is not here has the default of tdro {version}.", *lines]) + "\n"


def push(folder: Path, repository: str, *, public: bool = False, endpoint: str | None = None) -> str:
    """Upload a folder to the hub; a repository that is not there is made.

    Args:
        folder: What `export_model` wrote.
        repository: OWNER/NAME.
        public: Whether a new repository can be seen by everybody; one that is there stays as it is.
        endpoint: Of another hub; None: as HF_ENDPOINT says.

    Returns:
        Address of the commit.

    Raises:
        ConfigError: The name is none.
        EnvironmentProblem: There is no network, no token, or the token may not write there.
    """
    owner, slash, name = repository.partition("/")
    if not (owner and slash and name) or "/" in name:
        raise ConfigError("this names no repository", where="--push", saw=repository, do="give OWNER/NAME")
    api = HfApi(endpoint=endpoint)
    by_hand = f"the folder is complete: hf upload {repository} {folder}"
    try:
        api.create_repo(repository, private=not public, exist_ok=True)
        return str(
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Exported by tdro").commit_url
        )
    except LocalTokenNotFoundError as error:
        do = f"log in with `hf auth login`, or set HF_TOKEN; {by_hand}"
        raise EnvironmentProblem("the hub wants a token", where=repository, saw=str(error), do=do) from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        login = "log in with `hf auth login`, or set HF_TOKEN to one that may write; " if status in (401, 403) else ""
        what = "the hub refused it" if status else "the hub could not be asked"
        raise EnvironmentProblem(what, where=repository, saw=str(error).splitlines()[0], do=login + by_hand) from error
    except (HTTPError, OSError) as error:
        do = f"look at the network; {by_hand}"
        raise EnvironmentProblem("the hub was not reached", where=repository, saw=str(error), do=do) from error
    except ValueError as error:
        raise ConfigError("the hub takes no such name", where="--push", saw=str(error), do="give OWNER/NAME") from error
