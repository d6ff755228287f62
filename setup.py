"""What pyproject.toml cannot say: with DRAKKAR_COMPILE=1 in the environment, a wheel has its hot modules compiled by mypyc.

`[tool.drakkar]` in pyproject.toml lists them. The sources are in the wheel as well; Python prefers what is compiled.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

from setuptools import setup

ROOMS = ("handlers", "transport", "actors")
NAMES = Path("build/names")
PARTS = Path("build/parts")


def main() -> None:
    """Build what the command line asks for."""
    wanted = os.environ.get("DRAKKAR_COMPILE", "0")
    if wanted not in {"0", "1"}:
        sys.exit(f"DRAKKAR_COMPILE={wanted}: set it to 1 to compile the core, or leave it out")
    # Asking for requirements and metadata compiles nothing, and happens before the compiler is installed.
    building = {"bdist_wheel", "build_ext", "editable_wheel"} & set(sys.argv)
    if wanted == "1" and building:
        # Anew: setuptools would pack what an earlier build left, such as a module that is not compiled any more.
        shutil.rmtree(PARTS, ignore_errors=True)
        setup(ext_modules=compiled(), options={"build": {"build_base": str(PARTS)}})
    else:
        setup()


def compiled() -> list[Any]:
    """The extension modules."""
    if "editable_wheel" in sys.argv:
        sys.exit(
            "DRAKKAR_COMPILE=1: an editable install runs the sources as they are, so it is not compiled: "
            "leave DRAKKAR_COMPILE out, or build a wheel"
        )
    check_compiler()
    from mypyc.build import mypycify  # noqa: PLC0415  # only this build has it

    settings = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["drakkar"]
    interpreted = set(settings["interpreted"])
    name_rooms()
    files = [
        str(NAMES / "drakkar" / path)
        for pattern in settings["compiled"]
        for path in sorted(Path().glob(pattern))
        if path.name != "__init__.py" and str(path) not in interpreted
    ]
    os.environ["MYPYPATH"] = str(NAMES)
    return mypycify(
        ["--config-file=pyproject.toml", *files], opt_level="2", debug_level="0", group_name="drakkar"
    )


def name_rooms() -> None:
    """Show mypyc the folders under the names by which they are imported."""
    (NAMES / "drakkar").mkdir(parents=True, exist_ok=True)
    for room in ROOMS:
        link = NAMES / "drakkar" / room
        link.unlink(missing_ok=True)
        link.symlink_to(Path(room).resolve())


def check_compiler() -> None:
    """Stop, and say what to do, where no C compiler or no header of Python is found: setuptools would say less, and late."""
    compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    command = [*shlex.split(compiler), f"-I{sysconfig.get_path('include')}", "-x", "c", "-E", "-"]
    try:
        ran = subprocess.run(  # noqa: S603  # the compiler that the build itself would run
            command, input="#include <Python.h>\n", capture_output=True, text=True, check=False
        )
        fault = ran.stderr.strip() if ran.returncode else ""
    except OSError as error:
        fault = str(error)
    if fault:
        sys.exit(
            f"DRAKKAR_COMPILE=1 needs a C compiler and the headers of Python, and cannot use them here: {fault}\n"
            "Install them (on Debian: gcc, libc6-dev and python3-dev), or leave DRAKKAR_COMPILE out: "
            "the wheel is then interpreted, and does the same, only slower."
        )


main()
