"""The speech task: batches, losses, error rates and a few steps of training."""

from dataclasses import replace

import pytest
import torch

from fisheropt_lab.models.recognizer import CtcRecognizer, Transducer
from fisheropt_lab.tasks import Asked
from fisheropt_lab.tasks.speech.alphabet import decode
from fisheropt_lab.tasks.speech.decoding import transducer_beam, transducer_greedy
from fisheropt_lab.tasks.speech.synthesis import synthetic_speech
from fisheropt_lab.tasks.speech.task import SPEECH, SpeechSettings, SpeechTask, recognition_loss, transcribe

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def settings() -> SpeechSettings:
    return SpeechSettings(size="tiny", batch_size=2, loss="ctc", search="greedy", data=None)


@pytest.fixture(scope="module")
def task(settings, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FISHEROPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        return SpeechTask(settings, synthetic_speech(limit=40))


def test_a_batch_is_a_function_of_seed_and_step(task):
    first, again, other = task.batch(1, 2), task.batch(1, 2), task.batch(1, 3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert first[0].shape != other[0].shape or not torch.equal(first[0], other[0])
    features, frames, labels, counts = first
    assert features.shape == (2, int(frames.max()), 40)
    assert labels.shape == (2, int(counts.max()))


@pytest.mark.parametrize(("loss", "kind"), [("ctc", CtcRecognizer), ("rnnt", Transducer)])
def test_the_loss_of_a_batch_is_that_of_its_utterances(task, settings, loss, kind):
    task = SpeechTask(replace(settings, loss=loss), task.speech)
    model = task.model(0)
    assert isinstance(model, kind)
    features, frames, labels, counts = task.batch(0, 0)
    together = task.loss(model, (features, frames, labels, counts))
    apart = 0.0
    for i in range(2):
        n, u = int(frames[i]), int(counts[i])
        one = (features[i : i + 1, :n], frames[i : i + 1], labels[i : i + 1, :u], counts[i : i + 1])
        apart += recognition_loss(loss, model, one).item() * u
    assert together.item() == pytest.approx(apart / int(counts.sum()), rel=1e-4)
    together.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def learned_by_heart(task: SpeechTask):
    """A model that knows one utterance, and that utterance as a batch and as text."""
    model = task.model(0)
    recordings = task.recordings["train"]
    short = min(range(len(recordings)), key=lambda i: len(recordings.labels[i]))
    batch = recordings.batch([(recordings.features(short), recordings.labels[short])])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model, batch, recordings.utterances[short].text


@torch.no_grad()
def test_ctc_writes_down_what_it_knows_by_heart(task):
    with torch.enable_grad():
        model, batch, text = learned_by_heart(task)
    assert transcribe(model, batch, "greedy") == [text]
    assert transcribe(model, batch, "beam") == [text]


@torch.no_grad()
def test_a_transducer_writes_down_what_it_knows_by_heart(task, settings):
    with torch.enable_grad():
        model, batch, text = learned_by_heart(SpeechTask(replace(settings, loss="rnnt"), task.speech))
    encoded, _ = model.encoder(batch[0], batch[1])
    # Who knows a single utterance has no need to listen and may write all of it in one frame.
    assert decode(transducer_greedy(model, encoded[0], per_frame=20)) == text
    assert decode(transducer_beam(model, encoded[0], per_frame=20)) == text


def test_error_rates_are_those_of_all_and_of_new_voices(task):
    found = task.metrics(task.model(0), "test", CPU)
    assert set(found) == {"cer", "wer", "cer_new_voices"}
    assert all(rate > 0 for rate in found.values())
    assert set(task.metrics(task.model(0), "validation", CPU)) == {"cer", "wer"}
    (exhibit,) = task.exhibits(task.model(0), CPU)
    assert exhibit.kind == "text"
    assert task.speech.utterances["test"][0].text in exhibit.content


def test_what_is_said_of_it(task):
    told = " ".join(task.protocol(10))
    assert "synthetic speech" in told
    assert "744," not in told  # no number is written by hand
    assert task.describe_data()["speakers"]["test"] >= 2


@pytest.mark.parametrize("loss", ["ctc", "rnnt"])
def test_the_largest_model_is_outlined_without_weights(loss):
    setup = SPEECH.setup(Asked(size="600m", batch_size=1, set={"loss": loss}))
    outline = SPEECH.outline(setup.settings)
    assert all(p.is_meta for p in outline.model.parameters())
    assert 6e8 < sum(p.numel() for p in outline.model.parameters()) < 6.5e8
    assert outline.loss(outline.model).shape == ()
