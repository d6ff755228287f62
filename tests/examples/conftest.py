"""What the tests of the examples share."""

import signal

import pytest

from tests.examples.support import Program

# A shell that runs the tests in the background has them ignore Ctrl-C. What they start would inherit that, and has to end by it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def run(tmp_path):
    """Start programs of the examples, each with a log of its own; they end with the test."""
    programs = []

    def start(module, *options):
        log = tmp_path / f"{module}-{len(programs)}.log"
        programs.append(Program(log, "-m", f"examples.{module}", *options))
        return programs[-1]

    yield start
    for program in programs:
        program.clean_up()
