"""What a host does for its nodes."""

from types import SimpleNamespace

from drakkar.actors.host.services import NodeServices


def test_a_node_asks_the_lane_of_its_shard_for_as_much_as_it_needs():
    asked = []
    transport = SimpleNamespace(room=lambda *of: asked.append(of) or 700)
    services = NodeServices(None, transport, None, None, None, None)
    assert services.lane_room("two:2", 5, 300) == 700
    assert asked == [("two:2", 5, 300)]
