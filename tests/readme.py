"""What the README shows of the code: the rooms and the handler matrix. `python -m tests.readme` writes both anew."""

import re
from pathlib import Path

from drakkar.handlers import raft_handlers

from tests import structure

README = Path(__file__).parent.parent / "README.md"


def block(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<=<!-- {name}: begin -->\n).*?(?=<!-- {name}: end -->)", re.DOTALL)


def drawn() -> dict[str, str]:
    """What belongs into each block."""
    pictures = {"matrix": raft_handlers().describe(), "rooms": structure.picture()}
    return {name: f"```text\n{picture}\n```\n" for name, picture in pictures.items()}


def snippets() -> list[str]:
    """The README's Python examples, in order."""
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


if __name__ == "__main__":
    text = README.read_text()
    for name, picture in drawn().items():
        text = block(name).sub(lambda _, picture=picture: picture, text)
    README.write_text(text)
