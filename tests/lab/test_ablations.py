import inspect

import pytest
import torch

from fisheropt import FAdam
from fisheropt_lab.ablations import ABLATIONS
from fisheropt_lab.muon import MuonWithAdamW, hidden_matrices
from fisheropt_lab.optimizers import CONTENDERS, VARIANTS, contender
from fisheropt_lab.tasks import TASKS, Asked

LOSSES = TASKS["digits"].losses
DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(FAdam).parameters.items()}


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", ABLATIONS)
def test_every_arm_can_be_built_and_differs_from_all_others(name, quick):
    arms = ABLATIONS[name].arms(quick, LOSSES)
    for arm in arms.values():
        contender(arm.optimizer).build(torch.nn.Linear(4, 4), 1e-3, "eager", arm.options)
    assert len({(arm.optimizer, str(arm.options), str(arm.settings)) for arm in arms.values()}) == len(arms)
    assert len({arm.label for arm in arms.values()}) == len(arms)


@pytest.mark.parametrize(
    ("name", "option"), [("exponent", "rho"), ("weight-decay", "weight_decay"), ("epsilon2", "eps2")]
)
def test_the_first_arm_is_what_the_paper_recommends(name, option):
    first = next(iter(ABLATIONS[name].arms(False, LOSSES).values()))
    assert first.optimizer == "fadam"
    assert first.options[option] == DEFAULTS[option]


def test_the_ranges_are_the_papers():
    def values(name, optimizer, option):
        arms = ABLATIONS[name].arms(False, LOSSES).values()
        return {arm.options[option] for arm in arms if arm.optimizer == optimizer and option in arm.options}

    assert {min(values("exponent", one, "rho")) for one in ("fadam", "fadafactor")} == {0.3}
    assert {max(values("exponent", one, "rho")) for one in ("fadam", "fadafactor")} == {1.0}
    assert {1e-8, 1e-30} <= values("epsilon", "adam", "eps") == values("epsilon", "fadam", "eps")
    assert {1e-1, 1e-8} <= values("epsilon2", "fadam", "eps2")
    for one in ("fadam", "fadafactor", "adam", "adafactor"):
        assert {0.0, 1e-2, 1e-3, 1e-4, 1e-5} <= values("weight-decay", one, "weight_decay")


@pytest.mark.parametrize("name", [*CONTENDERS, *VARIANTS])
def test_every_knob_is_an_option_and_none_of_its_values_the_optimizers_own(name):
    kind, model = contender(name), torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))

    def set_to(option, value):
        group = kind.build(model, 1e-3, "eager", {} if option is None else {option: value}).param_groups[0]
        return {key: group[key] for key in group if key != "params"}

    own = set_to(None, None)
    for option, values in (kind.decays, kind.third):
        assert all(set_to(option, value) != own for value in values)
        assert len(set(values)) == len(values) == 2


def test_muon_takes_hidden_matrices_and_adamw_the_rest():
    model = TASKS["text"].outline(TASKS["text"].setup(Asked()).settings).model
    matrices, others = hidden_matrices(model)
    names = {id(p): name for name, p in model.named_parameters()}
    assert len(matrices) + len(others) == len(names)
    assert all(p.ndim == 2 for p in matrices)
    assert {names[id(p)] for p in others} == {"embedding.weight", *(n for n in names.values() if n.endswith("gain"))}


def test_muon_goes_on_from_a_checkpoint():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    first = MuonWithAdamW(model, 1e-2)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    first.step()
    second = MuonWithAdamW(model, 1e-2)
    second.load_state_dict(first.state_dict())
    assert len(second.state) == len(first.state) == 6
    for p in model.parameters():
        for name, value in first.state[p].items():
            assert torch.equal(second.state[p][name], value)


def test_muon_needs_a_hidden_matrix():
    with pytest.raises(ValueError, match="no hidden matrix"):
        MuonWithAdamW(torch.nn.Linear(2, 2), 1e-3)
