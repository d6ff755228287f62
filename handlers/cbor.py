"""CBOR in a strict profile: everything that comes from a socket or a disk is decoded here.

By default cbor2 is lenient: it builds dates, regular expressions, big numbers and cyclic lists where tags ask for
them, and it accepts duplicate keys and trailing bytes. Hosts never encode any of these, so the decoder refuses them.
"""

import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NoReturn

import cbor2

__all__ = ["has_more_items", "loads"]


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


def loads(
    data: bytes | memoryview, max_depth: int, *, plain_keys: bool = True, max_items: int | None = None
) -> Any:
    """Decode `data`, which must be exactly one value.

    Refused are tags (so dates, big numbers and references), items of indefinite length, duplicate keys, more than
    `max_depth` nested lists or maps, and bytes after the value. With `plain_keys` the keys of maps must be strings or
    byte strings. Without it, any hashable key passes: the caller must limit the length of `data` before the call, since
    hashes of numbers can be made to collide, and check the keys after it.

    What decoding takes depends on the number of items, each list, map, key and value being one: a megabyte may be one
    item, or a million empty lists. With `max_items`, more are refused before anything is decoded.

    Raises `ValueError` if `data` is anything else.
    """
    # Each item takes a byte or more, so short data need not be looked at.
    if max_items is not None and len(data) > max_items and has_more_items(data, max_items):
        raise ValueError(f"{len(data)} bytes of CBOR have more than {max_items} items")
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


_STRINGS: Final = (2, 3)
"""The major types of items that are followed by as many bytes as their number says."""


def _size(first: int) -> int:
    """Return how many bytes an item has, in so far as its first byte tells; 0 if that depends on the following ones.

    A list or a map counts without what is in it. What has no meaning, or an indefinite length, counts as one byte: the
    decoder refuses it there.
    """
    major, low = divmod(first, 32)
    if low < 24:
        return 1 + (low if major in _STRINGS else 0)
    if low > 27:
        return 1
    return 0 if major in _STRINGS else 1 + (1 << (low - 24))


_SIZES: Final = tuple(map(_size, range(256)))


def has_more_items(data: bytes | memoryview, most: int) -> bool:
    """Return whether CBOR in `data` has more than `most` items. It takes less than 0.1 µs for each, and decodes none.

    If `data` is no CBOR, it has as many as a decoder meets before it finds that out.
    """
    at = count = 0
    end = len(data)
    while at < end:
        if count == most:
            return True
        count += 1
        first = data[at]
        size = _SIZES[first]
        if not size:  # a string, whose length is in the next 1, 2, 4 or 8 bytes
            begin = at + 1 + (1 << (first % 32 - 24))
            size = begin - at + int.from_bytes(data[at + 1 : begin])
        at += size
    return False
