"""One of two processes of a benchmark of calls: it takes orders, a JSON object a line, and answers each by another.

{"target": "calls_on_drakkar:Calls", "asked": "", …}  -> {"address": "127.0.0.1:7000"}: it has an actor, which others ask there
{"target": "calls_on_drakkar:Calls", "asked": "…", …} -> {"address": ""}: it asks the actor of the other process
{"do": "run", "load": {"in_flight": 100, …}}          -> {"figures": {…}}, or {"error": "…"}
{"do": "stop"}                                        -> {"stopped": true}, and it ends
"""

import importlib
import json
import sys
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any, Protocol

from tests.benchmarks.host import say, spare_the_garbage_collector
from tests.benchmarks.load import Figures, Load, LoadError


class Calls(Protocol):
    """One system, in either of the two processes. A context manager."""

    address: str
    """Where the actor is asked; empty in the process that asks."""

    def run(self, load: Load) -> Figures:
        """Ask, with so many questions on their way. Raises `LoadError` if a single one fails."""
        ...


def main() -> None:
    """Obey until told to stop, or until the orders end because their sender has ended."""
    who = json.loads(sys.stdin.readline())
    module, _, name = who["target"].partition(":")
    made: AbstractContextManager[Calls] = getattr(
        importlib.import_module(f"tests.benchmarks.{module}"), name
    )(who["asked"], **who["options"])
    with made as calls:
        spare_the_garbage_collector()
        say({"address": calls.address})
        for line in sys.stdin:
            order: dict[str, Any] = json.loads(line)
            if order["do"] == "stop":
                break
            try:
                say({"figures": asdict(calls.run(Load(**order["load"])))})
            except LoadError as error:
                say({"error": str(error)})
    say({"stopped": True})


if __name__ == "__main__":
    main()
