"""`python -m drakkar.actors`: see `cli`."""

import sys

from drakkar.actors.cli import main

sys.exit(main())
