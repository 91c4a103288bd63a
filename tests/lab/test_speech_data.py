"""Speech: how it is made, written, read and turned into features."""

import math

import numpy as np
import pytest
import torch

from fisheropt_lab.errors import LabError
from fisheropt_lab.tasks.speech.alphabet import decode, encode
from fisheropt_lab.tasks.speech.espeak import SAMPLE_RATE, Voice, speak
from fisheropt_lab.tasks.speech.features import HOP, RATE, log_mel, mel_filters, spec_augment
from fisheropt_lab.tasks.speech.librispeech import load_audio, read_speech
from fisheropt_lab.tasks.speech.sentences import sentences
from fisheropt_lab.tasks.speech.synthesis import NEW_VOICES, VOICES, resampled, script, synthetic_speech

VOICE = Voice("en-us", "f2", 50, 150)


def test_an_utterance_does_not_depend_on_what_was_said_before():
    first = speak("hello world", VOICE, 1)
    speak("something else", Voice("en", "m3", 40, 120), 2)
    assert np.array_equal(first, speak("hello world", VOICE, 1))
    assert not np.array_equal(first, speak("hello world", VOICE, 2)), "the noise in it does not follow the seed"
    assert 0.3 < len(first) / SAMPLE_RATE < 3


def test_an_unknown_voice_is_refused():
    with pytest.raises(LabError, match="nobody"):
        speak("hello", Voice("en-us", "nobody", 50, 150), 1)


def test_resampling_keeps_a_tone_and_its_length():
    t = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    tone = (10_000 * np.sin(2 * np.pi * 440 * t)).astype(np.int16)
    out = resampled(tone)
    assert len(out) == RATE
    assert np.argmax(np.abs(np.fft.rfft(out))) == 440
    assert np.abs(out[1000:-1000]).max() == pytest.approx(10_000, rel=0.01)


def test_no_sentence_is_in_two_splits_and_new_voices_are_in_the_test_only():
    lines = script()
    texts = {split: {x.text for x in lines if x.part.startswith(split)} for split in ("train", "dev", "test")}
    assert not texts["train"] & texts["dev"]
    assert not (texts["train"] | texts["dev"]) & texts["test"]
    assert {x.speaker for x in lines if not x.part.startswith("test")} == set(VOICES)
    assert {x.speaker for x in lines if x.part == "test-voices"} == set(NEW_VOICES)
    assert all(decode(encode(text)) == text for text in sentences())


@pytest.fixture
def speech(tmp_path, monkeypatch):
    monkeypatch.setenv("FISHEROPT_CACHE", str(tmp_path))
    return synthetic_speech(limit=30)


def test_it_is_written_like_librispeech_and_found_again(speech, tmp_path):
    (folder,) = tmp_path.glob("speech-*")
    again = read_speech(folder, speech.source, speech.how_split)
    assert again == speech
    assert again == synthetic_speech(limit=30)
    assert len(list(tmp_path.iterdir())) == 1, "an unfinished folder was left"
    one = speech.utterances["train"][0]
    assert one.audio.name.startswith(f"{one.speaker}-1-")
    assert load_audio(one.audio, RATE).dtype == np.float32


def test_what_is_wrong_with_a_folder_is_said(speech, tmp_path):
    (folder,) = tmp_path.glob("speech-*")
    with pytest.raises(LabError, match="no such folder"):
        read_speech(folder / "nowhere", "", "")
    next(folder.glob("train-*/*/*/*.flac")).unlink()
    with pytest.raises(LabError, match="missing"):
        read_speech(folder, "", "")
    for transcript in folder.glob("dev-*/*/*/*.trans.txt"):
        transcript.unlink()
    for transcript in folder.glob("train-*/*/*/*.trans.txt"):
        transcript.write_text("")
    with pytest.raises(LabError, match="no train utterances"):
        read_speech(folder, "", "")
    with pytest.raises(LabError, match="mono at 8000"):
        load_audio(next(folder.glob("test-*/*/*/*.flac")), 8000)


def test_a_tone_lights_up_its_band():
    filters = mel_filters(40)
    t = torch.arange(RATE) / RATE
    quiet, tone = torch.zeros(RATE // 2), torch.sin(2 * math.pi * 1000 * t)
    features = log_mel(torch.cat((quiet, tone)), filters)  # (frames, 40)
    assert features.shape == (1 + (RATE // 2 + RATE) // HOP, 40)
    assert torch.allclose(features.mean(0), torch.zeros(40), atol=1e-5)
    low = 2595 * math.log10(1 + 20 / 700)
    high = 2595 * math.log10(1 + 7600 / 700)
    band = round((2595 * math.log10(1 + 1000 / 700) - low) / (high - low) * 41) - 1
    power = torch.stft(tone, 512, HOP, 400, torch.hann_window(400), return_complex=True).abs().square().T @ filters
    assert abs(int(power.mean(0).argmax()) - band) <= 1


def test_augmentation_blanks_some_and_changes_nothing_else():
    x = torch.ones(100, 40)
    a = spec_augment(x, np.random.Generator(np.random.Philox(key=[1, 2])))
    assert torch.equal(a, spec_augment(x, np.random.Generator(np.random.Philox(key=[1, 2]))))
    assert torch.equal(x, torch.ones(100, 40))
    assert set(a.unique().tolist()) <= {0.0, 1.0}
    seen = [spec_augment(x, np.random.Generator(np.random.Philox(key=[1, i]))) for i in range(50)]
    assert 0.5 < torch.stack(seen).mean() < 0.95
    assert min(x.mean() for x in seen) > 0.4


def test_characters_that_are_not_known_are_named():
    with pytest.raises(LabError, match="'4'"):
        encode("chapter 4")
