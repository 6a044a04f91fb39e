"""`python -m tdro` is `tdro`."""

import sys

from tdro.cli.main import main

sys.exit(main())
