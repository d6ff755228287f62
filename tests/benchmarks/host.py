"""One host of a benchmark's cluster: a process that takes orders, a JSON object a line, and answers each by another.

    {"system": "drakkar", "replica": 1, …}      -> {"started": true}
    {"do": "leads"}                             -> {"leads": true}
    {"do": "run", "load": {"in_flight": 64, …}} -> {"figures": {…}}, or {"error": "…"}
    {"do": "recover", "within": 30}             -> {"recovered": true} as soon as a command is answered, or {"error": "…"}
    {"do": "lead", "within": 60}                -> {"led": true} as soon as it leads all shards, or {"error": "…"}; only Drakkar
    {"do": "recover_all", "within": 30, "since": 7.5} -> {"times": […]}, as `recovery.recover_all` says; only Drakkar
    {"do": "fairness", "load": {…}, "seconds": 5} -> {"times": […], …}, as `fairness.measure` says; only Drakkar
    {"do": "stop"}                              -> {"profile": "…"}, and it ends

The programs in `peers` take the same orders. The load runs in this process, as it would in an application that embeds the library.
"""

import gc
import importlib
import json
import sys
from dataclasses import asdict
from typing import Any, Final

from tests.benchmarks import fairness
from tests.benchmarks.load import Load, LoadError, run
from tests.benchmarks.profiler import LoopProfiler
from tests.benchmarks.recovery import recover
from tests.benchmarks.tracer import Tracer

_TARGETS: Final = {
    "drakkar": ("tests.benchmarks.on_drakkar", "DrakkarTarget"),
    "drakkar-compiled": ("tests.benchmarks.on_drakkar", "DrakkarTarget"),
    "pysyncobj": ("tests.benchmarks.on_pysyncobj", "PySyncObjTarget"),
}

_WATCHERS: Final[dict[str, type[LoopProfiler | Tracer]]] = {"loop": LoopProfiler, "trace": Tracer}


def main() -> None:
    """Obey until told to stop, or until the orders end because their sender has ended."""
    who = json.loads(sys.stdin.readline())
    watcher = _WATCHERS[who["watch"]]() if who["watch"] else None
    if watcher is not None:
        watcher.start()
    module, name = _TARGETS[who["system"]]
    members = {int(replica): address for replica, address in who["members"].items()}
    target = getattr(importlib.import_module(module), name)(
        who["replica"], members, who["data_dir"], **who["options"]
    )
    try:
        spare_the_garbage_collector()
        say({"started": True})
        _obey(target)
    finally:
        target.stop()
    say({"profile": watcher.report() if watcher else ""})


def spare_the_garbage_collector() -> None:
    """As docs/performance.md advises an application that embeds the library."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)


def _obey(target: Any) -> None:
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "stop":
            return
        try:
            say(_answer(target, order))
        except LoadError as error:
            say({"error": str(error)})


def _answer(target: Any, order: dict[str, Any]) -> dict[str, Any]:
    match order["do"]:
        case "leads":
            return {"leads": target.leads()}
        case "run":
            return {"figures": asdict(run(target, Load(**order["load"])))}
        case "recover":
            recover(target, order["within"])
            return {"recovered": True}
        case "lead":
            target.lead(order["within"])
            return {"led": True}
        case "recover_all":
            return {"times": target.recover_all(order["within"], order["since"])}
        case "fairness":
            return fairness.measure(target, order)
        case unknown:
            return {"error": f"no such order: {unknown!r}"}


def say(answer: dict[str, Any]) -> None:
    """Answer an order."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
