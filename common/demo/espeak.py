"""eSpeak NG through ctypes: from text and the settings of a voice to samples and the times of the words."""

import ctypes
from functools import cache

from common.files import UserError

ESPEAK_RATE_HZ = 22050


class Event(ctypes.Structure):
    """What eSpeak NG reports with its samples (espeak_EVENT of its speak_lib.h)."""

    _fields_ = [(name, ctypes.c_int) for name in "type unique text_position length time_ms sample".split()]
    _fields_ += [(name, ctypes.c_void_p) for name in ("user_data", "id")]


@cache
def load_espeak():
    """eSpeak NG's library, ready to speak; UserError names the package where it cannot be loaded."""
    try:
        import espeakng_loader

        library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path()
    except (ImportError, OSError) as error:
        message = f"espeakng-loader: cannot be loaded ({error}); pip install espeakng-loader"
        raise UserError(message) from error
    synchronous, keep_running = 2, 0x8000
    if library.espeak_Initialize(synchronous, 0, str(data).encode(), keep_running) != ESPEAK_RATE_HZ:
        raise UserError(f"{data}: eSpeak NG cannot read it; install espeakng-loader in a shorter path")
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))
    return library


def speak(lines):
    """Say lines one after the other.

    eSpeak's noise and pitch flutter depend on all that its process said before: begin in a fresh one.
    lines  list of (text, voice), voice with name, rate_wpm, pitch and range
    Returns a list of (samples as bytes of int16, [(place in the text, sample)] where eSpeak began a word).
    """
    library, spoken = load_espeak(), []
    end_of_list, word = 0, 1

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(Event))
    def keep(samples, n_samples, events):
        chunks, words = spoken[-1]
        if samples and n_samples:
            chunks.append(ctypes.string_at(samples, 2 * n_samples))
        for event in events:
            if event.type == end_of_list:
                return 0
            if event.type == word:
                words.append((event.text_position - 1, event.sample))

    library.espeak_SetSynthCallback(keep)
    for text, voice in lines:
        spoken.append(([], []))
        say(library, text, voice)
    return [(b"".join(chunks), words) for chunks, words in spoken]


def say(library, text, voice):
    """Synthesise one line; the samples arrive in the library's callback before this returns."""
    if library.espeak_SetVoiceByName(voice["name"].encode()) != 0:
        raise UserError(f"espeakng-loader: no voice {voice['name']}; install the version in requirements.txt")
    volume, utf8 = 60, 1
    for parameter, value in enumerate((voice["rate_wpm"], volume, voice["pitch"], voice["range"]), 1):
        library.espeak_SetParameter(parameter, value, 0)
    encoded = text.encode() + b"\0"
    library.espeak_Synth(encoded, ctypes.c_size_t(len(encoded)), 0, 1, 0, utf8, None, None)
    library.espeak_Synchronize()
