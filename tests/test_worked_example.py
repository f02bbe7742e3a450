"""docs/worked_example.md says what the code does."""

import doctest

from conftest import REPOSITORY


def test_the_worked_example_is_true(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    page = REPOSITORY / "docs/worked_example.md"
    found = doctest.testfile(str(page), module_relative=False)
    assert found.attempted > 20 and not found.failed
