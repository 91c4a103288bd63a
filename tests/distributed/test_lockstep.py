"""Rules that are written down and run in phases do what they do when they are run straight through."""

import pytest
import torch

from fisheropt._math import clip_by_rms_, debiased, l2_norms, quotient, rms, row_and_column_sums
from fisheropt._shards import Lockstep, Place


@pytest.fixture
def meetings(monkeypatch):
    """How many numbers each all-reduce carried. The groups are of one process: a sum over them is what went in."""
    carried = []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda x, group: carried.append(x.numel()))
    return carried


def in_place_everywhere(a, b, step):
    """Reads before and after writes, on both sides of a meeting, in orders that may not be exchanged."""
    b.add_(a)
    (size,) = l2_norms(a)
    early = a * 2.0  # before a changes, although a changes only when the size is known
    a.mul_(size)
    late = a + b
    b.sub_(early)
    b2hat, rest = debiased(0.9, step)
    a.mul_(b2hat).add_(b * rest)
    clip_by_rms_(1e-3, b, late)
    b.add_(late)
    a.add_(quotient(b, late.abs()))


def asks_once(a, b, step):
    a.div_(rms(b)[0])


def asks_for_rows(a, b, step):
    rows, columns = row_and_column_sums(a.square())
    b.add_(rows.unsqueeze(-1)).mul_(columns.unsqueeze(-2))


def tensors(n):
    generator = torch.Generator().manual_seed(n)
    a, b = (torch.randn(3, 4 + n, generator=generator, dtype=torch.float64) for _ in range(2))
    return [a, b, torch.tensor(n + 1)]


def places(count, role="batch", group="group"):
    return [Place(numel=3 * (4 + n), groups=((group, role),), device="cpu") for n in range(count)]


def added(together, rule, count, **kind):
    """``count`` tensors for the rule, later; and what it makes of them at once."""
    later, expected = [tensors(n) for n in range(count)], [tensors(n) for n in range(count)]
    for each in expected:
        rule(*each)
    done = []
    after = [[lambda i=i: done.append(i)] for i in range(count)]
    together.add(rule, list(zip(*later, strict=True)), places(count, **kind), after, {})
    return later, expected, done


@pytest.mark.parametrize("rule", [in_place_everywhere, asks_once, asks_for_rows])
@pytest.mark.parametrize("role", ["rows", "columns", "batch"])
def test_the_bits_are_those_of_the_rule_itself(meetings, rule, role):
    together = Lockstep()
    later, expected, done = added(together, rule, 3, role=role)
    assert all(
        torch.equal(x, y) for xs, n in zip(later, range(3), strict=True) for x, y in zip(xs, tensors(n), strict=True)
    )
    together.run()
    assert all(torch.equal(x, y) for xs, ys in zip(later, expected, strict=True) for x, y in zip(xs, ys, strict=True))
    assert done == [0, 1, 2]


def test_rules_meet_together_and_as_often_as_the_one_that_meets_most(meetings):
    together = Lockstep()
    added(together, in_place_everywhere, 3)
    added(together, asks_once, 2)
    together.run()
    assert meetings == [3 + 2, 2 * 3]  # a size each; then two clips of the first rule


def test_each_group_is_asked_once_and_only_for_what_it_splits(meetings):
    together = Lockstep()
    added(together, asks_for_rows, 2, role="columns", group="a")
    added(together, asks_for_rows, 1, role="rows", group="b")
    added(together, asks_for_rows, 1, group="c")
    together.run()
    assert meetings == [2 * 3, 4]  # rows of two tensors; columns of one; nothing of a batch of whole matrices


def test_what_nothing_needs_any_more_is_let_go(meetings):
    kept = []

    def rule(a, b, step):
        early = a * 2.0
        kept.append(early)
        b.add_(early)
        (size,) = l2_norms(b)
        b.mul_(size)

    together = Lockstep()
    together.add(rule, list(zip(*[tensors(n) for n in range(2)], strict=True)), places(2), [[], []], {})
    together.run()
    assert kept[0].parts == [None, None]
