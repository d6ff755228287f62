"""CBOR in a strict profile: everything that comes from a socket or a disk is decoded here.

By default cbor2 is lenient: it builds dates, regular expressions, big numbers and cyclic lists where tags ask for
them, and it accepts duplicate keys and trailing bytes. Hosts never encode any of these, so the decoder refuses them.
"""

import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NoReturn

import cbor2

__all__ = ["loads"]


class _EveryTag(Mapping[int, Callable[..., Any]]):
    """A mapping whose decoder for every tag refuses it.

    cbor2 calls its `tag_hook` only for tags that it does not know. It decodes dates, big numbers, regular expressions,
    shared and string references itself, unless this mapping has a decoder for them.
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
    """Decode `data`, which must be exactly one value.

    Refused are tags (so dates, big numbers and references), items of indefinite length, duplicate keys, more than
    `max_depth` nested lists or maps, and bytes after the value. With `plain_keys` the keys of maps must be strings.
    Without it, any hashable key passes: the caller must limit the length of `data` before the call, since hashes of
    numbers can be made to collide, and check the keys after it.

    Raises `ValueError` if `data` is anything else.
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
            f"{len(data)} bytes are not CBOR of the strict profile: {error.__cause__ or error}"
        ) from error
    if source.tell() != len(data):
        raise ValueError(f"{len(data) - source.tell()} bytes follow the CBOR value")
    return value
