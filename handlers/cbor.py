"""CBOR in a strict profile: how everything from a socket or a disk is decoded.

cbor2 is lenient by default: it builds dates, regular expressions, big numbers and cyclic lists where tags ask for
them, and takes duplicate keys and trailing bytes. Hosts say none of that, so nobody may say it to them.
"""

import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NoReturn

import cbor2

__all__ = ["loads"]


class _EveryTag(Mapping[int, Callable[..., Any]]):
    """Has a decoder for every tag, and it refuses.

    cbor2 asks its `tag_hook` only about tags that it does not know; dates, big numbers, regular expressions, shared
    and string references it decodes by itself, unless there is a decoder for them here.
    """

    def __getitem__(self, tag: int) -> Callable[..., Any]:
        return _refuse_tag

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> Iterator[int]:
        return iter(())


def _refuse_tag(*_: Any) -> NoReturn:
    raise ValueError("tags are not allowed")


_NO_TAGS: Final = _EveryTag()


def loads(data: bytes | memoryview, max_depth: int, *, plain_keys: bool = True) -> Any:
    """Decode one value that is all of `data`.

    No tags (so no dates, no big numbers, no references), nothing of indefinite length, no duplicate keys, at most
    `max_depth` lists in each other, no byte left over. With `plain_keys` the keys of maps are strings; without, they
    are whatever is hashable, so the caller checks them, and limits the length of `data` first: hashes of numbers can
    be made to collide.

    Raises `ValueError` where `data` is anything else.
    """
    source = io.BytesIO(data)
    try:
        value = cbor2.CBORDecoder(
            source,
            semantic_decoders=_NO_TAGS,
            max_depth=max_depth,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            strict_hashable_types=plain_keys,
        ).decode()
    except (cbor2.CBORDecodeError, ValueError, OverflowError, TypeError) as error:
        raise ValueError(
            f"{len(data)} bytes are no CBOR that hosts speak: {error.__cause__ or error}"
        ) from error
    if source.tell() != len(data):
        raise ValueError(f"{len(data) - source.tell()} bytes follow the CBOR value")
    return value
