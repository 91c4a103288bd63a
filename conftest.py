"""The examples in the documentation are tests: every ```python block of README.md and docs/ runs, top to bottom."""

import pytest
import torch
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser


@pytest.fixture
def seeded() -> None:
    torch.manual_seed(0)


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()], patterns=["README.md", "docs/*.md"], fixtures=["seeded"]
).pytest()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The blocks of a page build on one another: with ``--dist loadgroup`` one process runs them all."""
    for item in items:
        if item.path.suffix == ".md":
            item.add_marker(pytest.mark.xdist_group(item.path.name))
