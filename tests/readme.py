"""The README's copy of the handler matrix. `python -m tests.readme` writes it anew."""

import re
from pathlib import Path

from drakkar.handlers import raft_handlers

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"(?<=<!-- matrix: begin -->\n).*?(?=<!-- matrix: end -->)", re.DOTALL)


def matrix() -> str:
    return f"```text\n{raft_handlers().describe()}\n```\n"


def snippets() -> list[str]:
    """The README's Python examples, in order."""
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


if __name__ == "__main__":
    README.write_text(BLOCK.sub(lambda _: matrix(), README.read_text()))
