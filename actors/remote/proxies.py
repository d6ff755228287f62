"""Proxies for actors of other hosts: their methods and attributes, as far as these were published for proxies."""

from typing import TYPE_CHECKING, Any

import pykka
from drakkar.actors.remote.records import Attributes
from drakkar.actors.runtime.futures import ActorFuture
from pykka.messages import ProxyCall, ProxyGetAttr, ProxySetAttr

if TYPE_CHECKING:
    from drakkar.actors.remote.refs import RemoteRef

__all__ = ["RemoteMethod", "RemoteProxy"]


class RemoteProxy:
    """Used like a `pykka.ActorProxy`: a method returns a future, and so does an attribute.

    Setting an attribute waits until it is set. A call has the default deadline; `proxy.method.within(3.0)(…)` has another.
    """

    def __init__(self, ref: "RemoteRef", _path: tuple[str, ...] = (), _there: Attributes | None = None) -> None:
        """Raises `pykka.ActorDeadError` if the actor is known to have ended, `TypeError` where nothing was published for proxies."""
        if not ref.is_alive():
            raise pykka.ActorDeadError(f"{ref} has ended")
        there = ref.attributes if _there is None else _there
        if not there:
            raise TypeError(f"{ref} was not published for proxies: publish(…, proxy=True) lets others use its public methods")
        self.actor_ref = ref
        self._path, self._there = _path, there

    def __repr__(self) -> str:
        return f"<RemoteProxy for {'.'.join((str(self.actor_ref), *self._path))}>"

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, RemoteProxy) and self.actor_ref == other.actor_ref and self._path == other._path
        )

    def __hash__(self) -> int:
        return hash((self.actor_ref, self._path))

    def __dir__(self) -> list[str]:
        return sorted({*object.__dir__(self), *self._there})

    def _kind(self, name: str) -> bool | Attributes:
        kind = self._there.get(name)
        if kind is None:
            raise AttributeError(
                f"{self!r} has no {name!r}: it reaches {', '.join(sorted(self._there))}; it was published with what there was then"
            )
        return kind

    def __getattr__(self, name: str) -> Any:
        kind = self._kind(name)
        path = (*self._path, name)
        if kind is True:
            return RemoteMethod(self.actor_ref, path)
        if kind is False:
            return self.actor_ref.ask(ProxyGetAttr(path), block=False)
        return RemoteProxy(self.actor_ref, path, kind)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "actor_ref" or name.startswith("_"):
            super().__setattr__(name, value)
            return
        self._kind(name)
        self.actor_ref.ask(ProxySetAttr((*self._path, name), value))


class RemoteMethod:
    """One method of an actor of another host."""

    def __init__(self, ref: "RemoteRef", path: tuple[str, ...], timeout: float | None = None) -> None:
        self.actor_ref = ref
        self._path, self._timeout = path, timeout

    def __repr__(self) -> str:
        return f"<RemoteMethod {'.'.join((str(self.actor_ref), *self._path))}>"

    def __call__(self, *args: Any, **kwargs: Any) -> ActorFuture[Any]:
        """Call it, and return the future of what it returns."""
        future: ActorFuture[Any] = self.actor_ref.ask(
            ProxyCall(self._path, args, kwargs), block=False, timeout=self._timeout
        )
        return future

    def defer(self, *args: Any, **kwargs: Any) -> None:
        """Call it, and ask for no answer."""
        self.actor_ref.tell(ProxyCall(self._path, args, kwargs))

    def within(self, timeout: float) -> "RemoteMethod":
        """Return the same method with another deadline, in seconds."""
        return RemoteMethod(self.actor_ref, self._path, timeout)
