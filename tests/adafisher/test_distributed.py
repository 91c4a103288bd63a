"""Data-parallel processes take the step that one process takes with all their data."""

from pathlib import Path

import torch
from tests.adafisher.nets import apart, data, loss_of, make, numbers, same_bits
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from fisheropt import AdaFisher

RANKS, STEPS = 2, 3
OPTIONS = {"lr": 1e-5, "update_every": 2}
KINDS = ("mlp", "tied")


def run(net, step_on, batches, **options):
    optimizer = AdaFisher(step_on, **OPTIONS, **options)
    for x in batches:
        optimizer.zero_grad()
        for part in x.chunk(2):  # two micro-batches, whose gradients DDP adds up
            (loss_of(step_on, part) / 2).backward()
        optimizer.step()
    return numbers(optimizer)


def worker(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    found, reductions = {}, []
    reduce = distributed.all_reduce

    def counted(tensor, *args, **kwargs):
        reductions.append(tensor.numel())
        return reduce(tensor, *args, **kwargs)

    distributed.all_reduce = counted
    for kind in KINDS:
        net = make(kind)
        shares = [x.chunk(RANKS)[rank] for x in data(kind, STEPS, batch=8)]
        found[kind] = run(net, DistributedDataParallel(net), shares)
    found["reductions"] = list(reductions)
    alone = make("mlp")  # every process with a model of its own, of the same data
    found["alone"] = run(alone, alone, data("mlp", STEPS, batch=4))
    found["reductions of one alone"] = reductions[len(found["reductions"]) :]
    found["refused"] = refusal()
    torch.save(found, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


def refusal():
    """What is said to one who gives the optimizer the model inside DDP."""
    net = make("mlp")
    wrapped, optimizer = DistributedDataParallel(net), AdaFisher(net)
    try:
        wrapped(data("mlp", 1)[0])
    except RuntimeError as error:
        return str(error)
    optimizer.close()
    return ""


def test_two_processes_take_the_steps_of_one_with_all_the_data(tmp_path):
    """One test, because starting processes is what takes the time."""
    multiprocessing.spawn(worker, (tmp_path,), nprocs=RANKS)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS)]

    for kind in KINDS:
        net = make(kind)
        single = run(net, net, data(kind, STEPS, batch=8))
        assert all(apart(single, rank[kind]) <= 1e-11 for rank in ranks)
        assert same_bits(ranks[0][kind], ranks[1][kind]), "the processes drift apart"

    # An update in the first and the third of three steps: one message each, of a count, H and S for every layer.
    mlp, tied = 2 + (3 + 4) + (4 + 2), 3 + (6 + 4) + (4 + 4) + (4 + 6)
    assert all(rank["reductions"] == [mlp, mlp, tied, tied] for rank in ranks)

    # That another process trains a model of its own makes no difference to one's own (D16).
    net = make("mlp")
    single = run(net, net, data("mlp", STEPS, batch=4))
    assert all(same_bits(single, rank["alone"]) for rank in ranks)
    assert not any(rank["reductions of one alone"] for rank in ranks)

    assert all("give the wrapped one to the optimizer" in rank["refused"] for rank in ranks)
