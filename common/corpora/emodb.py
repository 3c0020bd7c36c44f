"""EMO-DB (Berlin), German sentences acted by ten speakers: Burkhardt et al. 2005 (FORMATS 5)."""

import re
from collections import Counter

from common.corpora.release import Release, files_in, named, need_folder, nothing_in, single

FOLDERS = ("EMO-DB", "EmoDB", "EMODB", "emodb", "emoDB")
CLASSES = ("anger", "boredom", "disgust", "fear", "happiness", "sadness", "neutral")
COUNTS = dict(zip(CLASSES, (127, 81, 46, 69, 71, 62, 79), strict=True))
# German initials: Ärger/Wut, Langeweile, Ekel, Angst, Freude, Trauer. F is not fear, A is not anger.
LETTERS = dict(zip("WLEAFTN", CLASSES, strict=True))
MEN = ("03", "10", "11", "12", "15")
TEXTS = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}
NAME = re.compile(rf"(\d\d)({'|'.join(TEXTS)})([WLEAFTN])([a-z])")


def read(root):
    """Read the wav files, which are known by their names wherever they lie below `root`; copies count once.

    The text is the German sentence and carries no label. Extra columns: sentence (its code), version, gender.
    """
    root = need_folder(root, "EMO-DB")
    release, remedy = Release(CLASSES), "names are speaker, sentence, emotion letter, version: 03a01Fa.wav"
    # Laryngograms bear the same names elsewhere; files of version 2.0 that few agreed on end with xx.
    paths = sorted(files_in(root, ".wav"), key=lambda path: path.parent.name.lower() != "wav")
    added = {path.stem for path in paths if path.stem.endswith("xx") and NAME.fullmatch(path.stem[:-2])}
    if added:
        release.notes.append(f"{len(added):,} files that version 2.0 added (called ...xx.wav) are left out")
    paths = [path for path in paths if path.stem not in added]
    for name, path in named(paths, [NAME], "EMO-DB", remedy, release).items():
        speaker, sentence, letter, version = NAME.fullmatch(name).groups()
        text, label, gender = TEXTS[sentence], LETTERS[letter], "male" if speaker in MEN else "female"
        extra = {"sentence": sentence, "version": version, "gender": gender}
        release.turns.append(single(name, speaker, path, text=text, label=label, **extra))
    if not release.turns:
        raise nothing_in(root, "EMO-DB files such as 03a01Fa.wav", "the folder that holds them")
    release.expect_labels(Counter(source.turn.label for source in release.turns), COUNTS)
    return release
