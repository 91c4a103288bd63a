import sqlite3
import subprocess
import sys
import threading

import pytest
from tests.lab.records import record

from fisheropt_lab.record import Exhibit, HeldOut
from fisheropt_lab.spec import Trial
from fisheropt_lab.sweeps import Store
from fisheropt_lab.sweeps.job import Result


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "sweep.sqlite")
    store.create()
    return store


def result(lr, seed=0, loss=2.0, test=None, optimizer="adamw"):
    return Result(record(optimizer, lr, seed, None if loss is None else [loss] * 4), test)


def test_everything_comes_back(store):
    tested = HeldOut(1.5, {"accuracy": 0.9}, (Exhibit("A line", "text", "abc"),))
    one, other = result(0.1, test=tested), result(0.2, loss=None)
    one.record.trial = Trial("fadam", 0.1, 0, (("eps2", None), ("rho", 0.5)), (("loss", "squared"),))
    store.add(one)
    store.add(other)
    assert store.results() == {one.record.trial: one, other.record.trial: other}
    assert store.records() == {one.record.trial: one.record, other.record.trial: other.record}


def test_the_first_result_of_a_training_stands(store):
    assert store.add(result(0.1, loss=2.0))
    assert not store.add(result(0.1, loss=1.0)), "nobody may try until it looks better"
    (kept,) = store.records().values()
    assert kept.validation_loss == 2.0


def test_what_is_written_about_the_sweep_can_be_read(store):
    assert store.about("frozen") is None
    store.describe("frozen", {"target": 2.0})
    assert store.about("frozen") == {"target": 2.0}


def test_rows_are_filtered_by_sql(store):
    for lr, loss in ((0.1, 2.0), (0.2, None), (0.4, 1.0)):
        store.add(result(lr, loss=loss))
    assert [row[2] for row in store.rows("diverged_at IS NOT NULL")] == [0.2]
    assert [row[2] for row in store.rows("lr > ?", (0.15,), "validation DESC")] == [0.4, 0.2]


def test_many_writers_and_a_reader_at_once(store):
    seen = []

    def write(optimizer):
        for i in range(12):
            store.add(result(1.0 + i, optimizer=optimizer))

    writers = [threading.Thread(target=write, args=(name,)) for name in ("adamw", "fadam", "sgd", "adam")]
    for one in writers:
        one.start()
    while any(one.is_alive() for one in writers):
        seen.append(len(store.rows()))
    for one in writers:
        one.join()
    assert len(store.results()) == 48
    assert seen == sorted(seen)


HOLD = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
connection.execute("INSERT INTO about VALUES ('held', '1')")
print("holding", flush=True)
time.sleep(0.5)
connection.execute("COMMIT")
"""


def test_another_process_that_writes_is_waited_for_and_does_not_keep_readers_out(store):
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(store.path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "holding\n"
    assert store.about("held") is None, "a reader sees what was there before"
    assert store.add(result(0.1)), "a writer waits"
    assert other.wait() == 0
    other.stdout.close()
    assert store.about("held") == 1
    assert len(store.rows()) == 1


def test_the_file_is_an_ordinary_database(store):
    store.add(result(0.1))
    connection = sqlite3.connect(store.path)
    assert connection.execute("SELECT optimizer, validation FROM runs").fetchall() == [("adamw", 2.0)]
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
