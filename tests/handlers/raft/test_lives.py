"""Where a replica lives: what replicas say of themselves, and the rules that rest upon it."""

import pytest
from drakkar.handlers import CorruptData, founding_id, home_number
from drakkar.handlers.raft.lives import decode_settled, encode_settled

FOUNDERS = {1: "a:1", 2: "b:2"}


@pytest.mark.parametrize(
    ("shard", "founders", "generation"),
    [
        pytest.param(8, FOUNDERS, 0, id="another shard"),
        pytest.param(7, {1: "a:1", 2: "b:3"}, 0, id="another address"),
        pytest.param(7, {1: "b:2", 2: "a:1"}, 0, id="two addresses swapped"),
        pytest.param(7, {1: "a:1", 3: "b:2"}, 0, id="another id"),
        pytest.param(7, {1: "a:1"}, 0, id="one fewer"),
        pytest.param(7, FOUNDERS, 1, id="another generation"),
    ],
)
def test_another_founding_has_another_id(shard, founders, generation):
    assert founding_id(shard, founders, generation) != founding_id(7, FOUNDERS)


def test_a_founding_id_depends_on_no_order_and_is_the_same_in_all_versions():
    assert founding_id(7, dict(reversed(FOUNDERS.items()))) == founding_id(7, FOUNDERS)
    assert founding_id(7, FOUNDERS).hex() == "9c40271fe5a9a5974b2965231ece14ea"


def test_a_home_number_fits_and_is_the_same_in_all_versions():
    assert home_number("a") == 5374906597990186442
    assert all(1 <= home_number(str(host)) < 1 << 63 for host in range(1000))


def test_a_settled_entry_comes_back_as_it_was():
    assert decode_settled(encode_settled(3, 77)) == (3, 77)
    assert decode_settled(encode_settled((1 << 63) - 1, (1 << 63) - 1)) == ((1 << 63) - 1, (1 << 63) - 1)


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"\x01", b"\x80", b"\x82\x00\x01", b"\x82\x01\x00", b"\x83\x01\x01\x01", b"\x81\x81\x01",
        b"\x98\x12" + b"\x01" * 18, encode_settled(1 << 63, 1), encode_settled(1, 1 << 63),
    ],
)  # fmt: skip
def test_what_is_no_settled_entry_is_refused(payload):
    with pytest.raises(CorruptData, match="SETTLED entry"):
        decode_settled(payload)
