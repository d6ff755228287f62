"""docs/tutorial.md, done as it says by a new user: its files, run as real processes, one of which is killed."""

import re
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.examples.support import Program
from tests.ports import free_addresses

PAGE = (Path(__file__).parents[1] / "docs" / "tutorial.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL))
SHOWN = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def folder(tmp_path):
    """The files of the page, with addresses that are free here."""
    warehouse, shop = free_addresses(2)
    for name, text in FILES.items():
        here = text.replace("127.0.0.1:7000", warehouse).replace("127.0.0.1:7001", shop)
        (tmp_path / name).write_text(here)
    return tmp_path


@contextmanager
def program(folder, name):
    running = Program(folder / f"{name}.log", name, cwd=folder)
    try:
        yield running
    finally:
        running.clean_up()


def said_by(folder, name):
    """What a program says that ends by itself, its status, and what it complains about."""
    with program(folder, name) as running:
        status, complaints = running.end()
        return running.said, status, complaints


def test_the_page_has_all_its_files():
    assert list(FILES) == ["stock.py", "together.py", "warehouse.py", "shop.py", "lasting_shop.py"]


def test_the_application_works_in_one_process(folder):
    said, status, complaints = said_by(folder, "together.py")
    assert (said, status, complaints) == (["2"], 0, "")
    assert SHOWN[0] == "$ python together.py\n2\n"


def test_the_stock_on_another_host_is_used_by_the_same_line(folder):
    used = 'stock.take("apple").get()'
    assert used in FILES["together.py"]
    assert used in FILES["shop.py"]
    with program(folder, "warehouse.py") as warehouse:
        warehouse.wait_for("open")
        for left in (2, 1, 0):
            assert said_by(folder, "shop.py")[:2] == ([str(left)], 0)
        said, status, complaints = said_by(folder, "shop.py")
        assert (said, status) == ([], 1)
        assert "ValueError: there is no apple left" in complaints
        assert 'raise ValueError(f"there is no {item} left")' in complaints, "the lines of the stock's source"
        assert warehouse.end()[0] == 0
    assert SHOWN[1] == "".join(f"$ python shop.py\n{left}\n" for left in (2, 1, 0)) + "$ python shop.py\n"


def test_the_stock_is_watched_lost_and_found_again(folder):
    with program(folder, "lasting_shop.py") as shop:
        shop.wait_for("Enter takes an apple")
        with program(folder, "warehouse.py") as warehouse:
            warehouse.wait_for("open")
            assert shop.ask("") == "2 left"
            warehouse.kill()
            lost = shop.wait_for("lost the stock: ")
        # Two connections end, one that each of the two has opened, and the shop says of which it has heard first.
        shown = re.escape(SHOWN[2].strip()).replace(re.escape("127.0.0.1:7000"), r"127\.0\.0\.1:\d+")
        assert re.fullmatch(shown.replace(r"\ from\ ", r"\ (from|to)\ "), lost)
        # What it still asks on a connection that it does not know to be lost may have been done, for all it knows.
        assert (said := shop.ask("")).startswith(
            (SHOWN[3].split(" at ")[0], "perhaps taken, perhaps not: ")
        ), said
        with program(folder, "warehouse.py") as warehouse:
            warehouse.wait_for("open")
            assert shop.ask("") == SHOWN[4].strip() == "2 left", "another one, which has all its apples"
            for expected in ("1 left", "0 left", "sold out: there is no apple left"):
                assert shop.ask("") == expected
            assert shop.end()[0] == 0
