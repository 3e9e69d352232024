"""What the documents point to exists."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from common import __version__

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "docs/architecture.md",
    "docs/decisions.md",
    "docs/operations.md",
    "docs/measurements.md",
    "docs/kubernetes.md",
)
FOLDERS = "test|common|order|stock|payment|local|audit|gateway|stress-test|docs|k8s|helm|compose|strimzi-kafka-config"
FILE = re.compile(rf"`((?:{FOLDERS})/[\w./-]*)`")
INVARIANTS = [f"I{number}" for number in range(1, 9)]


def test_the_code_says_the_version_of_the_project() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == __version__


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_is_there(page: str) -> None:
    named = set(FILE.findall((ROOT / page).read_text()))
    assert {name for name in named if not (ROOT / name).exists()} == set()


@pytest.mark.parametrize("invariant", INVARIANTS)
def test_every_invariant_has_a_test_that_shows_it(invariant: str) -> None:
    lines = (ROOT / "docs/architecture.md").read_text().splitlines()
    (row,) = (line for line in lines if line.startswith(f"| {invariant} |"))
    assert re.search(r"`test/[\w/]+\.py`", row)
