"""Sounds: notes that are synthesized, and voices of published recordings."""

from __future__ import annotations

import io
import math
import wave

import numpy as np
from numpy.typing import NDArray
from scipy.signal import resample_poly

from tests.benchmarks.real.wheels import AUDITOK, read_file

Floats = NDArray[np.float32]

NOTES_RATE, NOTES_WINDOW = 22050, 43844
VOICE_RATE, VOICE_WINDOW, VOICE_CONTEXT = 16000, 512, 64

_DIGITS = "auditok/data/1to6arabic_16000_mono_bc_noise.wav"
_SENTENCE = (
    "auditok/data/was_der_mensch_saet_das_wird_er_vielfach_ernten_44100Hz_mono_lead_trail_"
    "silence.wav"
)
_SPEEDS = (80, 90, 100, 115)  # per cent


def melodies(count: int, rng: np.random.Generator) -> Floats:
    """Return windows of music, [count, 43844, 1] at 22,050 Hz: notes and chords, with noise.

    A note is a sum of harmonics that decay, the higher ones faster.
    """
    windows = np.zeros((count, NOTES_WINDOW, 1), np.float32)
    for window in windows:
        sound = np.zeros(NOTES_WINDOW)
        for _ in range(int(rng.integers(2, 12))):
            start = int(rng.integers(0, NOTES_WINDOW - NOTES_RATE // 8))
            length = min(int(rng.uniform(0.15, 1.2) * NOTES_RATE), NOTES_WINDOW - start)
            root = int(rng.integers(33, 84))
            chord = ((0,), (0,), (0, 4, 7), (0, 3, 7), (0, 12))[int(rng.integers(5))]
            for pitch in chord:
                sound[start : start + length] += _note(root + pitch, length, rng)
        sound += rng.normal(0, 10 ** rng.uniform(-4, -2), NOTES_WINDOW)
        window[:, 0] = sound / np.abs(sound).max() * rng.uniform(0.2, 0.9)
    return windows


def _note(pitch: int, length: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a note of a pitch in semitones, of which 69 is 440 Hz."""
    time = np.arange(length) / NOTES_RATE
    frequency = 440 * 2 ** ((pitch - 69 + rng.normal(0, 0.05)) / 12)
    decay, brightness = rng.uniform(0.5, 6), rng.uniform(0.3, 1.5)
    harmonics = np.arange(1, 1 + min(12, int(NOTES_RATE / 2 / frequency)))[:, None]
    swings = np.sin(2 * np.pi * (harmonics * frequency * time + rng.random((len(harmonics), 1))))
    envelope = np.exp(-decay * np.sqrt(harmonics) * time) * harmonics**-brightness
    edges = np.minimum(1, np.minimum(time, time[::-1]) / 0.005)
    return rng.uniform(0.3, 1) * edges * (swings * envelope).sum(0)


def digits(rng: np.random.Generator) -> list[Floats]:
    """Return versions of a recording of spoken Arabic digits, with noise in the background."""
    return _versions(_recording(_DIGITS), rng)


def sentence(rng: np.random.Generator) -> list[Floats]:
    """Return versions of a recording of a spoken German sentence, with silence around it."""
    return _versions(_recording(_SENTENCE)[6 * VOICE_RATE : 14 * VOICE_RATE], rng)


def voice_windows(recording: Floats) -> Floats:
    """Return the windows of a recording, each with the end of the one before it in front.

    Returns:
        [windows, 576], at 16,000 Hz.
    """
    count = len(recording) // VOICE_WINDOW
    behind_silence = np.concatenate([np.zeros(VOICE_CONTEXT, np.float32), recording])
    starts = VOICE_WINDOW * np.arange(count)[:, None]
    return behind_silence[starts + np.arange(VOICE_CONTEXT + VOICE_WINDOW)]


def _recording(name: str) -> Floats:
    """Return a recording of one channel at 16,000 Hz, in -1..1."""
    with wave.open(io.BytesIO(read_file(AUDITOK, name))) as file:
        rate, bits = file.getframerate(), file.readframes(file.getnframes())
    sound = np.frombuffer(bits, "<i2") / 2**15
    common = math.gcd(rate, VOICE_RATE)
    return resample_poly(sound, VOICE_RATE // common, rate // common).astype(np.float32)


def _versions(sound: Floats, rng: np.random.Generator) -> list[Floats]:
    """Return a recording at several speeds, which change its pitch, volumes and levels of noise."""
    found = []
    for percent in _SPEEDS:
        faster = resample_poly(sound, 100, percent)
        level = 10 ** rng.uniform(-3.5, -1.5) * np.abs(faster).max()
        noisy = faster + rng.normal(0, level, len(faster))
        found.append((rng.uniform(0.3, 1) * noisy / np.abs(noisy).max()).astype(np.float32))
    return found
