"""Which host it is: the id and the run that a host shows are no secret, and are taken by no other host."""

import os
import time

import pytest
from drakkar.transport.frames import FrameKind

from tests.attacks import forge
from tests.attacks.forge import STRANGER

pytestmark = pytest.mark.xdist_group("attacks")


@pytest.mark.slow
def test_the_identity_of_a_host_is_not_taken_by_another(either):
    """Any host that connects is told its host id and run. Another one that shows them, under its own name, keeps it out of nothing."""
    with either.attack("the host id of a member, by another host, while the member is down") as seen:
        with forge.Link(either.members[2], tls=either.outsider) as link:
            answer = link.introduce()
            assert answer is not None
            assert answer.kind == FrameKind.HELLO
        host_id = either.ask(2, "host_id")
        count = either.ask(2, "run")[0]
        seen.watch(0.5)
        either.kill(2)
        for target in (1, 3):
            try:
                forge.introduced(
                    either.members[target],
                    f"{STRANGER}:1",
                    tls=either.outsider,
                    host_id=host_id,
                    run=forge.Run(count + 1000, tuple(range(1, 65))),
                ).close()
            except PermissionError as error:
                seen.note(f"refused: {str(error)[-60:]}")
        seen.watch(0.5)
        either.start_again(2)
        began, commit = time.monotonic(), either.status(1)["commit"]
        while either.status(2)["applied"] < commit:
            assert time.monotonic() < began + 20, "the member is kept out by a stranger with its id"
            time.sleep(0.05)


@pytest.mark.slow
def test_an_identity_that_a_member_claims_first_keeps_no_host_out(secure):
    """A member shows the id of a host that no one has heard of yet, and a later run than that host can have."""
    host_id, later = os.urandom(16).hex(), forge.Run(1000, tuple(range(1, 65)))
    with (
        secure.attack("the host id of one that was not heard of, by a member") as seen,
        forge.introduced(
            secure.members[1], secure.members[3], host_id=host_id, run=later, **secure.member(3)
        ),
    ):
        for count in (1, 2):
            run = forge.Run(count, tuple(range(100 + count, 100, -1)))
            with forge.introduced(secure.members[1], tls=secure.outsider, host_id=host_id, run=run):
                seen.watch(0.3)
        with pytest.raises(PermissionError, match="does not follow its run 2"):
            forge.introduced(secure.members[1], tls=secure.outsider, host_id=host_id, run=forge.Run(1, (7,)))


@pytest.mark.slow
def test_ids_without_end(secure):
    """Hosts that no one has heard of introduce themselves by the thousand: nothing is written, and little remembered."""

    def again():
        forge.introduced(secure.members[1], tls=secure.outsider).close()

    with secure.attack("hosts with a new id each time", memory_mib=16) as seen:
        with forge.Attackers(again, again) as attackers:
            seen.watch(3)
        seen.note(f"{attackers.rounds} ids")
