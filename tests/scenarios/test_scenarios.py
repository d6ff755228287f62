"""The text scenarios give what they say; what is wrong with one is said with its line."""

import difflib

import pytest

from tests.scenarios.scenario import Scenario, ScenarioError, scenarios


@pytest.mark.parametrize("path", scenarios(), ids=lambda path: path.stem)
def test_the_scenario_goes_as_it_is_told(path):
    scenario = Scenario(path)
    difference = difflib.unified_diff(
        scenario.text.splitlines(),
        scenario.run().splitlines(),
        f"{path.name}",
        "what happens now",
        lineterm="",
    )
    text = "\n".join(difference)
    assert not text, f"{path.name} goes otherwise (make rewrite-scenarios, if that is right):\n{text}"


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("nodes 3\n----\n\nfly 1\n----\n", 4, "there is no command 'fly': there are add, change, "),
        ("elect 1\n----\n", 1, "'elect' comes before `nodes`"),
        ("nodes\n----\n", 1, "missing a required argument: 'voters'; nodes: nodes VOTERS "),
        ("nodes 3\nelect 1 2\n----\n", 2, "too many positional arguments; elect: elect REPLICA: "),
        ("nodes 3\nelect 1 soon=true\n----\n", 2, "unexpected keyword argument 'soon'"),
        ("nodes many\n----\n", 1, "'many' is no number"),
        ("nodes 3 speed=9\n----\n", 1, "unexpected keyword argument 'speed'"),
        ("nodes 3 election_ticks=0\n----\n", 1, "election_ticks"),
        ("nodes 3\nelect 7\n----\n", 2, "there is no replica 7: there are 1, 2, 3"),
        ("nodes 3\ndeliver VOTES\n----\n", 2, "'VOTES' is neither a link such as 1->2"),
        ("nodes 3\nrepeat 1->2\n----\n", 2, "no such message waits: 1->2"),
        ("nodes 3\nchange 1 raise 4\n----\n", 2, "'raise 4' is no list of changes"),
        ("nodes 3\nchange 1 add\n----\n", 2, "'add' is no list of changes"),
        ("nodes 3\nchange 1 transition=slow\n----\n", 2, "there is no transition 'slow'"),
        ("nodes 3\n", 1, "no ---- follows the command"),
        ("nodes 3\n\nelect 1\n----\n", 1, "no ---- follows the command"),
        ("# nothing\n----\n", 2, "---- follows no command"),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path, text, line, reason):
    path = tmp_path / "wrong.txt"
    path.write_text(text)
    with pytest.raises(ScenarioError) as raised:
        Scenario(path).run()
    assert str(raised.value).startswith(f"{path}:{line}: ")
    assert reason in str(raised.value)


def test_an_error_of_the_program_names_the_line_that_it_came_from(tmp_path):
    path = tmp_path / "broken.txt"
    path.write_text("nodes 3\ncompact 1 9\n----\n")
    with pytest.raises(Exception, match=r".") as raised:
        Scenario(path).run()
    assert raised.value.__notes__ == [f"in {path}:2: compact 1 9"]


def test_only_the_output_is_written_anew(tmp_path):
    path = tmp_path / "stale.txt"
    path.write_text("# A story\n\n# begins.\nnodes 1\n----\nsomething else\nand more\n\nheal\n----\n")
    assert Scenario(path).run() == (
        "# A story\n\n# begins.\nnodes 1\n----\n1 FOLLOWER term=0 vote=0 leader=0\n\nheal\n----\nok\n"
    )
