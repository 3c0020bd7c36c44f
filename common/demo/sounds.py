"""What is done to sounds, arrays (T,) at RATE_HZ with full scale 1."""

import math

import numpy as np
from scipy.ndimage import uniform_filter1d
from scipy.signal import lfilter, resample_poly

RATE_HZ = 16000
LEVEL_SAMPLES = 4800  # window of the gain control


def resampled(samples, from_hz, to_hz):
    """A sound at another sampling rate."""
    common = math.gcd(from_hz, to_hz)
    return resample_poly(samples, to_hz // common, from_hz // common)


def tilted(samples, tilt):
    """A sound brightened like a pressed voice (tilt > 0) or darkened like a soft one (tilt < 0)."""
    return lfilter([1, -tilt], 1, samples) if tilt > 0 else lfilter([1], [1, tilt], samples)


def level_out(samples):
    """Speech without most of its ups and downs from syllable to syllable, as behind a gain control."""
    power = uniform_filter1d(samples**2, LEVEL_SAMPLES)
    steady = samples / (power + 0.05 * power.max()) ** 0.4
    return steady * np.sqrt(np.mean(samples**2) / np.mean(steady**2))


def draw_echoes(seconds, rng):
    """The impulse response of a room whose sound falls by 60 dB in this time."""
    n = round(seconds * RATE_HZ)
    return rng.standard_normal(n) * 10 ** (-3 * np.arange(n) / n)


def draw_noise(n, colour, rms, rng):
    """n samples of noise: white where colour is 0, dull where it is near 1."""
    noise = lfilter([1], [1, -colour], rng.standard_normal(n))
    return rms * noise / np.std(noise)


def loudness(samples, times_s, window_s):
    """Root mean square of a sound around these times, relative to the loudest; (F,)."""
    energy = np.concatenate([[0], np.cumsum(samples**2)])
    edges = (np.asarray(times_s)[:, None] + (-window_s / 2, window_s / 2)) * RATE_HZ
    first, last = np.clip(edges.astype(int), 0, len(samples)).T
    rms = np.sqrt((energy[last] - energy[first]) / np.maximum(last - first, 1))
    return rms / max(rms.max(), 1e-9)
