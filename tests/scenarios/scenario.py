"""Text scenarios: files of commands, and behind each the output that it must give.

    # Comments and empty lines separate the steps.

    nodes 3
    ----
    1 FOLLOWER term=0 vote=0 leader=0
    ...

A step is one or more lines of commands, `----`, and their output, up to an empty line. `Scenario.run` gives the text
as it should be, which a test compares with the file, and `python -m tests.scenarios` writes in its place.
"""

from pathlib import Path

from tests.scenarios.story import Mistake, Story

SEPARATOR = "----"


class ScenarioError(Exception):
    """What is wrong with a file of commands, and in which line."""

    def __init__(self, path, number, what):
        super().__init__(f"{path}:{number}: {what}")


class Step:
    """Some commands, with the numbers of their lines."""

    def __init__(self):
        self.commands = []

    def run(self, path, story):
        """The lines of output; raises `ScenarioError` for a command that makes no sense."""
        output = []
        for number, command in self.commands:
            try:
                output += story.do(command)
            except Mistake as mistake:
                raise ScenarioError(path, number, mistake) from None
            except Exception as error:
                error.add_note(f"in {path}:{number}: {command}")
                raise
        return output or ["ok"]


class Scenario:
    """One file."""

    def __init__(self, path: Path):
        self.path = path
        self.text = path.read_text(encoding="utf-8")
        self._parts = list(self._parse())

    def _parse(self):
        """Steps, and lines between them."""
        step, in_output = Step(), False
        for number, line in enumerate(self.text.splitlines(), start=1):
            if in_output:
                # What stands there is what the file expects; `run` makes it anew.
                in_output = bool(line)
                if not in_output:
                    yield line
            elif line == SEPARATOR:
                if not step.commands:
                    raise ScenarioError(self.path, number, f"{SEPARATOR} follows no command")
                yield step
                step, in_output = Step(), True
            elif line and not line.startswith("#"):
                step.commands.append((number, line))
            elif step.commands:
                break
            else:
                yield line
        if step.commands:
            raise ScenarioError(self.path, step.commands[-1][0], f"no {SEPARATOR} follows the command")

    def run(self):
        """The whole text, with the output that the commands give now."""
        story = Story()
        lines = []
        for part in self._parts:
            if isinstance(part, Step):
                lines += [command for _, command in part.commands]
                lines += [SEPARATOR, *part.run(self.path, story)]
            else:
                lines.append(part)
        return "\n".join(lines) + "\n"


def scenarios():
    """The files beside this one."""
    return sorted(Path(__file__).parent.glob("*.txt"))
