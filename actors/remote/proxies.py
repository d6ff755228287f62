"""Proxies for actors of other hosts: their methods and attributes, as far as these were published for proxies."""

from typing import Any, cast

import pykka
from drakkar.actors.remote.records import Attributes
from drakkar.actors.runtime.futures import ActorFuture
from pykka.messages import ProxyCall, ProxyGetAttr, ProxySetAttr

__all__ = ["RemoteMethod", "RemoteProxy"]


class RemoteProxy:
    """Used like a `pykka.ActorProxy`: a method returns a future, and so does an attribute. `RemoteRef.proxy` makes it.

    Setting an attribute waits until it is set. A call has the default deadline; `proxy.method.within(3.0)(…)` has another.
    """

    def __init__(self, ref: pykka.ActorRef[Any], there: Attributes, path: tuple[str, ...] = ()) -> None:
        """`there`: what it reaches, below the attributes of `path`."""
        self.actor_ref = ref
        self._there, self._path = there, path

    def __repr__(self) -> str:
        return f"<RemoteProxy for {'.'.join((str(self.actor_ref), *self._path))}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RemoteProxy):
            return NotImplemented
        return (self.actor_ref, self._path) == (other.actor_ref, other._path)

    def __hash__(self) -> int:
        return hash((self.actor_ref, self._path))

    def __dir__(self) -> list[str]:
        return sorted({*object.__dir__(self), *self._there})

    def _kind(self, name: str) -> bool | Attributes:
        kind = self._there.get(name)
        if kind is None:
            raise AttributeError(
                f"{self!r} has no {name!r}: it reaches {', '.join(sorted(self._there)):.300}, which is what there was, and was "
                "public, when it was published"
            )
        return kind

    def __getattr__(self, name: str) -> Any:
        # Also what Python itself looks for, such as `__deepcopy__`, perhaps before there is anything to look in.
        if name.startswith("_"):
            raise AttributeError(f"a proxy reaches public methods and attributes only, and not {name!r}")
        kind = self._kind(name)
        path = (*self._path, name)
        if kind is True:
            return RemoteMethod(self.actor_ref, path)
        if kind is False:
            return self.actor_ref.ask(ProxyGetAttr(path), block=False)
        return RemoteProxy(self.actor_ref, kind, path)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "actor_ref" or name.startswith("_"):
            super().__setattr__(name, value)
            return
        if self._kind(name) is not False:
            raise AttributeError(f"{name!r} of {self!r} is no attribute that can be set")
        self.actor_ref.ask(ProxySetAttr((*self._path, name), value))


class RemoteMethod:
    """One method of an actor of another host."""

    def __init__(self, ref: pykka.ActorRef[Any], path: tuple[str, ...], timeout: float | None = None) -> None:
        self.actor_ref = ref
        self._path, self._timeout = path, timeout

    def __repr__(self) -> str:
        return f"<RemoteMethod {'.'.join((str(self.actor_ref), *self._path))}>"

    def __call__(self, *args: Any, **kwargs: Any) -> ActorFuture[Any]:
        """Call it, and return the future of what it returns."""
        call = ProxyCall(self._path, args, kwargs)
        return cast("ActorFuture[Any]", self.actor_ref.ask(call, block=False, timeout=self._timeout))

    def defer(self, *args: Any, **kwargs: Any) -> None:
        """Call it, and ask for no answer. What it raises ends the actor, as with a message that was told."""
        self.actor_ref.tell(ProxyCall(self._path, args, kwargs))

    def within(self, timeout: float) -> "RemoteMethod":
        """Return the same method with another deadline, in seconds."""
        return RemoteMethod(self.actor_ref, self._path, timeout)
