import pytest
import torch


@pytest.fixture(autouse=True)
def threads():
    """The lab sets the number of threads of the process; tests put it back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
