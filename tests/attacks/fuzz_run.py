"""`python -m tests.attacks.fuzz_run`: the fuzz of one decoder after the other, and of whole connections, led by coverage.

It needs atheris, which installs on Linux with some versions of Python; without it, it says so and ends. What it finds it prints,
and leaves as a file `crash-...` in the current directory: name that file with `--again` to try it once more.
"""

import argparse
import importlib.util
import logging
import subprocess
import sys
import tempfile
from pathlib import Path

CONNECTION = "connection"
MAX_BYTES = 4096
HANG_S = 20
"""Seconds after which one input counts as one that hangs."""


def main() -> int:
    """Fuzz each target in a process of its own, since atheris ends its process."""
    options = _options()
    if options.one:
        _fuzz(options.one, options.seconds, options.again)
        return 0
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed, so nothing is fuzzed: pip install atheris, where there is one")
        return 0
    failed = []
    for name in options.targets or _names():
        print(f"-- {name}, {options.seconds} s", flush=True)
        command = [
            sys.executable,
            "-m",
            "tests.attacks.fuzz_run",
            "--one",
            name,
            f"--seconds={options.seconds}",
        ]
        again = [f"--again={options.again}"] if options.again else []
        if subprocess.run([*command, *again], check=False).returncode:
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "nothing was found")
    return bool(failed)


def _names() -> list[str]:
    from tests.attacks.fuzz_decoders import DECODERS

    return [*DECODERS, CONNECTION]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.attacks.fuzz_run", description=__doc__)
    parser.add_argument("targets", nargs="*", help=f"names of decoders, or {CONNECTION}; all by default")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--again", help="a file that was found")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = sorted({*options.targets} - {*_names()}) if options.targets else []
    if unknown:
        parser.error(f"there is no target {', '.join(unknown)}: choose from {', '.join(_names())}")
    return options


def _fuzz(name: str, seconds: int, again: str | None) -> None:
    import atheris

    # What it is led by must be imported here, and by nothing before.
    with atheris.instrument_imports(include=["drakkar"]):
        from tests.attacks.fuzz_connection import Victim
        from tests.attacks.fuzz_decoders import DECODERS
        from tests.attacks.fuzz_seeds import SEEDS
    logging.getLogger("drakkar").propagate = False
    if name == CONNECTION:
        victim = Victim()
        target, seeds = victim.hear, [bytes([how]) + bytes(range(256)) for how in range(4)]
    else:
        target, seeds = DECODERS[name], SEEDS[name]()
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds):
            (Path(corpus) / str(number)).write_bytes(seed)
        bounds = [f"-max_total_time={seconds}", f"-max_len={MAX_BYTES}", f"-timeout={HANG_S}", corpus]
        atheris.Setup([name, *([again] if again else bounds)], target)
        atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
