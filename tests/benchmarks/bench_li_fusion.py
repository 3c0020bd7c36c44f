"""Training the multimodal Transformer of Li et al.: hidden states read from disk against computed anew.

    python tests/benchmarks/bench_li_fusion.py

Prints the seconds of an epoch of the frozen phase of MMT with hidden states kept on disk and computed anew at
every step, and how soon keeping them pays. A GPU takes models of the published sizes (WavLM-Large and BERT),
a CPU the small ones of --scratch. Weights and recordings are random.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measure import machine
from transformers import BertConfig, BertModel, BertTokenizer, WavLMConfig, WavLMModel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conftest import load_script

from common import settings
from common.demo.checkpoints import SIZES, make_bert, make_wavlm, train_wordpiece
from common.encoders import RATE_HZ
from common.extraction import Extraction
from common.li.training import FROZEN, train_system
from common.manifest import Manifest, Turn, write_manifest
from common.media import write_wav
from common.training import make_accelerator

N_TURNS = {"cuda": 256, "cpu": 48}
EPOCHS = 3
WORDS = "well i do not know what you want me to say but it is fine".split()


def write_models(folder, full):
    """Random WavLM and BERT of the published sizes, or small ones, where 04 looks for them."""
    if full:
        vocabulary = train_wordpiece(WORDS, 1000)
        text = BertModel(BertConfig(vocab_size=len(vocabulary))), BertTokenizer(vocab=vocabulary)
        sizes = {"hidden_size": 1024, "num_hidden_layers": 24, "intermediate_size": 4096}
        options = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "num_attention_heads": 16}
        audio = WavLMModel(WavLMConfig(**sizes, **options)), make_wavlm(SIZES["small"], WORDS)[1]
    else:
        text, audio = make_bert(SIZES["small"], WORDS), make_wavlm(SIZES["small"], WORDS)
    for name, parts in (("bert-base-uncased", text), ("wavlm-large", audio)):
        for part in parts:
            part.save_pretrained(folder / name)


def write_corpus(root, n_turns):
    """Six speakers in three sessions, dialogues of 16 turns with noise of 2 to 6 s and 3 to 24 words."""
    rng, turns, folder = np.random.default_rng(0), [], root / "prepared" / "bench"
    for i in range(n_turns):
        seconds, session, name = rng.uniform(2, 6), f"s{i % 3}", f"audio/{i}.wav"
        write_wav(folder / name, rng.normal(0, 0.1, int(seconds * RATE_HZ)).astype(np.float32))
        text = " ".join(rng.choice(WORDS, rng.integers(3, 25)))
        place = f"{session}_d{i // 48}", i, f"{session}{i % 2}", session, i, i + seconds
        turns.append(Turn(f"u{i:04}", *place, text, "abcd"[i // 3 % 4], audio=name))
    manifest = Manifest("bench", folder, tuple("abcd"), turns)
    write_manifest(manifest)
    return manifest


def run_epochs(accelerator, root, manifest, cache_gb):
    """(seconds of each epoch, seconds until the states are there)"""
    script = load_script("04_fuse_classify.py")
    words = [
        f"--DATA_ROOT={root}",
        f"--CHECKPOINTS={root}/models",
        "--SYSTEMS=MMT",
        f"--FROZEN_EPOCHS={EPOCHS}",
    ]
    settings.apply(vars(script), [*words, "--WORKERS=0", f"--CACHE_GB={cache_gb}"])
    study, started = script.make_study(manifest), time.monotonic()
    study.folder = root / f"trained_{cache_gb}"
    how = root / "cache", cache_gb, "disk", Extraction(script.BATCH_SIZE)
    for utterances in study.utterances.values():
        script.keep_states(utterances, manifest, accelerator, *how)
    prepared = time.monotonic() - started
    outcome = train_system(study, "MMT", study.window, [FROZEN], 0, 0)[FROZEN]
    return [entry["seconds"] for entry in outcome["history"]["log"]], prepared


def main():
    accelerator = make_accelerator("auto")
    on_gpu = accelerator.device.type == "cuda"
    size = (
        "published sizes"
        if on_gpu
        else f"'small': {SIZES['small']['layers'] + 1} x {SIZES['small']['hidden']}"
    )
    print(f"{machine(accelerator.device)}, precision {accelerator.mixed_precision}; WavLM and BERT of {size}")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_models(root / "models", on_gpu)
        manifest = write_corpus(root, N_TURNS[accelerator.device.type])
        found = {cache_gb: run_epochs(accelerator, root, manifest, cache_gb) for cache_gb in (1000.0, 0.0)}
    (kept, computing), (anew, _) = found.values()
    for name, seconds in (("on disk", kept), ("computed anew", anew)):
        print(f"    epoch, states {name}: {statistics.median(seconds):.2f} s, median of {len(seconds)}")
    saved = statistics.median(anew) - statistics.median(kept)
    after = (
        f"saved again after {int(np.ceil(computing / saved))} epochs" if saved > 0 else "never saved again"
    )
    print(f"    states computed once in {computing:.2f} s, {after}")


if __name__ == "__main__":
    main()
