"""One host of a benchmark's cluster: a process that takes orders, a JSON object a line, and answers each by another.

    {"system": "drakkar", "replica": 1, …}      -> {"started": true}
    {"do": "leads"}                             -> {"leads": true}
    {"do": "cpu"}                               -> {"cpu": 1.5}, the seconds of CPU time that it took so far
    {"do": "run", "load": {"in_flight": 64, …}} -> {"figures": {…}}, or {"error": "…"}
    {"do": "stop"}                              -> {"profile": "…"}, and it ends

The load runs in this process, as it would in an application that embeds the library.
"""

import importlib
import json
import sys
from dataclasses import asdict
from time import process_time
from typing import Any, Final

from tests.benchmarks.load import Load, LoadError, run
from tests.benchmarks.profiler import LoopProfiler

_TARGETS: Final = {
    "drakkar": ("tests.benchmarks.on_drakkar", "DrakkarTarget"),
    "pysyncobj": ("tests.benchmarks.on_pysyncobj", "PySyncObjTarget"),
}


def main() -> None:
    """Obey until told to stop, or until the orders end because their sender has ended."""
    who = json.loads(sys.stdin.readline())
    profiler = LoopProfiler() if who["profile"] else None
    if profiler is not None:
        profiler.start()
    module, name = _TARGETS[who["system"]]
    members = {int(replica): address for replica, address in who["members"].items()}
    target = getattr(importlib.import_module(module), name)(
        who["replica"], members, who["data_dir"], **who["options"]
    )
    try:
        _say({"started": True})
        _obey(target)
    finally:
        target.stop()
    _say({"profile": profiler.report() if profiler else ""})


def _obey(target: Any) -> None:
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "stop":
            return
        _say(_answer(target, order))


def _answer(target: Any, order: dict[str, Any]) -> dict[str, Any]:
    match order["do"]:
        case "leads":
            return {"leads": target.leads()}
        case "cpu":
            return {"cpu": process_time()}
        case _:
            try:
                return {"figures": asdict(run(target, Load(**order["load"])))}
            except LoadError as error:
                return {"error": str(error)}


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
