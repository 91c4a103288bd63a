"""State in bfloat16 and in 8-bit blocks, and bfloat16 weights: unbiased, reproducible, as small as promised."""

import math

import pytest
import torch

from fisheropt import FAdafactor, FAdam
from fisheropt._rounding import noise, round_to_bfloat16
from fisheropt._state import Slot
from fisheropt._storage import BLOCK, MIN_SIZE_8BIT, Blocks8, storage_of
from fisheropt.baselines import Adafactor, Adam, NaturalAdam

OPTIMIZERS = [FAdam, FAdafactor, Adam, Adafactor, NaturalAdam]
SMALL = [torch.bfloat16, "int8"]
SIGNED, POSITIVE = Slot("m", "", signed=True), Slot("f", "", init=1.0)


def at(step: int) -> torch.Tensor:
    return torch.tensor(step, dtype=torch.int64)


def gradients(shape, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-2, 0, shape[-1])
    return [torch.randn(shape, generator=generator) * scale for _ in range(steps)]


def trained(optimizer_class, grads, **options):
    p = torch.nn.Parameter(torch.linspace(-1, 1, grads[0].numel()).reshape(grads[0].shape))
    optimizer = optimizer_class([p], lr=1e-2, **{"backend": "eager", **options})
    for g in grads:
        p.grad = g.clone()
        optimizer.step()
    return p, optimizer


# -- the noise --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 2, 1_000_000])
@pytest.mark.parametrize("name", ["f", "m", "p"])
def test_noise_is_uniform(step, name):
    counts = torch.bincount(noise(1 << 16, at(step), 0, name) >> 24, minlength=256).double()
    chi2 = ((counts - 256) ** 2 / 256).sum().item()
    assert abs(chi2 - 255) < 5 * math.sqrt(2 * 255)  # mean and standard deviation of chi-squared with 255 degrees


def test_noise_of_neighbouring_steps_seeds_and_slots_is_uncorrelated():
    n = 1 << 16
    streams = [noise(n, at(s), seed, name) for s in (1, 2) for seed in (0, 1) for name in ("f", "m")]
    correlation = torch.corrcoef(torch.stack(streams).double()) - torch.eye(len(streams))
    assert correlation.abs().max() < 5 / math.sqrt(n)


# -- bfloat16 ---------------------------------------------------------------------------------------------------------


def test_rounding_to_bfloat16_is_unbiased_and_to_a_neighbour():
    n, x = 1 << 16, 1 + 0.3 * 2**-7  # three tenths of the way from 1 to the next bfloat16
    rounded = round_to_bfloat16(torch.full((n,), x), at(1), 0, "p").double()
    up = (rounded == 1 + 2**-7).double()
    assert set(rounded.tolist()) == {1.0, 1 + 2**-7}
    assert abs(up.mean() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / n)


def test_rounding_to_bfloat16_keeps_what_fits_and_stays_finite():
    fits = torch.tensor([0.0, -0.0, 1.0, -2.5, 2.0**-126, torch.finfo(torch.bfloat16).max])
    assert torch.equal(round_to_bfloat16(fits, at(7), 0, "p").float(), fits)
    largest = torch.finfo(torch.float32).max
    extreme = round_to_bfloat16(torch.tensor([largest, -largest]), at(7), 0, "p")
    assert extreme.tolist() == [torch.finfo(torch.bfloat16).max, -torch.finfo(torch.bfloat16).max]
    assert round_to_bfloat16(torch.tensor([math.nan]), at(7), 0, "p").isnan().all()


@pytest.mark.parametrize(
    ("optimizer_class", "backend"), [(FAdam, "eager"), (FAdam, "auto"), (FAdafactor, "eager"), (Adam, "eager")]
)
def test_a_bfloat16_weight_moves_in_expectation_and_would_not_without(optimizer_class, backend):
    moved = {}
    for stochastic in (False, True):
        p = torch.nn.Parameter(torch.ones(100, 100, dtype=torch.bfloat16))
        options = {"stochastic_rounding": stochastic, "backend": backend}
        optimizer = optimizer_class([p], lr=1e-4, betas=(0.0, 0.999), weight_decay=0.0, **options)
        for _ in range(100):  # a constant gradient: a step of lr each
            p.grad = torch.ones_like(p)
            optimizer.step()
        moved[stochastic] = 1 - p.detach().double().mean().item()
    assert moved[False] == 0.0
    # below 1 bfloat16s are 2^-8 apart; each weight makes binomially many such jumps
    spread = math.sqrt(1e-2 * 2**-8 / p.numel())
    assert abs(moved[True] - 1e-2) < 4 * spread


# -- 8 bits -----------------------------------------------------------------------------------------------------------


def stored_and_read(slot, x, steps=400):
    """``x`` stored and read back ``steps`` times, each with noise of its own: (steps, *x.shape)."""
    storage = Blocks8()
    state = storage.allocate(slot, x, {"state_dtype": "int8"})
    results = []
    for step in range(steps):
        state["step"] = at(step)
        storage.write(slot, state, x, seed=0)
        results.append(storage.read(slot, state))
    return torch.stack(results).double()


def test_signed_8_bit_storage_is_unbiased():
    x = torch.linspace(-1, 1, 3 * BLOCK + 5)
    read = stored_and_read(SIGNED, x)
    block_max = torch.cat([b.abs().amax().expand(len(b)) for b in x.split(BLOCK)]).double()
    z = (read.mean(0) - x.double()) / (block_max / 127 / 2 / math.sqrt(len(read)))  # a coin between neighbours: <= 1/2
    assert z.abs().max() < 5
    assert ((read - x.double()).abs() <= block_max / 127 + 1e-7).all()


def test_companded_8_bit_storage_is_unbiased_in_the_root_and_keeps_small_numbers():
    x = torch.logspace(-4, 0, 2 * BLOCK)
    read = stored_and_read(POSITIVE, x)
    root_max = torch.cat([b.amax().sqrt().expand(len(b)) for b in x.split(BLOCK)]).double()
    z = (read.sqrt().mean(0) - x.double().sqrt()) / (root_max / 255 / 2 / math.sqrt(len(read)))
    assert z.abs().max() < 5


def test_companded_8_bit_storage_never_makes_a_positive_number_zero_nor_zero_positive():
    x = torch.zeros(2 * BLOCK)
    x[0], x[1] = 1.0, 1e-30
    read = stored_and_read(POSITIVE, x, steps=50)
    assert (read[:, 1] > 0).all()
    assert (read[:, 2:] == 0).all()
    assert (read[:, 0] == 1).all()


def test_8_bit_storage_is_for_tensors_that_gain_by_it():
    options = {"state_dtype": "int8", "min_dim_size_to_factor": 1}
    big, small = torch.empty(MIN_SIZE_8BIT), torch.empty(MIN_SIZE_8BIT - 1)
    rows = Slot("R", "", summed_over="columns")
    assert not storage_of(POSITIVE, big, options).direct
    assert storage_of(POSITIVE, small, options).direct
    assert storage_of(POSITIVE, big.double(), options).direct
    assert storage_of(rows, torch.empty(8192, 8192, device="meta"), options).direct


# -- the optimizers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state_dtype", SMALL, ids=str)
@pytest.mark.parametrize("optimizer_class", OPTIMIZERS)
def test_the_first_step_is_that_of_full_precision(optimizer_class, state_dtype):
    """The initial state is exact in every storage, and the rule runs in float32: only what is stored is rounded."""
    grads = gradients((160, 130), 1)
    reference, _ = trained(optimizer_class, grads)
    p, _ = trained(optimizer_class, grads, state_dtype=state_dtype)
    assert torch.equal(p, reference)


@pytest.mark.parametrize(("state_dtype", "bound"), [(torch.bfloat16, 0.005), ("int8", 0.02)], ids=str)
@pytest.mark.parametrize("optimizer_class", OPTIMIZERS)
def test_small_state_follows_full_precision(optimizer_class, state_dtype, bound):
    """The move over 30 steps differs by what the storage can resolve; a wrong decoding is off by far more."""
    grads = [g + 0.3 for g in gradients((160, 130), 30)]
    reference, _ = trained(optimizer_class, grads)
    p, _ = trained(optimizer_class, grads, state_dtype=state_dtype)
    start = torch.linspace(-1, 1, p.numel()).reshape(p.shape)
    assert (p - reference).norm() < bound * (reference - start).norm()


@pytest.mark.parametrize("state_dtype", SMALL, ids=str)
@pytest.mark.parametrize("optimizer_class", OPTIMIZERS)
def test_small_state_is_reproducible_and_resumes_bit_for_bit(optimizer_class, state_dtype, tmp_path):
    grads = gradients((160, 130), 6)
    straight, _ = trained(optimizer_class, grads, state_dtype=state_dtype)
    again, _ = trained(optimizer_class, grads, state_dtype=state_dtype)
    other, _ = trained(optimizer_class, grads, state_dtype=state_dtype, seed=1)
    assert torch.equal(straight, again)
    assert not torch.equal(straight, other)

    half, optimizer = trained(optimizer_class, grads[:3], state_dtype=state_dtype)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    resumed = torch.nn.Parameter(half.detach().clone())
    second = optimizer_class([resumed], backend="eager")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for g in grads[3:]:
        resumed.grad = g.clone()
        second.step()
    assert torch.equal(resumed, straight)


@pytest.mark.parametrize("state_dtype", SMALL, ids=str)
def test_small_state_has_the_same_bits_for_any_number_of_threads(state_dtype):
    grads = gradients((331, 301), 3)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(trained(FAdam, grads, state_dtype=state_dtype, backend="auto")[0])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(r, results[0]) for r in results)


@pytest.mark.parametrize("backend", ["eager", "auto"])
@pytest.mark.parametrize("state_dtype", SMALL, ids=str)
def test_small_state_of_a_transposed_parameter(state_dtype, backend):
    grads = gradients((96, 80), 5)
    straight = torch.nn.Parameter(torch.ones(96, 80))
    transposed = torch.nn.Parameter(torch.ones(80, 96).t())
    for p in (straight, transposed):
        optimizer = FAdam([p], state_dtype=state_dtype, lr=1e-2, backend=backend)
        for g in grads:
            p.grad = g.clone() if p is straight else g.t().contiguous().t()
            optimizer.step()
    assert (straight - transposed).abs().max() < 0.05  # noise and blocks follow memory order: close, not equal
    assert optimizer.state[transposed]["m"].stride() == transposed.stride()


@pytest.mark.parametrize(
    ("optimizer_class", "options", "expected"),
    [
        (FAdam, {}, 8.0),
        (FAdam, {"state_dtype": torch.bfloat16}, 4.0),
        (FAdam, {"state_dtype": "int8"}, 2.0625),
        (FAdafactor, {"state_dtype": "int8"}, 1.03125),
        (FAdafactor, {"momentum": False}, 0.0),
    ],
)
def test_bytes_of_state_per_parameter(optimizer_class, options, expected):
    p, optimizer = trained(optimizer_class, gradients((1024, 1024), 1), **options)
    size = sum(t.numel() * t.element_size() for t in optimizer.state[p].values())
    assert size / p.numel() == pytest.approx(expected, abs=0.008)  # the row and column sums, and the step


def test_float16_state_is_refused_with_what_there_is():
    with pytest.raises(ValueError, match=r"state_dtype must be None, .* got torch\.float16"):
        FAdam([torch.nn.Parameter(torch.ones(2))], state_dtype=torch.float16)
