"""What every test can count on: one thread (xdist gives each core a process), no leftover compiler state, no chance."""

import importlib
import os
import warnings

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("fisheropt", derandomize=True, database=None, deadline=None, max_examples=40)
hypothesis.settings.load_profile("fisheropt")

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton decides at import, torch's compiler imports it


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def compiler():
    """For tests that compile: nothing compiled before, nothing left behind."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch warns of its own code when it imports its compiler
        importlib.import_module("torch._inductor.compile_fx")
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
