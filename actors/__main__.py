"""`python -m drakkar.actors`: see `cli`."""

import sys

from drakkar.actors.tools.cli import main

sys.exit(main())
