"""Mel-frequency cepstral coefficients of a second of sound at 8 kHz, [49, 10], in the shape of the keyword network.

Frames of 256 samples every 160, Hann window, magnitude spectrum, 40 triangular mel bands from 20 to 4000 Hz, logarithm,
orthonormal DCT-II, of which the first 10 coefficients.
"""

import io
import wave

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct

RATE, FRAME, STEP, BANDS, COEFFICIENTS = 8000, 256, 160, 40, 10
LOWEST_HZ, HIGHEST_HZ, FLOOR = 20.0, 4000.0, 1e-6


def mfcc(samples: NDArray[np.float64]) -> NDArray[np.float32]:
    """Coefficients of samples at 8 kHz, scaled to a maximum of 1 and padded or cut to one second."""
    scaled = samples / max(float(np.abs(samples).max(initial=0.0)), 1e-9)
    second = np.pad(scaled[:RATE], (0, max(RATE - len(scaled), 0)))
    frames = np.lib.stride_tricks.sliding_window_view(second, FRAME)[::STEP]
    spectrum = np.abs(np.fft.rfft(frames * np.hanning(FRAME + 1)[:-1]))
    energies = np.log(spectrum @ mel_bands() + FLOOR)
    return np.asarray(dct(energies, type=2, norm="ortho")[:, :COEFFICIENTS], np.float32)


def mel_bands() -> NDArray[np.float64]:
    """Weights [frequencies, bands] of triangles, equally spaced on the mel scale 1127 ln(1 + f / 700)."""
    frequencies = 1127 * np.log1p(np.fft.rfftfreq(FRAME, 1 / RATE) / 700)
    low, high = 1127 * np.log1p(np.array([LOWEST_HZ, HIGHEST_HZ]) / 700)
    edges = np.linspace(low, high, BANDS + 2)
    rising = (frequencies[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies[:, None]) / (edges[2:] - edges[1:-1])
    weights: NDArray[np.float64] = np.maximum(0.0, np.minimum(rising, falling))
    return weights


def read_wave(content: bytes) -> NDArray[np.float64]:
    """Samples of a mono 16-bit .wav file at 8 kHz."""
    with wave.open(io.BytesIO(content)) as file:
        if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (RATE, 1, 2):
            raise ValueError("the recording is not 16 bits, mono, 8 kHz")
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float64)
