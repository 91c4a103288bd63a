import os
import subprocess
import sys

import pytest

from fisheropt_lab.tasks.text.python_docs import documents, python_docs, split_of


@pytest.fixture(scope="module")
def found():
    return list(documents())


def test_another_process_finds_the_same_text():
    """Order and split may not hang on hash randomisation or on the file system's mood."""
    code = "from fisheropt_lab.tasks.text.python_docs import python_docs; print(python_docs().sha256)"
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    other = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert python_docs().sha256 == other


def test_no_document_occurs_twice(found):
    names = [name for name, _ in found]
    assert len(set(names)) == len(names)
    texts = [text for _, text in found if len(text) > 400]  # the shorter ones may be alike
    assert len(set(texts)) == len(texts) > 300


def test_no_long_paragraph_is_in_two_splits(found):
    long = {"train": set(), "validation": set(), "test": set()}
    for name, text in found:
        long[split_of(name)].update(p for p in text.split("\n\n") if len(p) >= 200)
    assert min(map(len, long.values())) > 20
    assert long["train"].isdisjoint(long["validation"] | long["test"])
    assert long["validation"].isdisjoint(long["test"])


def test_the_splits_are_large_enough_to_mean_something(found):
    sizes = dict.fromkeys(("train", "validation", "test"), 0)
    for name, text in found:
        sizes[split_of(name)] += len(text)
    assert sizes["train"] > 1_000_000
    assert min(sizes["validation"], sizes["test"]) > 30_000


def test_a_document_stays_in_its_split():
    assert [split_of(name) for name in ("topic types", "abc.py", "functools.py")] == ["test", "train", "validation"]
