"""The pages say what the modules say: one algorithm, printed in two places, stays one algorithm."""

import re
from pathlib import Path

import pytest

from fisheropt import adafisher, baselines, fadafactor, fadam

DOCS = Path(__file__).parents[2] / "docs"


def blocks_of_page(name: str) -> list[str]:
    return [block.strip() for block in re.findall(r"```text\n(.*?)```", (DOCS / name).read_text(), re.DOTALL)]


def blocks_of_docstring(doc: str) -> list[str]:
    """The literal blocks: what is indented by four after a line that ends with two colons."""
    blocks = re.findall(r"::\n\n((?: {4}.*\n|\n)+)", doc)
    return [re.sub(r"^ {4}", "", block, flags=re.MULTILINE).strip() for block in blocks]


@pytest.mark.parametrize(
    ("page", "module"),
    [("fadam.md", fadam), ("fadafactor.md", fadafactor), ("adafisher.md", adafisher), ("baselines.md", baselines)],
)
def test_the_algorithm_on_a_page_is_the_one_in_its_module(page, module):
    printed = blocks_of_page(page)
    assert printed
    assert printed == blocks_of_docstring(module.__doc__)


@pytest.mark.parametrize("page", [*sorted(DOCS.glob("*.md")), *sorted(DOCS.parent.glob("*.md"))], ids=lambda p: p.name)
def test_links_inside_the_repository_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    broken = [t for t in targets if not t.startswith(("http", "mailto")) and not (page.parent / t).exists()]
    assert not broken
