"""All attacks, one after the other, and the table of what they cost: python -m tests.attacks [arguments of pytest, such as -m 'not slow']."""

import sys
from pathlib import Path

import pytest

from tests.attacks.cluster import RESULTS, table


def main():
    which = sys.argv[1:]
    if not which or which[0].startswith("-"):  # no files are named
        which.insert(0, str(Path(__file__).parent))
    try:
        return pytest.main(["-q", "-p", "no:cacheprovider", *which])
    finally:
        print(table(RESULTS))


if __name__ == "__main__":
    sys.exit(main())
