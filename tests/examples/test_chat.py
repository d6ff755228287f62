"""The chat as its docstring says: three real processes that find one another by names, one of which is killed."""

import pytest

from tests.ports import free_addresses

NAMES = {1: "ann", 2: "bob", 3: "cat"}


class Chat:
    """The three hosts, and what their users say."""

    def __init__(self, run, directory):
        self._run, self._directory = run, directory
        self._hosts = free_addresses(3)
        self.users = {}

    def start(self, number, name=None):
        """Start a host with its user, without waiting for it."""
        name = name or NAMES[number]
        data = self._directory / f"c{number}"
        self.users[name] = self._run("chat", number, name, "--hosts", *self._hosts, "--data", data)
        return self.users[name]

    def __getitem__(self, name):
        return self.users[name]


@pytest.fixture
def chat(run, tmp_path):
    chat = Chat(run, tmp_path)
    for number in NAMES:
        chat.start(number)
    for user in chat.users.values():
        user.wait_for("ready")
    return chat


def test_all_find_one_another_by_their_names(chat):
    assert {user.ask("/who") for user in chat.users.values()} == {"here are ann, bob, cat"}
    chat["ann"].type("hello all")
    for name in ("bob", "cat"):
        assert chat[name].wait_for("ann: ") == "ann: hello all"
    chat["bob"].type("@cat only you")
    assert chat["cat"].wait_for("bob: ") == "bob: only you"
    assert chat["bob"].ask("@dan hello").startswith("@dan has perhaps not heard it: ")
    assert chat["ann"].said == ["ready", "here are ann, bob, cat"], (
        "ann heard nothing of what was not for ann"
    )


def test_who_is_heard_can_be_answered_without_a_name(chat):
    chat["ann"].type("@bob can you hear me?")
    chat["bob"].wait_for("ann: ")
    chat["bob"].type("/answer yes")
    assert chat["ann"].wait_for("bob: ") == "bob: yes"


def test_who_is_killed_is_missed_and_the_others_go_on(chat):
    chat["cat"].type("hello all")
    for name in ("ann", "bob"):
        chat[name].wait_for("cat: hello all")
    chat["cat"].kill()
    for name in ("ann", "bob"):
        chat[name].wait_for("cat is gone: ")
    chat["ann"].type("@bob still here?")
    assert chat["bob"].wait_for("ann: ") == "ann: still here?"
    assert chat["bob"].ask("@cat and you?", "@cat").startswith("@cat has perhaps not heard it: ")
    chat.start(3).wait_for("ready")
    chat["ann"].type("@cat welcome")
    assert chat["cat"].wait_for("ann: ") == "ann: welcome", "of the new one, under the old name"


def test_who_leaves_is_on_the_list_no_more(chat):
    chat["cat"].type("hello all")
    chat["ann"].wait_for("cat: hello all")
    assert chat["cat"].end()[0] == 0
    chat["ann"].wait_for("cat is gone: ")
    assert chat["ann"].ask("/who") == "here are ann, bob"


def test_a_name_that_another_host_has_is_refused(run, tmp_path):
    chat = Chat(run, tmp_path)
    users = [chat.start(1), chat.start(2)]
    for user in users:
        user.wait_for("ready")
    status, complaints = chat.start(3, "ann").end()
    assert status == 1
    assert "'ann' belongs to an actor on" in complaints
