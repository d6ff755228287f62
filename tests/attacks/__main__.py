"""All attacks, one after the other, and the table of what they cost: python -m tests.attacks [arguments of pytest, such as -m 'not slow'].

A pace is a matter of seconds, in which the machine may have had other work. So one that was too slow is measured again, twice at most: what
an attack slows down is slow each time. All else that is wrong fails at once. The table has a row for each measurement.
"""

import sys
from pathlib import Path

import pytest

from tests.attacks.cluster import RESULTS, TOO_SLOW, table


def main():
    which = sys.argv[1:]
    if not which or which[0].startswith("-"):  # no files are named
        which.insert(0, str(Path(__file__).parent))
    try:
        return pytest.main(["-q", "-p", "no:cacheprovider", "--reruns=2", f"--only-rerun={TOO_SLOW}", *which])
    finally:
        print(table(RESULTS))


if __name__ == "__main__":
    sys.exit(main())
