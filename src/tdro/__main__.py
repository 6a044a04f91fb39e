"""`python -m tdro` is `tdro`."""

from tdro.cli.main import entry

entry()
