"""What the peers of other languages need: Go, by which their programs are built, and Debian's etcd."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from tests.benchmarks.systems import Unavailable

SOURCES: Final = Path(__file__).parent / "peers"
BUILT: Final = Path(__file__).resolve().parents[2] / "build" / "peers"
COMPILED: Final = BUILT.parent / "compiled"
"""The virtual environment that `make wheel` makes."""

_SHARED: Final = "load"
"""The module that both programs use."""


def program(name: str) -> Path:
    """The program of a peer, "dragonboat" or "etcd", built if its sources changed. Raises `Unavailable`."""
    built = BUILT / f"{name}-{_digest(name)}"
    if not built.exists():
        _build(name, built)
    return built


def _digest(name: str) -> str:
    digest = hashlib.sha256()
    for file in sorted(path for folder in (name, _SHARED) for path in (SOURCES / folder).iterdir()):
        digest.update(f"{file.name}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _build(name: str, built: Path) -> None:
    go = shutil.which("go")
    if go is None:
        raise Unavailable("Go is missing: install Go 1.22 or newer, such as Debian's golang-go")
    built.parent.mkdir(parents=True, exist_ok=True)
    # Renamed into place, so that a build that was interrupted is not taken for a program.
    unfinished = built.with_suffix(f".{os.getpid()}")
    ran = subprocess.run(
        [go, "build", "-o", str(unfinished), "."],
        cwd=SOURCES / name,
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise Unavailable(f"`go build` failed in {SOURCES / name}: {ran.stderr.strip()[-1000:]}")
    unfinished.rename(built)
    for older in built.parent.glob(f"{name}-*"):
        if older != built and not older.suffix:
            older.unlink()


def compiled_python() -> str:
    """The interpreter that has Drakkar with its core compiled. Raises `Unavailable`."""
    if not (COMPILED / "ready").exists():
        raise Unavailable("the compiled core is missing: `make wheel`")
    return str(COMPILED / "bin" / "python")


def etcd() -> str:
    """The etcd server's program. Raises `Unavailable`."""
    found = shutil.which("etcd")
    if found is None:
        raise Unavailable("etcd is missing: on Debian, `apt-get install etcd-server`")
    return found


def prepare(system: str) -> None:
    """Build what a system needs, once for all its clusters. Raises `Unavailable`."""
    if system == "drakkar-compiled":
        compiled_python()
    if system == "etcd":
        etcd()
    if system == "xoscar" and importlib.util.find_spec("xoscar") is None:
        raise Unavailable("xoscar is missing: `pip install xoscar`, where there is one for this Python")
    if system in {"etcd", "dragonboat"}:
        program(system)


def versions() -> dict[str, str]:
    """The versions of what is there."""
    found = {"go": ["go", "env", "GOVERSION"], "etcd": ["etcd", "--version"]}
    return {
        "dragonboat": _required("dragonboat", "github.com/lni/dragonboat/v4"),
        **{name: _first_line(command) for name, command in found.items() if shutil.which(name)},
    }


def _required(name: str, module: str) -> str:
    lines = (SOURCES / name / "go.mod").read_text().splitlines()
    return next(line.split()[-1] for line in lines if module in line)


def _first_line(command: list[str]) -> str:
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return output.partition("\n")[0].removeprefix("etcd Version: ")
