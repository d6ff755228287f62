"""One host of a benchmark's cluster: a process that takes orders, a JSON object a line, and answers each by one.

{"do": "leads"}                            -> {"leads": true}
{"do": "cpu"}                              -> {"seconds": 1.5}, of CPU time so far
{"do": "run", "load": {"in_flight": 64, …}} -> {"figures": {…}}
{"do": "stop"}                             -> {"profile": {…}}, and it ends

It is told who it is by one more such line, the first: the system, its options, the members and the data directory.
The load runs in this process, as it would in an application that embeds the library.
"""

import json
import sys
from collections.abc import Callable
from time import process_time
from typing import Any, Final

from tests.benchmarks.load import Load, LoadError, run
from tests.benchmarks.on_drakkar import DrakkarTarget
from tests.benchmarks.on_pysyncobj import PySyncObjTarget
from tests.benchmarks.profiler import Profiler

SYSTEMS: Final[dict[str, Callable[..., Any]]] = {"drakkar": DrakkarTarget, "pysyncobj": PySyncObjTarget}


def main() -> None:
    """Obey until told to stop, or until the orders end because whoever gives them has ended."""
    who = json.loads(sys.stdin.readline())
    profiler = Profiler() if who["profile"] else None
    if profiler:
        profiler.start()
    members = {int(replica): address for replica, address in who["members"].items()}
    target = SYSTEMS[who["system"]](who["replica"], members, who["data_dir"], **who["options"])
    try:
        _obey(target)
    finally:
        target.stop()
    _say({"profile": profiler.report() if profiler else {}})


def _obey(target: Any) -> None:
    _say({"started": True})
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "stop":
            return
        _say(_answer(target, order))


def _answer(target: Any, order: dict[str, Any]) -> dict[str, Any]:
    if order["do"] == "leads":
        return {"leads": target.leads()}
    if order["do"] == "cpu":
        return {"seconds": process_time()}
    before = target.counters()
    try:
        figures = run(target, Load.of(order["load"]))
    except LoadError as error:
        return {"error": str(error)}
    after = target.counters()
    return {
        "figures": figures.as_dict(),
        "counters": {name: after[name] - before[name] for name in after},
    }


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
