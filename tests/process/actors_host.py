"""One host with published actors in a process of its own, which takes orders as `host` does.

    {"id": 1, "do": "publish", "name": "ledger", "kind": "trio"}           ->  {"id": 1, "value": null}
    {"id": 2, "do": "find", "address": "…", "name": "ledger"}              ->  {"id": 2, "value": {"run": 7, "actor": 9}}
    {"id": 3, "do": "ask", "name": "ledger", "method": "echo", "arguments": [1]}
                                                                           ->  {"id": 3, "value": 1}
    {"id": 4, "do": "held"}                                                ->  {"id": 4, "value": {"questions": 0, …}}

`find` keeps the reference under the name, or under another one. `ask`, `call`, `watch` and the like use what it keeps.
"""

import json
import logging
import sys
import threading
import time
from collections import Counter

import pykka
from drakkar.actors import (
    ActorFuture,
    DrakkarError,
    HostGone,
    NodeHost,
    Options,
    OutcomeUnknown,
    RemoteRef,
    SystemBusy,
    TlsConfig,
    TrioActor,
    unwatch,
    watch,
)
from drakkar.actors.remote.refs import Place

from tests.actors.support import TIMEOUT_S, until
from tests.process.calls_messages import KINDS, Do, Note, Numbered
from tests.process.host import Answers, obey
from tests.process.shards_host import memory_mib

SOON_S = 0.01
"""A pause before a sender tries again that was told SystemBusy."""


def told(error):
    """What became of a question, in one word, and whether that is certain."""
    match error:
        case None:
            return "answered"
        case HostGone():
            return "gone"
        case OutcomeUnknown():
            return "unknown"
        case SystemBusy():
            return "busy"
        case pykka.ActorDeadError():
            return "dead"
        case _:
            return f"{type(error).__name__}: {error}"


class Sender:
    """Tells and asks an actor numbers, each once, until it is told to stop; in a thread of its own.

    Each number that it has begun to say has an outcome: of a `tell` that was taken nothing is known.
    """

    def __init__(self, ref, name, within):
        self._ref, self._name, self._within = ref, name, within
        self._over = threading.Event()
        self._lock = threading.Lock()
        self.outcomes, self.answered = {}, 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        number = 0
        while not self._over.is_set():
            note = Note(self._name, number)
            if number % 4 == 3:
                self._tell(note)
            else:
                self._ask(note)
            number += 1
            if number % 8 == 0:
                self._over.wait(0.002)  # so that many thousands are not on their way at once

    def _tell(self, note):
        try:
            self._ref.tell(note)
        except (DrakkarError, pykka.ActorDeadError) as error:
            self._note(note.number, told(error))
        else:
            self._note(note.number, "told")

    def _ask(self, note):
        self._note(note.number, "open")
        try:
            future = self._ref.ask(note, block=False, timeout=self._within)
        except DrakkarError as error:
            self._note(note.number, told(error))
            return
        future.add_done_callback(lambda done: self._note(note.number, told(done.outcome()[1])))

    def _note(self, number, outcome):
        with self._lock:
            self.outcomes[number] = outcome
            self.answered += outcome == "answered"

    def end(self):
        """Wait until all have an outcome, and return them."""
        self._over.set()
        self._thread.join(TIMEOUT_S)
        until(lambda: "open" not in self._copy().values())
        return self._copy()

    def _copy(self):
        with self._lock:
            return dict(self.outcomes)


class Orders:
    """What the host can be told. Each waits in a thread of its own."""

    def __init__(self, host):
        self._host = host
        self._actors, self._refs, self._senders = {}, {}, {}
        self._taken = {}
        self._asked, self._notices = [], []

    # ---- the actors of this host

    def publish(self, name, kind="thread", proxy=True, acl=None):
        loop = {"loop": self._host.loop} if kind == "trio" else {}
        actor = self._actors[name] = KINDS[kind].start(**loop)
        self._host.publish(name, actor, proxy=proxy, acl=acl)

    def unpublish(self, name):
        return self._host.unpublish(name)

    def published(self):
        return sorted(self._host.published)

    def end(self, name):
        """Stop an actor, and wait until its name is free."""
        self._actors.pop(name).stop()
        until(lambda: name not in self._host.published)

    def let_go(self, name):
        """Have the actor's method `hang` return."""
        self._actors[name]._actor_weakref()._let_go()

    def end_spawned(self):
        """Stop all that were started by `Keeper.spawn` and `refs_in_one_message`."""
        for ref in pykka.ActorRegistry.get_by_class(Numbered):
            ref.stop(block=False)
        until(lambda: not pykka.ActorRegistry.get_by_class(Numbered))

    def place(self, name):
        """Where others would find an actor of this host."""
        actor = self._host._calls._published.by_name(name)
        return {"run": self._host._transport.run, "actor": actor.number}

    def seen(self, name):
        """What an actor was told, by sender."""
        seen = self._actors[name]._actor_weakref()._seen
        return {
            sender: {"numbers": sorted(each.numbers), "twice": each.twice, "late": each.late}
            for sender, each in list(seen.items())
        }

    def held(self):
        """What this host holds for others, and of them: what must not grow for ever."""
        figures = self._host.metrics()
        names = {
            "asked": "remote_questions",
            "questions": "remote_questions_open",
            "watched": "remote_watches",
            "watches": "remote_watchers",
            "actors": "remote_published",
            "waiting": "lane_calls_waiting",
        }
        slots = self._host._calls._deadlines._slots.values()
        return {name: figures[figure] for name, figure in names.items()} | {"deadlines": sum(map(len, slots))}

    def counters(self):
        return self._host.counters

    def memory(self):
        return memory_mib("VmRSS")

    def peak(self):
        return memory_mib("VmHWM")

    def connected(self, address):
        return self._host.peers()[address].connected

    def states(self):
        return {address: peer.state.value for address, peer in self._host.peers().items()}

    # ---- those of others

    def find(self, address, name, within=5.0, key=None):
        ref = self._refs[key or name] = self._host.remote(address, name, timeout=within)
        return {"run": ref.place.run, "actor": ref.place.number, "class": ref.class_name}

    def names(self, address, within=5.0):
        return self._host.remote_names(address, timeout=within)

    def guess(self, address, run, actor, key):
        """Make a reference to an actor that this host was not told of."""
        self._refs[key] = RemoteRef(
            self._host._calls._asking, Place(address, run, actor), attributes={"echo": True}
        )

    def alive(self, name):
        return self._refs[name].is_alive()

    def ask(self, name, method, arguments=(), within=5.0):
        return self._refs[name].ask(Do(method, list(arguments)), timeout=within)

    def call(self, name, method, arguments=(), within=5.0):
        """Call a method through a proxy."""
        return getattr(self._refs[name].proxy(), method).within(within)(*arguments).get(timeout=TIMEOUT_S)

    def attribute(self, name, attribute, value=None):
        """Read an attribute through a proxy, after it was set if there is a value."""
        proxy = self._refs[name].proxy()
        if value is not None:
            setattr(proxy, attribute, value)
        return getattr(proxy, attribute).get(timeout=TIMEOUT_S)

    def tell(self, name, method, arguments=()):
        self._refs[name].tell(Do(method, list(arguments)))

    def took(self, name, method, arguments=(), within=5.0, block=True):
        """What became of a question, and after how many seconds."""
        ref, began = self._refs[name], time.monotonic()
        try:
            asked = ref.ask(Do(method, list(arguments)), timeout=within, block=block)
            value = asked if block else asked.get(timeout=within + TIMEOUT_S)
        except Exception as error:  # noqa: BLE001  # it is the answer
            return {"error": type(error).__name__, "text": str(error), "seconds": time.monotonic() - began}
        return {"value": value, "seconds": time.monotonic() - began}

    def ask_many(self, name, method, count, within, arguments=(), size=0):
        """Ask so often at once. Those that are refused in this thread are counted, `asked` tells of the others."""
        busy, padding = 0, [b"x" * size] if size else []
        for _ in range(count):
            try:
                future = self._refs[name].ask(Do(method, [*arguments, *padding]), timeout=within, block=False)
            except SystemBusy:
                busy += 1
                continue
            self._asked.append(future)
        return busy

    def asked(self):
        """How many of these have which outcome now."""
        return Counter(told(future.outcome()[1]) if future.done else "open" for future in self._asked)

    def forget_asked(self):
        self._asked = []

    def on_the_loop(self, name, method, arguments=()):
        """Ask from a task of the host's loop, and from an actor on it."""
        ref = self._refs[name]

        async def ask():
            return await ref.ask(Do(method, list(arguments)), block=False)

        class Asker(TrioActor):
            def on_receive(self, message):
                return ref.ask(message, block=False)

        asker = Asker.start(loop=self._host.loop)
        answer = asker.ask(Do(method, list(arguments)), timeout=TIMEOUT_S)
        asker.stop()
        by_actor = answer.get(timeout=TIMEOUT_S) if isinstance(answer, ActorFuture) else answer
        return [self._host.loop.call(ask, timeout=TIMEOUT_S), by_actor]

    def fill(self, name, size, most):
        """Tell large numbers until one is refused; return how many were not, and the slowest `tell`."""
        slowest, padding = 0.0, b"x" * size
        for number in range(most):
            began = time.monotonic()
            try:
                self._refs[name].tell(Note("filler", number, padding))
            except SystemBusy as busy:
                return {"told": number, "text": str(busy), "slowest": max(slowest, time.monotonic() - began)}
            slowest = max(slowest, time.monotonic() - began)
        return {"told": most, "text": "", "slowest": slowest}

    def flood(self, name, count, threads, prefix, size=0):
        """Tell so many numbers from each of several threads, and wait where the lane is full; return how often it was."""
        ref, busy = self._refs[name], Counter()

        def tell_all(sender):
            for number in range(count):
                while not self._told(ref, Note(sender, number, b"x" * size)):
                    busy[sender] += 1
                    time.sleep(SOON_S)

        senders = [threading.Thread(target=tell_all, args=(f"{prefix}{n}",)) for n in range(threads)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join(4 * TIMEOUT_S)
        return sum(busy.values())

    @staticmethod
    def _told(ref, note):
        try:
            ref.tell(note)
        except SystemBusy:
            return False
        return True

    def send(self, name, threads, prefix, within=1.0):
        """Tell and ask numbers from so many threads, until `sent` is ordered."""
        for number in range(threads):
            sender = f"{prefix}{number}"
            self._senders[sender] = Sender(self._refs[name], sender, within)

    def answered(self):
        """How many were answered so far."""
        return sum(each.answered for each in self._senders.values())

    def sent(self):
        """End that; return what became of each number, by sender."""
        senders, self._senders = self._senders, {}
        return {name: sender.end() for name, sender in senders.items()}

    # ---- references

    def refs_in_one_message(self, name, count):
        """Send so many references of actors of this host, have the other one ask them, and get them back.

        Returns whether each came back as what it was.
        """
        mine = [Numbered.start(number) for number in range(count)]
        kept = self._refs[name].ask(Do("keep", [mine]), timeout=TIMEOUT_S)
        back = self._refs[name].ask(Do("give"), timeout=TIMEOUT_S)
        return kept == count and all(ref is own for ref, own in zip(back, mine, strict=True))

    def ask_kept(self, name):
        """Ask all actors whose references an actor of this host keeps; return their answers, in order."""
        kept = self._actors[name]._actor_weakref()._kept
        futures = [ref.ask("who", timeout=TIMEOUT_S, block=False) for ref in kept]
        return [future.get(timeout=TIMEOUT_S) for future in futures]

    def take(self, name):
        """Have an actor elsewhere give the references that it keeps; return how many."""
        taken = self._refs[name].ask(Do("give"), timeout=TIMEOUT_S)
        self._taken[name] = taken
        return len(taken)

    def ask_taken(self, name):
        """Ask all of these; return their answers, in order."""
        futures = [ref.ask("who", timeout=TIMEOUT_S, block=False) for ref in self._taken[name]]
        return [future.get(timeout=TIMEOUT_S) for future in futures]

    def watch_spawned(self, name, count):
        """Have an actor elsewhere start so many, and watch them all."""
        spawned = self._refs[name].ask(Do("spawn", [count]), timeout=TIMEOUT_S)
        self._refs |= {f"{name} {number}": ref for number, ref in enumerate(spawned)}
        for ref in spawned:
            watch(ref, self._notice)
        return sum(ref.is_alive() for ref in spawned)

    def watch(self, name):
        watch(self._refs[name], self._notice)

    def unwatch(self, name):
        return unwatch(self._refs[name], self._notice)

    def unwatch_spawned(self, name, count):
        return sum(self.unwatch(f"{name} {number}") for number in range(count))

    def _notice(self, died):
        self._notices.append((died.ref.actor_urn, died.reason, time.monotonic()))

    def notices(self):
        """How many notices came, of how many actors, and with which reasons."""
        notices = list(self._notices)
        return {
            "count": len(notices),
            "actors": len({urn for urn, *_ in notices}),
            "reasons": Counter(type(reason).__name__ for _, reason, _ in notices),
            "texts": sorted({str(reason)[:200] for _, reason, _ in notices})[:5],
        }

    def forget_notices(self):
        self._notices = []


def main():
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    who = json.loads(sys.stdin.readline())
    answers = Answers()
    with NodeHost(
        who["members"][str(who["replica"])],
        who["data"],
        listen_address=who.get("listen"),
        tick_interval=who["tick"],
        tls=TlsConfig(**who["tls"]) if "tls" in who else None,
        transport_options=Options(**who.get("options", {})),
    ) as host:
        obey(Orders(host), answers)


if __name__ == "__main__":
    main()
