"""espeak-ng, a formant synthesiser, called through ctypes.

Some of its sounds are noise, and the library remembers the phase of its oscillators from one utterance to the next. So
every utterance sets the seed of the noise and is spoken by a freshly loaded library: the same text, voice and seed give
the same samples, whatever was said before. Loading takes milliseconds.
"""

from __future__ import annotations

import _ctypes
import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fisheropt_lab.errors import LabError
from fisheropt_lab.tasks.speech.extra import module

Samples = NDArray[np.int16]

SAMPLE_RATE = 22_050  # per second, of every voice

# Numbers of espeak-ng's speak_lib.h
_RETRIEVAL = 1  # output goes to a callback
_RATE, _PITCH, _RANGE = 1, 3, 4  # espeak_PARAMETER
_UTF8 = 1
_CHARACTERS = 1  # a position is counted in characters

_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True)
class Voice:
    """A speaker.

    Attributes:
        accent: a language of espeak-ng, such as ``"en-us"``.
        variant: one of its voice variants, such as ``"f2"``.
        pitch: 0 to 100.
        rate: words per minute.
    """

    accent: str
    variant: str
    pitch: int
    rate: int

    @property
    def name(self) -> str:
        """As espeak-ng takes it."""
        return f"{self.accent}+{self.variant}"


def speak(text: str, voice: Voice, seed: int) -> Samples:
    """The samples of an utterance, at `SAMPLE_RATE`.

    Raises:
        LabError: espeak-ng is not installed, or does not have the voice.
    """
    loader = module("espeakng_loader")
    data = Path(loader.get_data_path())
    if not (data / "voices" / "!v" / voice.variant).exists():
        raise LabError(f"espeak-ng has no voice variant {voice.variant!r}; reinstall espeakng-loader")
    chunks: list[Samples] = []

    def take(samples: Any, count: int, _events: Any) -> int:
        if samples and count:
            chunks.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        return 0

    callback = _CALLBACK(take)  # kept by name, or it is collected while the library still calls it
    library = ctypes.CDLL(loader.get_library_path())
    try:
        rate = library.espeak_Initialize(_RETRIEVAL, 0, str(data.parent).encode(), 0)
        if rate != SAMPLE_RATE:
            raise LabError(f"espeak-ng started with {rate} samples per second, not {SAMPLE_RATE}; another version?")
        library.espeak_SetSynthCallback(callback)
        if library.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise LabError(f"espeak-ng has no voice {voice.name!r}; reinstall espeakng-loader")
        for parameter, value in ((_RATE, voice.rate), (_PITCH, voice.pitch), (_RANGE, 50)):
            library.espeak_SetParameter(parameter, value, 0)
        library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        encoded = text.encode()
        library.espeak_Synth(encoded, len(encoded) + 1, 0, _CHARACTERS, 0, _UTF8, None, None)
        library.espeak_Synchronize()
        library.espeak_Terminate()
    finally:
        _ctypes.dlclose(library._handle)
    return np.concatenate(chunks) if chunks else np.zeros(0, np.int16)
