"""Hand-made trials: what a comparison would have left behind, with numbers that are easy to check in the head."""

from fisheropt_lab.record import Evaluation, Record
from fisheropt_lab.spec import Spec, Trial
from fisheropt_lab.timing import StepTime

STEPS, EVERY = 40, 10


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


def spec(lrs: dict[str, tuple[float, ...]], seeds: tuple[int, ...] = (0, 1, 2)) -> Spec:
    return Spec(
        task="text",
        preset="default",
        settings={"size": "tiny", "batch_size": 8, "seq_len": 128, "data": None},
        data={"source": "a hand-made text", "sha256": "0" * 64},
        lrs=lrs,
        steps=STEPS,
        warmup=4,
        eval_every=EVERY,
        seeds=seeds,
        grad_clip=1.0,
        backend="auto",
        device="cpu",
        threads=2,
    )


def step_time(optimizer_ms: float, training_ms: float) -> StepTime:
    return StepTime(optimizer_ms, (optimizer_ms - 0.5, optimizer_ms + 0.5), training_ms, 30)


LRS = {"adamw": (0.1, 0.2, 0.4), "fadam": (0.1, 0.2, 0.4), "sgd": (1.0, 2.0, 4.0)}
SPEC = spec(LRS)
SEARCH = [
    record("adamw", 0.1, 0, [3.0, 2.5, 2.2, 2.1]),
    record("adamw", 0.2, 0, [3.0, 2.4, 2.0, 2.0]),  # the best
    record("adamw", 0.4, 0, [3.0, 2.6, 1.9, 2.3]),  # lower once, but not at the end
    record("fadam", 0.1, 0, [2.9, 2.3, 2.0, 1.9]),
    record("fadam", 0.2, 0, [2.8, 2.2, 1.9, 1.8]),
    record("fadam", 0.4, 0, [2.7, 2.0, 1.7, 1.6]),  # the best, at the edge of the grid
    record("sgd", 1.0, 0, [3.5, 3.3, 3.1, 3.0], bytes_per_parameter=4),
    record("sgd", 2.0, 0, [3.4, 3.2, 3.0, 2.9], bytes_per_parameter=4),  # the best, but not on every seed
    record("sgd", 4.0, 0, None, bytes_per_parameter=4),
]
REPEATS = [
    record("adamw", 0.2, 1, [3.0, 2.4, 2.1, 2.2]),
    record("fadam", 0.4, 1, [2.7, 2.2, 2.0, 1.8]),
    record("sgd", 2.0, 1, [3.4, 3.2, 3.1, 3.0], bytes_per_parameter=4),
    record("adamw", 0.2, 2, [3.0, 2.4, 2.1, 2.1]),
    record("fadam", 0.4, 2, [2.7, 2.5, 2.3, 2.2]),  # never reaches AdamW's 2.1
    record("sgd", 2.0, 2, None, bytes_per_parameter=4),
]
TEST_LOSSES = {
    "adamw-lr0.2-seed0": 2.0,
    "adamw-lr0.2-seed1": 2.1,
    "adamw-lr0.2-seed2": 2.2,
    "fadam-lr0.4-seed0": 1.7,
    "fadam-lr0.4-seed1": 1.8,
    "fadam-lr0.4-seed2": 1.9,
    "sgd-lr2-seed0": 3.0,
    "sgd-lr2-seed1": 3.1,
}
STEP_TIMES = {"adamw": step_time(2.0, 50.0), "fadam": step_time(3.0, 55.0), "sgd": step_time(1.0, 49.0)}
