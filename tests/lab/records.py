"""Hand-made trainings: what a study would have left behind, with numbers that are easy to check in the head."""

from fisheropt_lab.record import Evaluation, HeldOut, Record
from fisheropt_lab.spec import Entry, Spec, Trial
from fisheropt_lab.sweeps.job import Result
from fisheropt_lab.timing import StepTime
from fisheropt_lab.tracks import reported
from fisheropt_lab.tuning import tune

STEPS, EVERY = 40, 10
SEEDS = (1, 2, 3, 4, 5)
LABELS = {"adamw": "AdamW", "fadam": "FAdam", "sgd": "SGD"}


def record(optimizer: str, lr: float, seed: int, losses: list[float] | None, bytes_per_parameter: int = 8) -> Record:
    """A trial evaluated after 10, 20, ... steps with these validation losses; None diverged at step 3."""
    steps = 3 if losses is None else EVERY * len(losses)
    return Record(
        trial=Trial(optimizer, lr, seed),
        train_loss=[4.0 - i / 100 for i in range(steps)],
        train_seconds=[0.5 * (i + 1) for i in range(steps)],
        optimizer_ms=[1.0, 9.0, 2.0] + [2.0] * (steps - 3),
        evaluations=[Evaluation(EVERY * (i + 1), 5.0 * (i + 1), loss) for i, loss in enumerate(losses or [])],
        validation_loss=losses[-1] if losses else None,
        diverged_at_step=3 if losses is None else None,
        parameters=100,
        state_bytes=100 * bytes_per_parameter,
        backends={"eager": 2},
        finished="2026-01-02T03:04:05+00:00",
    )


def spec(lrs: dict[str, tuple[float, ...]], seeds: tuple[int, ...] = SEEDS, **changes: object) -> Spec:
    entries = {name: Entry(LABELS.get(name, name), name, lrs=grid) for name, grid in lrs.items()}
    values = {
        "study": "compare",
        "task": "text",
        "preset": "default",
        "settings": {"size": "tiny", "batch_size": 8, "seq_len": 128, "data": None, "tokenizer": None},
        "data": {"source": "a hand-made text", "sha256": "0" * 64},
        "entries": entries,
        "most_lrs": max(map(len, lrs.values())),
        "knob_values": 0,
        "steps": STEPS,
        "warmup": 4,
        "eval_every": EVERY,
        "tuning_seed": 0,
        "seeds": seeds,
        "grad_clip": 1.0,
        "backend": "auto",
        "device": "cpu",
        "threads": 2,
    }
    return Spec(**(values | changes))


def step_time(optimizer_ms: float, training_ms: float) -> StepTime:
    return StepTime(optimizer_ms, (optimizer_ms - 0.5, optimizer_ms + 0.5), training_ms, 30)


LRS = {"adamw": (0.1, 0.2, 0.4), "fadam": (0.1, 0.2, 0.4), "sgd": (1.0, 2.0, 4.0)}
SPEC = spec(LRS)
SEARCH = [
    record("adamw", 0.1, 0, [3.0, 2.5, 2.2, 2.1]),
    record("adamw", 0.2, 0, [3.0, 2.4, 2.0, 2.0]),  # the best: the target is 2.0 and 1 %
    record("adamw", 0.4, 0, [3.0, 2.6, 1.9, 2.3]),  # lower once, but not at the end
    record("fadam", 0.1, 0, [2.9, 2.3, 2.0, 1.9]),
    record("fadam", 0.2, 0, [2.8, 2.2, 1.9, 1.65]),
    record("fadam", 0.4, 0, [2.7, 2.0, 1.7, 1.6]),  # the best, at the edge of the grid
    record("sgd", 1.0, 0, [3.5, 3.3, 3.1, 3.0], bytes_per_parameter=4),
    record("sgd", 2.0, 0, [3.4, 3.2, 3.0, 2.9], bytes_per_parameter=4),  # the best, but not on every seed
    record("sgd", 4.0, 0, None, bytes_per_parameter=4),
]
ADAMW = (2.0, 2.1, 2.2, 2.1, 2.1)  # test losses, tuned
FADAM = (1.7, 1.7, 2.0, 1.8, 1.7)
FADAM_AT_ADAMWS = (2.1, 2.0, 2.3, 2.0, 2.1)


def fresh(
    fadam: tuple[float, ...] = FADAM, dropped: tuple[float, ...] = FADAM_AT_ADAMWS
) -> list[tuple[Record, float | None]]:
    """The reported trainings with their test losses; SGD diverges on the second seed."""
    found: list[tuple[Record, float | None]] = []
    for i, seed in enumerate(SEEDS):
        found.append((record("adamw", 0.2, seed, [3.0, 2.4, 2.02, 2.0 + 0.01 * seed]), ADAMW[i]))
        found.append((record("fadam", 0.4, seed, [2.7, 2.2, 2.0, 1.8] if seed < 5 else [2.7] * 4), fadam[i]))
        found.append((record("fadam", 0.2, seed, [2.7, 2.4, 2.1, 2.0]), dropped[i]))
        losses = None if seed == 2 else [3.4, 3.2, 3.1, 3.0]
        found.append((record("sgd", 2.0, seed, losses, bytes_per_parameter=4), losses and 3.0))
    return found


def results(reported: list[tuple[Record, float | None]] | None = None) -> dict[Trial, Result]:
    """Tuning and reported trainings as a store would hold them."""
    all_of_them = [(one, None) for one in SEARCH] + (fresh() if reported is None else reported)
    return {one.trial: Result(one, None if test is None else HeldOut(test)) for one, test in all_of_them}


RECORDS = {one.trial: one for one in SEARCH}
CHOICES = tune(SPEC, RECORDS).choices
TRACKS = reported(SPEC, CHOICES)
STEP_TIMES = {"adamw": step_time(2.0, 50.0), "fadam": step_time(3.0, 60.0), "sgd": step_time(1.0, 49.0)}
