"""Networks and losses of 07 against plain ones: torch's own attention without padding, NCE against the full
softmax and its exact expectation, masks by hand; padding and missing modalities change nothing else."""

import math
from functools import partial

import networks
import numpy as np
import pytest
import torch
from conftest import load_script
from networks import noise, seeded
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from common.khare.data import NO_TARGET
from common.layers import build, count_parameters, sinusoidal

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"WIDTH": 16, "DEPTH": 2, "HEADS": 4, "FEED_FORWARD": 10, "DROPOUT": 0.0, "N_SUBSTITUTES": 3}
N_FEATURES = {"text": 5, "audio": 4, "video": 7}
N_STEPS = {"text": 6, "audio": 9, "video": 8}
# One column per clip: complete, shorter, no audio, no video, neither, no text, nothing at all.
LENGTHS = {"text": [6, 3, 4, 1, 2, 0, 0], "audio": [9, 5, 0, 7, 0, 9, 0], "video": [8, 2, 3, 0, 0, 8, 0]}
NAN = float("nan")
uneven = partial(networks.uneven, scale=0.4)


@pytest.fixture
def script():
    """07 with small sizes."""
    module = load_script("07_crossmodal_mosei.py")
    for name, value in SMALL.items():
        setattr(module, name, value)
    return module


def encoder(script, anchor="text", robust=False):
    return uneven(build(0, script.CrossModalTransformer, N_FEATURES, anchor, robust))


def batch_of(lengths=LENGTHS, filling=0.0, seed=0):
    """Clips of some lengths, padded to N_STEPS with `filling`."""
    batch = {}
    for number, name in enumerate(lengths):
        length = torch.tensor(lengths[name])
        x = noise(len(length), N_STEPS[name], N_FEATURES[name], seed=100 * seed + number)
        outside = torch.arange(N_STEPS[name]) >= length[:, None]
        batch |= {name: x.masked_fill(outside[..., None], filling), f"{name}_length": length}
    return batch


def clip_of(batch, number):
    """One clip of a batch alone, without its padding; one empty step of a modality that it lacks."""
    clip = {}
    for name in N_FEATURES:
        length = batch[f"{name}_length"][number : number + 1]
        n_steps = max(1, int(length))
        clip |= {name: batch[name][number : number + 1, :n_steps], f"{name}_length": length}
    return clip


# ---- The network against a plain one -------------------------------------------------------


def plain_layer(layer, x, source):
    """Eq. 1 to 4 by torch's own parts, without padding."""
    theirs = nn.MultiheadAttention(x.shape[2], layer.heads, batch_first=True)
    parts = layer.query, layer.key, layer.value
    weights = torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])
    names = "in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"
    theirs.load_state_dict(dict(zip(names, (*weights, layer.out.weight, layer.out.bias))))
    attended, _ = theirs(x, source, source)
    o = layer.norm_attention((layer.query(x) if layer.cross else layer.value(source)) + attended)
    return layer.norm_feed_forward(o + layer.feed_forward(o))


def plain_encoded(model, weights, clip):
    """Eq. 5 for a clip without padding (S, w)."""
    states = {}
    for name in N_FEATURES:
        if clip[f"{name}_length"] > 0:
            x = model.project[name](clip[name])
            x = x + sinusoidal(x.shape[1], x.shape[2], "cpu")
            for layer in model.unimodal[name]:
                x = plain_layer(layer, x, x)
            states[name] = x
    total = weights[0] * states[model.anchor][0]
    for name, weight in zip(model.cross, weights[1:]):
        if name in states:
            x = states[model.anchor]
            for layer in model.cross[name]:
                x = plain_layer(layer, x, states[name])
            total = total + weight * x[0]
    return total


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("heads", [4, 1])
def test_a_layer_is_torchs_attention_with_the_papers_residual(script, cross, heads):
    script.HEADS = heads
    layer, x = uneven(script.Layer(cross)), noise(3, 6, 16)
    source = noise(3, 9, 16, seed=1) if cross else x
    n_steps = torch.tensor([source.shape[1], 4, 1])
    is_step = torch.arange(source.shape[1]) < n_steps[:, None]
    found = layer(x, source, is_step)
    for number, n in enumerate(n_steps.tolist()):
        rows = slice(None) if cross else slice(0, n)
        expected = plain_layer(layer, x[number : number + 1, rows], source[number : number + 1, :n])
        torch.testing.assert_close(found[number : number + 1, rows], expected, atol=1e-5, rtol=1e-5)


def test_equation_3_by_hand(script):
    """Two values (1, 3) and (5, 3), attention that adds (10, 0) to all: norms to (1, -1) for any input."""
    script.WIDTH, script.HEADS, script.FEED_FORWARD = 2, 1, 3
    layer = script.Layer(cross=False)
    everything, x = torch.ones(1, 2, dtype=torch.bool), torch.tensor([[[1.0, 3.0], [5.0, 3.0]]])
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        for norm in (layer.norm_attention, layer.norm_feed_forward):
            norm.weight.fill_(1.0)
        layer.value.weight.copy_(torch.eye(2))
        expected = torch.tensor([[[-1.0, 1.0], [1.0, -1.0]]])
        torch.testing.assert_close(layer(x, x, everything), expected, atol=1e-4, rtol=0)
        layer.out.bias.copy_(torch.tensor([10.0, 0.0]))
        expected = torch.tensor([[[1.0, -1.0]] * 2])
        torch.testing.assert_close(layer(x, x, everything), expected, atol=1e-4, rtol=0)
        layer.value.weight.zero_()  # no residual from the input itself: V is 0, and so is what x was
        torch.testing.assert_close(layer(-x, -x, everything), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("anchor", N_FEATURES)
@pytest.mark.parametrize("depth", [1, 3])
def test_a_padded_batch_is_plain_clips(script, anchor, depth):
    """Every clip of a batch, with garbage as padding, against a loop over clips without padding."""
    script.DEPTH, script.TERM_WEIGHTS = depth, (0.5, 0.3, 0.2)
    model, batch = encoder(script, anchor), batch_of(filling=37.0)
    encoded, is_step = model(batch)
    assert encoded.shape == (7, N_STEPS[anchor], 16) and (encoded[~is_step] == 0).all()
    assert torch.isfinite(encoded).all() and is_step.sum(1).tolist() == LENGTHS[anchor]
    for number, length in enumerate(LENGTHS[anchor]):
        if length:
            expected = plain_encoded(model, script.TERM_WEIGHTS, clip_of(batch, number))
            torch.testing.assert_close(encoded[number, :length], expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("robust", [False, True])
@pytest.mark.parametrize("anchor", N_FEATURES)
def test_a_clip_alone_is_the_clip_in_a_padded_batch(script, anchor, robust):
    classifier = uneven(build(0, script.EmotionClassifier, N_FEATURES, 6, anchor, robust))
    batch = batch_of(filling=37.0)
    together = classifier(batch)
    for number in range(7):
        torch.testing.assert_close(
            classifier(clip_of(batch, number))[0], together[number], atol=1e-5, rtol=1e-4
        )
    torch.testing.assert_close(classifier(batch_of(filling=-1e4)), together, atol=1e-5, rtol=1e-4)


def test_a_missing_modality_adds_nothing_and_breaks_no_gradient(script):
    model, batch = encoder(script), batch_of()
    for weights, name in (((0, 1, 0), "audio"), ((0, 0, 1), "video")):
        script.TERM_WEIGHTS = weights
        term, is_step = model(batch)
        lacks = (batch[f"{name}_length"] == 0) | ~is_step.any(1)
        assert (term[lacks] == 0).all() and (term[~lacks] != 0).all(2).any(1).all()
    script.TERM_WEIGHTS = (0.33, 0.33, 0.33)
    classifier = build(0, script.EmotionClassifier, N_FEATURES, 6, "text")
    classifier(batch).square().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in classifier.parameters())


def test_without_text_the_papers_model_says_nothing(script):
    classifier = uneven(build(0, script.EmotionClassifier, N_FEATURES, 6, "text"))
    logits = classifier(batch_of())
    assert torch.equal(logits[5], classifier.output.bias) and torch.equal(logits[6], classifier.output.bias)
    assert (logits[:5] != classifier.output.bias).all()


def test_substitutes_let_a_clip_without_text_be_told_from_another(script):
    script.N_SUBSTITUTES = 8
    classifier = uneven(build(0, script.EmotionClassifier, N_FEATURES, 6, "text", True))
    first, second = classifier(batch_of(seed=0)), classifier(batch_of(seed=1))
    assert (first[5] - second[5]).abs().min() > 1e-4, "audio and video of a clip without text are not used"
    torch.testing.assert_close(first[6], second[6])
    encoded, is_step = classifier.encoder(batch_of())
    assert encoded.shape[1] == 8 and is_step.sum(1).tolist() == [6, 3, 4, 1, 2, 8, 8]
    first.square().sum().backward()
    assert all((vector.grad != 0).all() for vector in classifier.encoder.substitutes.values())


def test_substitutes_change_nothing_where_nothing_is_missing(script):
    without, having = encoder(script), encoder(script, robust=True)
    missing = having.load_state_dict(without.state_dict(), strict=False)
    assert sorted(missing.missing_keys) == [f"substitutes.{name}" for name in sorted(N_FEATURES)]
    batch = batch_of({name: lengths[:2] for name, lengths in LENGTHS.items()})
    torch.testing.assert_close(having(batch)[0], without(batch)[0])


def test_parameters_at_the_papers_size():
    """(w + 1) w for each of four projections, the feed-forward part, two norms; 20 layers, three inputs."""
    w, hidden = 512, 200
    layer = 4 * (w + 1) * w + (w + 1) * hidden + (hidden + 1) * w + 4 * w
    with torch.device("meta"):
        widths = {"text": 300, "audio": 200, "video": 4096}
        model = load_script("07_crossmodal_mosei.py").CrossModalTransformer(widths, "text")
    assert count_parameters(model) == 20 * layer + (300 + 200 + 4096 + 3) * w == 27_518_368


def test_dropout_is_for_training_alone(script):
    script.DROPOUT = 0.5
    model, batch = encoder(script), batch_of()
    assert not torch.allclose(model(batch)[0], model(batch)[0])
    script.DROPOUT = 0.0
    torch.testing.assert_close(model.eval()(batch)[0], encoder(script)(batch)[0])


def test_dropped_modalities(script):
    clips = [{"text": range(4 * (i < 3000)), "audio": range(5), "video": range(6)} for i in range(6000)]
    found = [script.drop_modalities(clip, np.random.default_rng(i), 0.3) for i, clip in enumerate(clips)]
    left, before = (np.array([[len(c[name]) for name in N_FEATURES] for c in x]).T for x in (found, clips))
    assert ((left == before) | (left == 0)).all() and (left > 0).any(0).all()
    assert len(clips[0]["text"]) == 4
    shares = (left[:, :3000] == 0).mean(1)  # 0.3, less the 0.3 ** 3 that would lose everything
    assert np.abs(shares - (0.3 - 0.3**3)).max() < 0.03  # three and a half standard errors
    shares = (left[1:, 3000:] == 0).mean(1)
    assert np.abs(shares - (0.3 - 0.3**2)).max() < 0.03


# ---- Masked words --------------------------------------------------------------------------


def spoken(words, n_audio=20, n_video=2, word_ids=None):
    """One clip with ones everywhere and words [(start_s, end_s)]."""
    return {
        "text": np.ones((len(words), 300)),
        "audio": np.ones((n_audio, 200)),
        "video": np.ones((n_video, 8)),
        "word_ids": np.arange(len(words)) if word_ids is None else np.array(word_ids),
        "word_times": np.array(words, np.float32).reshape(-1, 2),
        "step_s": {"audio": 0.05, "video": 0.5},
    }


def masked(script, clip, share=0.15, seed=0):
    return script.mask_words(clip, np.random.default_rng(seed), share)


def zeros_of(steps):
    """Which steps are hidden; the others are as they were."""
    assert set(np.unique(steps)) <= {0.0, 1.0} and ((steps == 0).all(1) == (steps == 0).any(1)).all()
    return np.flatnonzero((steps == 0).all(1)).tolist()


@pytest.mark.parametrize(
    "start, end, audio, video",
    [
        (0.10, 0.20, [2, 3], [0]),  # from edge to edge
        (0.12, 0.21, [2, 3, 4], [0]),  # parts of steps are hidden as a whole
        (0.45, 0.55, [9, 10], [0, 1]),
        (0.0, 1.0, list(range(20)), [0, 1]),
        (0.33, 0.33, [6], [0]),  # no length
        (0.35, 0.35, [7], [0]),
        (0.0, 0.0, [0], [0]),
        (0.5, 0.5, [10], [1]),
        (0.15, 0.3, [3, 4, 5], [0]),  # not exact in binary
        (0.3, 0.35, [6], [0]),
        (0.98, 1.7, [19], [1]),  # outside
        (1.0, 1.2, [], []),
        (1.2, 1.5, [], []),
        (NAN, NAN, [], []),  # unknown
    ],
)
def test_all_audio_and_video_of_a_hidden_word_is_hidden(script, start, end, audio, video):
    clip = masked(script, spoken([(start, end)]))
    assert clip["hidden"].tolist() == clip["targets"].tolist() == [0] and zeros_of(clip["text"]) == [0]
    assert zeros_of(clip["audio"]) == audio and zeros_of(clip["video"]) == video


def test_long_clips_have_exact_steps(script):
    for k in (1, 799, 1999, 3999):
        clip = masked(script, spoken([(0.05 * k, 0.05 * (k + 1))], n_audio=4000), 1.0)
        assert zeros_of(clip["audio"]) == [k]


@pytest.mark.parametrize("n_words, n_hidden", [(1, 1), (3, 1), (9, 1), (10, 2), (20, 3), (100, 15)])
def test_the_share_of_hidden_words(script, n_words, n_hidden):
    clip = spoken([(0.1 * k, 0.1 * k + 0.1) for k in range(n_words)], n_audio=2 * n_words, n_video=n_words)
    clip = masked(script, clip, seed=1)
    hidden = clip["hidden"].tolist()
    assert len(hidden) == n_hidden and zeros_of(clip["text"]) == hidden
    assert zeros_of(clip["audio"]) == [step for k in hidden for step in (2 * k, 2 * k + 1)]


def test_words_outside_the_vocabulary_are_never_hidden(script):
    times = [(0.1 * k, 0.1 * k + 0.1) for k in range(6)]
    for seed in range(20):
        clip = masked(script, spoken(times, word_ids=[-1, 3, -1, -1, 5, -1]), 0.5, seed)
        assert clip["hidden"].tolist() in ([1], [4]) and clip["targets"].tolist() in ([3], [5])
    clip = masked(script, spoken(times, word_ids=[-1] * 6))
    assert not len(clip["hidden"]) and (clip["audio"] == 1).all()


def test_masks_depend_on_the_generator_alone_and_reach_every_word(script):
    def draw(seed):
        return masked(script, spoken([(0.1 * k, 0.1 * k + 0.1) for k in range(10)]), seed=seed)["hidden"]

    assert np.array_equal(draw(4), draw(4))
    counts = np.bincount(np.concatenate([draw(seed) for seed in range(500)]), minlength=10)
    assert counts.min() > 60 and counts.max() < 145  # 100 each, sd 9


# ---- Masked language model -----------------------------------------------------------------

COUNTS = (50, 30, 10, 5, 3, 2)


def output_of(weight, bias):
    layer = nn.Linear(weight.shape[1], len(weight))
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def noise_of(script, k, counts=COUNTS):
    script.NOISE_WORDS = k
    return script.Noise(counts, "cpu")


def test_nce_by_hand(script):
    """One position, V = 2 words as likely as noise, k = 3: whatever is drawn, D = s - ln 2 - ln(3 / 2)."""
    noise_words = noise_of(script, 3, (5, 5))
    output = output_of(torch.ones(2, 1), torch.tensor([0.5, 0.5]))
    found = script.nce_loss(output, torch.ones(1, 1, 1), torch.tensor([[1]]), noise_words)
    d = 1.5 - math.log(2) - math.log(1.5)
    expected = math.log(1 + math.exp(-d)) + 3 * math.log(1 + math.exp(d))
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_noise_words_follow_their_counts(script):
    torch.manual_seed(0)
    counts, drawn = torch.tensor(COUNTS), noise_of(script, 20)
    words = drawn.draw(2000)
    assert words.shape == (2000, 20)
    shares = torch.bincount(words.flatten(), minlength=6) / words.numel()
    assert ((shares - counts / 100).abs() < 4 * (counts / 100 / words.numel()).sqrt()).all()
    torch.testing.assert_close(drawn.log_k_p.exp(), 20 * counts / 100)
    words = noise_of(script, 1, torch.full((88_000,), 1_000_000_000)).draw(20_000)
    assert words.min() < 200 and words.max() > 87_800 and words.max() < 88_000


def test_nce_has_its_exact_expectation(script):
    """The mean over 4,000 draws of noise against the sum over the vocabulary, with k = 2."""
    torch.manual_seed(0)
    output, target = output_of(noise(6, 4, seed=5), noise(6, seed=6)), torch.tensor([0, 4, 1, 5])
    noise_words, x = noise_of(script, 2), noise(4, 4, seed=7)
    with torch.no_grad():
        many = x.repeat(4000, 1, 1), target.repeat(4000, 1), noise_words
        found = script.nce_loss(output, *many).sum(1)
        d = output(x) - math.log(6) - noise_words.log_k_p
        others = 2 * (torch.tensor(COUNTS) / 100 * F.logsigmoid(-d)).sum()
        expected = -F.logsigmoid(d)[torch.arange(4), target].sum() - others
    assert abs(found.mean() - expected) < 4 * found.std() / 4000**0.5


def test_with_much_noise_the_gradient_is_that_of_the_full_softmax(script):
    """[21]: the gradient tends to that of maximum likelihood as k grows, where exp(s) / Z sums to 1."""
    torch.manual_seed(0)
    scores, target = noise(6, 4, seed=3), torch.tensor([0, 3, 1, 5])
    weight = scores - scores.logsumexp(0) + math.log(6)

    def gradient_of(loss):
        output = output_of(weight, torch.zeros(6))
        loss(output, torch.eye(4)).backward()
        return torch.cat([output.weight.grad.flatten(), output.bias.grad])

    exact = gradient_of(lambda output, x: F.cross_entropy(output(x), target, reduction="sum"))
    errors = []
    for k in (1, 100, 20_000):
        words = noise_of(script, k)
        found = gradient_of(
            lambda output, x, words=words: script.nce_loss(output, x[None], target[None], words).sum()
        )
        errors.append(((found - exact).norm() / exact.norm()).item())
    assert errors[0] > 0.2 and errors[1] < errors[0] and errors[2] < 0.02, errors


def complete(n_clips=8):
    """Clips that lack nothing, of several lengths, about half of their words hidden."""
    lengths = {n: [1 + (5 * i + k) % N_STEPS[n] for i in range(n_clips)] for k, n in enumerate(N_FEATURES)}
    hidden = [torch.randperm(n, generator=seeded(i))[: (n + 1) // 2] for i, n in enumerate(lengths["text"])]
    targets = [torch.randint(0, 20, (len(places),), generator=seeded(i)) for i, places in enumerate(hidden)]
    padded = pad_sequence(hidden, True, 0), pad_sequence(targets, True, NO_TARGET)
    return batch_of(lengths) | dict(zip(("hidden", "targets"), padded))


def test_the_model_gives_what_stands_at_the_hidden_words(script):
    model, batch = uneven(script.MaskedLM(N_FEATURES, 12)), complete()
    encoded, _ = model.encoder(batch)
    x = model(batch)
    for i, j in (batch["targets"] != NO_TARGET).nonzero().tolist():
        torch.testing.assert_close(x[i, j], encoded[i, batch["hidden"][i, j]])
    none = model(batch | {"hidden": torch.zeros(8, 0, dtype=torch.int64)})
    assert none.shape == (8, 0, 16)


@pytest.mark.parametrize("k", [0, 5])
def test_padding_of_hidden_words_has_no_loss_and_no_gradient(script, k):
    output, targets = output_of(noise(6, 4, seed=3), noise(6)), torch.tensor([[2, NO_TARGET], [5, 1]])
    x = noise(2, 2, 4).requires_grad_()
    if k:
        losses = script.nce_loss(output, x, targets, noise_of(script, k))
    else:
        losses = script.softmax_loss(output, x, targets)
        torch.testing.assert_close(losses[1, 1], F.cross_entropy(output(x[1, 1]), torch.tensor(1)))
    losses.sum().backward()
    assert losses[0, 1] == 0 and (x.grad[0, 1] == 0).all() and (x.grad != 0).any(2).sum() == 3


def train(model, loss, n_steps, rate):
    optimizer = torch.optim.Adam(model.parameters(), rate, betas=(0.9, 0.98), eps=1e-9)
    for _ in range(n_steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


@pytest.mark.parametrize("k", [0, 10])
def test_eight_clips_are_learned_as_masked_language_model(script, k):
    torch.manual_seed(0)
    script.DEPTH = 1
    batch, model = complete(), build(0, script.MaskedLM, N_FEATURES, 20)
    words = noise_of(script, k, torch.arange(1, 21)) if k else None
    targets, there = batch["targets"], batch["targets"] != NO_TARGET

    def loss():
        more = (script.nce_loss, words) if k else (script.softmax_loss,)
        return more[0](model.output, model(batch), targets, *more[1:]).sum() / there.sum()

    train(model, loss, 60, 2e-2)
    logits = model.output(model.eval()(batch))[there]
    assert len(logits) > 8 and (logits.argmax(1) == targets[there]).all()
    assert F.cross_entropy(logits, targets[there]) < 0.5, "scores of NCE are not those of a softmax"


def test_the_schedule_by_hand(script):
    script.LEARNING_RATE_SCALE, script.WIDTH, script.WARMUP_STEPS = 10, 512, 4000
    peak = 10 / math.sqrt(512 * 4000)
    rates = [script.learning_rate(n) for n in (1, 2000, 4000, 16000)]
    assert rates == pytest.approx([peak / 4000, peak / 2, peak, peak / 2])


# ---- Emotions ------------------------------------------------------------------------------


def test_weights_let_positives_and_negatives_count_alike(script):
    labels = torch.rand(200, 6, generator=seeded()) < torch.tensor([0.7, 0.4, 0.3, 0.2, 0.1, 0.05])
    weights = script.balance(labels)
    n = labels.sum(0)
    torch.testing.assert_close(weights * torch.stack([200 - n, n]), torch.full((2, 6), 100.0))
    assert torch.isfinite(script.balance(torch.zeros(4, 2, dtype=torch.bool))).all()


def test_balanced_loss_by_hand(script):
    """Three clips, two emotions. Emotion 0 has one positive: weights 3/2, 3/4; emotion 1 two: 3/4, 3/2."""
    labels = torch.tensor([[1, 1], [0, 1], [0, 0]]).bool()
    logits = torch.tensor([[2.0, -1.0], [0.5, 0.0], [-3.0, 1.0]])
    weights = script.balance(labels)
    assert weights.tolist() == [[0.75, 1.5], [1.5, 0.75]]

    def soft(z):
        return math.log(1 + math.exp(z))

    first, second = 1.5 * soft(-2) + 0.75 * (soft(0.5) + soft(-3)), 0.75 * (soft(1) + soft(0)) + 1.5 * soft(1)
    found = script.balanced_loss(logits, labels, weights).item()
    assert found == pytest.approx((first + second) / 2, rel=1e-5)


def test_pooling(script):
    classifier, batch = (
        uneven(build(0, script.EmotionClassifier, N_FEATURES, 6, "text")),
        batch_of(filling=9.0),
    )
    encoded, _ = classifier.encoder(batch)
    logits = classifier(batch)
    for number, length in enumerate(LENGTHS["text"][:5]):
        pooled = encoded[number, :length].mean(0)
        torch.testing.assert_close(logits[number], classifier.output(pooled), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("anchor, robust", [("text", False), ("audio", False), ("text", True)])
def test_eight_clips_are_learned_as_emotions(script, anchor, robust):
    """With substitutes, clips without text are learned too."""
    script.DEPTH, batch = 1, complete()
    if robust:
        batch["text_length"][:3] = 0
    labels = (torch.arange(8)[:, None] >> torch.arange(6) & 1).bool()
    labels[:, 3:] = ~labels[:, :3]
    model, weights = build(0, script.EmotionClassifier, N_FEATURES, 6, anchor, robust), script.balance(labels)
    train(model, lambda: script.balanced_loss(model(batch), labels, weights), 60, 2e-2)
    assert torch.equal(model.eval()(batch) > 0, labels)
