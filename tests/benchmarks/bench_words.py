"""Word error rate of a recogniser on recordings of GRID, whose names spell their words.

    python tests/benchmarks/bench_words.py FOLDER MODEL

FOLDER has recordings such as bbaf2n.mpg ("bin blue at f two now"), MODEL is what TRANSCRIPTS of 07 may name:
a CTC or Whisper model, by its hub name or folder. Prints what was said and heard, and seconds of processor
time a clip.
"""

import re
import sys
import time
from pathlib import Path

from torchaudio.functional import edit_distance

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.corpora.lombard import grid_sentence
from common.khare.words import open_words
from common.media import read_audio

DIGITS = "zero one two three four five six seven eight nine".split()


def words_of(text):
    """Lower-case words without marks; digits are spelt, and stand alone: "F2" is f two."""
    parts = re.findall(r"[^\W\d_]+|\d", text.lower())
    return [DIGITS[int(part)] if part.isdecimal() else part for part in parts]


def main():
    folder, model = sys.argv[1:]
    recogniser = open_words(model, "data", "cpu")
    edits = n_words = n_clips = 0
    started = time.process_time()
    for path in sorted(Path(folder).iterdir()):
        if not (sentence := grid_sentence(path.stem)):
            continue
        found, _ = recogniser.words(path.stem, read_audio(path))
        said, heard = words_of(sentence), words_of(" ".join(word for word, *_ in found))
        print(f"{path.name}: said {' '.join(said)!r}, heard {' '.join(heard)!r}", flush=True)
        edits, n_words, n_clips = edits + edit_distance(said, heard), n_words + len(said), n_clips + 1
    seconds = (time.process_time() - started) / max(1, n_clips)
    print(f"{n_clips} clips, word error rate {100 * edits / max(1, n_words):.1f} %, {seconds:.1f} s a clip")


if __name__ == "__main__":
    main()
