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
