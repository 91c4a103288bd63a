from tests.lab.records import SEEDS, spec

from fisheropt_lab.optimizers import CONTENDERS
from fisheropt_lab.tracks import DROP_IN, START, TUNED, in_order, reported
from fisheropt_lab.tuning import Choice

GRID = (1.0, 2.0, 4.0)


def choice(lr, **knobs):
    return Choice(lr, tuple(sorted(knobs.items())), GRID, (), None, 1.0)


def tracks_of(**choices):
    return reported(spec(dict.fromkeys(choices, GRID)), choices)


def test_tuned_is_what_tuning_found_and_drop_in_the_baselines_learning_rate():
    tracks = tracks_of(adamw=choice(1.0), fadam=choice(4.0))
    assert {trial.lr for trial in tracks[TUNED]["fadam"]} == {4.0}
    assert {trial.lr for trial in tracks[DROP_IN]["fadam"]} == {1.0}
    assert tracks[DROP_IN]["adamw"] == tracks[TUNED]["adamw"]
    assert [trial.seed for trial in tracks[TUNED]["fadam"]] == list(SEEDS)


def test_a_knob_goes_along_where_both_measure_it_in_the_same_unit():
    tuned = choice(1.0, weight_decay=0.1, beta2=0.95)
    tracks = tracks_of(adamw=tuned, fadam=choice(4.0), adam=choice(4.0), muon=choice(2.0))
    dropped = {name: dict(trials[0].options) for name, trials in tracks[DROP_IN].items()}
    assert dropped["adam"] == {"weight_decay": 0.1, "beta2": 0.95}
    assert dropped["fadam"] == {"beta2": 0.95}, "its decay is in the Fisher metric"
    assert dropped["muon"] == {"weight_decay": 0.1}, "its third knob is the momentum"


def test_an_optimizer_whose_learning_rate_is_in_another_unit_is_no_drop_in():
    tracks = tracks_of(adamw=choice(1.0), sgd=choice(4.0), naturaladam=choice(2.0))
    assert set(tracks[DROP_IN]) == {"adamw"}
    assert set(tracks[TUNED]) == {"adamw", "sgd", "naturaladam"}


def test_a_control_runs_at_its_owners_tuned_learning_rate_over_the_damping():
    tracks = tracks_of(adamw=choice(1.0), adafisher=choice(0.02), **{"sgd-control": choice(3.0)})
    (lr,) = {trial.lr for trial in tracks[DROP_IN]["sgd-control"]}
    assert lr == 0.02 / CONTENDERS["adafisher"].options["damping"]


def test_the_baseline_also_runs_where_its_tuning_began():
    tracks = tracks_of(adamw=choice(1.0, beta2=0.95), fadam=choice(4.0))
    assert {(trial.lr, trial.options) for trial in tracks[START]["adamw"]} == {(2.0, ())}


def test_every_run_once_and_seed_by_seed():
    tracks = tracks_of(adamw=choice(2.0), fadam=choice(2.0))  # all three tracks of AdamW are one, both of FAdam too
    order = in_order(tracks)
    assert len(order) == len(set(order)) == 2 * len(SEEDS)
    assert [trial.seed for trial in order] == sorted(trial.seed for trial in order)


def test_an_optimizer_that_always_diverged_is_left_out():
    lrs = {"adamw": GRID, "fadam": GRID}
    tracks = reported(spec(lrs), {"adamw": choice(1.0)})
    assert "fadam" not in tracks[TUNED]
    assert {trial.lr for trial in tracks[DROP_IN]["fadam"]} == {1.0}, "the baseline's settings can be tried"
