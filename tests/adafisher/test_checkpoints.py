"""state_dict, copies, and the end of an optimizer."""

import copy
import gc
import io
import pickle

import pytest
import torch
from tests.adafisher.nets import NETS, data, loss_of, make, numbers, same_bits, train
from torch import nn

from fisheropt import AdaFisher, AdaFisherW

OPTIONS = {"lr": 1e-5, "weight_decay": 0.1, "update_every": 2}


def saved(state_dict):
    """What torch.save writes and torch.load reads, without trusting it to be more than tensors and numbers."""
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("after", [1, 2])
def test_training_resumes_bit_for_bit(kind, after):
    """Between updates of the factors as well as at one."""
    batches = data(kind, 5)
    net = make(kind)
    optimizer = AdaFisherW(net, **OPTIONS)
    train(net, optimizer, batches[:after])
    weights, state = copy.deepcopy(net.state_dict()), saved(optimizer.state_dict())
    train(net, optimizer, batches[after:])

    resumed = make(kind, seed=1)
    again = AdaFisherW(resumed, lr=0.5)  # whose options are the saved ones afterwards
    resumed.load_state_dict(weights)
    again.load_state_dict(state)
    train(resumed, again, batches[after:])
    assert same_bits(numbers(optimizer), numbers(again))
    assert again.param_groups[0]["update_every"] == 2


def test_loading_replaces_what_was_seen_and_shares_no_memory():
    net = make("mlp")
    optimizer = AdaFisher(net, lr=1e-5)
    batches = data("mlp", 4)
    train(net, optimizer, batches[:2])
    weights, state = copy.deepcopy(net.state_dict()), copy.deepcopy(optimizer.state_dict())
    kept = copy.deepcopy(state)
    train(net, optimizer, batches[2:3])
    first = numbers(optimizer)
    loss_of(net, batches[3]).backward()  # seen, and gone with the loading
    net.zero_grad()
    net.load_state_dict(weights)
    optimizer.load_state_dict(state)
    train(net, optimizer, batches[2:3])
    assert same_bits(first, numbers(optimizer))
    factors, unchanged = state["state"]["fisher"]["factors"], kept["state"]["fisher"]["factors"]
    assert all(torch.equal(factors[n]["H"], unchanged[n]["H"]) for n in factors if "H" in factors[n])
    assert state["state"]["fisher"]["steps"] == 2


def test_factors_and_counters_are_kept_by_parameter_name():
    net = make("mlp")
    optimizer = AdaFisher(net, update_every=2)
    train(net, optimizer, data("mlp", 3))
    record = optimizer.state_dict()["state"]["fisher"]
    assert record["steps"] == 3
    assert {name: sorted(known) for name, known in record["factors"].items()} == {
        "0.weight": ["H", "S", "updates"],
        "4.weight": ["H", "S", "updates"],
        "2.weight": ["f", "updates"],
        "2.bias": ["f", "updates"],
        "3.scale": ["f", "updates"],
        "3.shift": ["f", "updates"],
    }
    assert all(known["updates"] == 2 for known in record["factors"].values())
    assert optimizer.param_groups[0]["param_names"] == [name for name, _ in net.named_parameters()]


def test_parameters_in_another_order_find_their_state():
    net, other = make("mlp"), make("mlp")
    optimizer = AdaFisher(net, lr=1e-5)
    again = AdaFisher(other, lr=1e-5, params=list(other.parameters())[::-1])
    batches = data("mlp", 4)
    train(net, optimizer, batches[:2])
    other.load_state_dict(net.state_dict())
    again.load_state_dict(optimizer.state_dict())
    train(net, optimizer, batches[2:])
    train(other, again, batches[2:])
    assert same_bits(numbers(optimizer), numbers(again))
    assert again.param_groups[0]["param_names"][-1] == "0.weight"


def refused(make_wrong, match):
    net = make("mlp")
    optimizer = AdaFisher(net, lr=1e-5)
    train(net, optimizer, data("mlp", 2))
    state = copy.deepcopy(optimizer.state_dict())
    make_wrong(state)
    before = numbers(optimizer)
    with pytest.raises(ValueError, match=match):
        optimizer.load_state_dict(state)
    assert same_bits(before, numbers(optimizer))


def test_state_of_another_model_is_refused_and_nothing_is_changed():
    def factors(state):
        return state["state"]["fisher"]["factors"]

    refused(lambda s: factors(s).update({"9.weight": factors(s)["0.weight"]}), "'9.weight', which the model does not")
    refused(lambda s: factors(s)["0.weight"].update(H=torch.ones(2)), r"H of '0.weight' has shape \(2,\).*\(4,\)")
    refused(lambda s: factors(s)["0.weight"].pop("S"), r"'0.weight' are \['H', 'updates'\]")
    refused(lambda s: s["param_groups"][0]["param_names"].__setitem__(0, "9.weight"), "only one of them has '0.weight'")
    refused(lambda s: s["param_groups"].append(s["param_groups"][0]), "2 parameter groups")
    refused(lambda s: s["state"][0].update(v=torch.ones(4, 3)), "0.weight.*is not that of AdaFisher")


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_a_copy_of_model_and_optimizer_trains_on_by_itself(duplicate):
    """It watches the model it was copied with and not the original."""
    batches = data("mlp", 4)
    net = make("mlp")
    optimizer = AdaFisher(net, lr=1e-5)
    train(net, optimizer, batches[:2])
    frozen = numbers(optimizer)
    other, again = duplicate((net, optimizer))
    assert again.model is other
    assert again.param_groups[0]["params"][0] is other[0].weight
    train(other, again, batches[2:])
    assert same_bits(frozen, numbers(optimizer))
    train(net, optimizer, batches[2:])
    assert same_bits(numbers(optimizer), numbers(again))


def test_a_copy_of_the_optimizer_alone_has_a_model_of_its_own():
    net = make("mlp")
    optimizer = AdaFisher(net, lr=1e-5)
    batches = data("mlp", 3)
    train(net, optimizer, batches[:1])
    again = copy.deepcopy(optimizer)
    assert again.model is not net
    train(net, optimizer, batches[1:])
    train(again.model, again, batches[1:])
    assert same_bits(numbers(optimizer), numbers(again))


def hooks(net):
    of_modules = sum(len(m._forward_hooks) for m in net.modules())
    return of_modules + sum(len(p._post_accumulate_grad_hooks or ()) for p in net.parameters())


def test_closing_removes_the_hooks_and_ends_the_steps():
    net = make("mlp")
    optimizer = AdaFisher(net)
    train(net, optimizer, data("mlp", 1))
    assert hooks(net) > 0
    optimizer.close()
    optimizer.close()
    assert hooks(net) == 0
    loss_of(net, data("mlp", 1)[0]).backward()
    assert len(optimizer.state_dict()["state"]["fisher"]["factors"]) == 6
    with pytest.raises(RuntimeError, match="closed"):
        optimizer.step()


@pytest.mark.parametrize("scheduled", [False, True])
def test_the_end_of_an_optimizer_removes_its_hooks_at_once(scheduled):
    gc.disable()
    try:
        net = make("mlp")
        optimizer = AdaFisher(net)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1) if scheduled else None
        train(net, optimizer, data("mlp", 1))
        assert hooks(net) > 0
        del optimizer, scheduler
        if scheduled:
            gc.collect()  # torch's schedulers and optimizers refer to each other
        assert hooks(net) == 0
    finally:
        gc.enable()


def test_an_argument_that_is_refused_leaves_no_hooks():
    net = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="damping"):
        AdaFisher(net, damping=0.0)
    assert hooks(net) == 0


def test_two_optimizers_of_one_model_do_not_meet():
    """One for the weights and one for the rest."""
    net = make("mlp")
    weights = [p for name, p in net.named_parameters() if name.endswith("weight")]
    rest = [p for name, p in net.named_parameters() if not name.endswith("weight")]
    first, second = AdaFisher(net, lr=1e-5, params=weights), AdaFisher(net, lr=1e-5, params=rest)
    twin = make("mlp")
    both = AdaFisher(twin, lr=1e-5)
    for x in data("mlp"):
        net.zero_grad()
        loss_of(net, x).backward()
        first.step()
        second.step()
    train(twin, both, data("mlp"))
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), twin.parameters(), strict=True))
