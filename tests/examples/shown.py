"""The examples that docs/actors.md shows in full. `python -m tests.examples.shown` writes them anew."""

from pathlib import Path

from tests.readme import block

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "actors.md"
EXAMPLES = ("bank", "singleton", "chat")


def shown(name: str, page: str) -> str:
    """What stands on the page between the marks of an example."""
    found = block(f"examples/{name}.py").search(page)
    return found[0] if found else ""


def written(name: str) -> str:
    """What belongs there: a blank line on either side, since it is inside of HTML."""
    text = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
    return f"\n```python\n{text}```\n\n"


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    for name in EXAMPLES:
        page = block(f"examples/{name}.py").sub(lambda _, name=name: written(name), page)
    PAGE.write_text(page, encoding="utf-8")
