"""The cross-modal transformer against a plain one by torch's own attention without any padding, NCE against the full
softmax and against its exact expectation, and promises: padding and missing modalities change nothing else."""

import math
from dataclasses import replace
from functools import partial

import networks
import pytest
import torch
from networks import noise, seeded
from torch import nn
from torch.nn import functional as F

from common.errors import UserError
from common.khare import model as khare_model
from common.khare.model import (
    MODALITIES,
    CrossModalTransformer,
    EmotionClassifier,
    Layer,
    Linear,
    MaskedLM,
    Noise,
    Sizes,
    attention_weights,
    balance,
    balanced_loss,
    drop_modalities,
    learning_rate,
    nce_loss,
    softmax_loss,
)
from common.sadok.vqmae import build, count_parameters, sinusoidal

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = Sizes(width=16, depth=2, heads=4, feed_forward=10, dropout=0.0)
PAPER = Sizes(width=512, depth=4, heads=4, feed_forward=200, dropout=0.0)
N_FEATURES = {"text": 5, "audio": 4, "video": 7}
N_STEPS = {"text": 6, "audio": 9, "video": 8}
# One column per clip: complete, shorter, no audio, no video, neither, no text, nothing at all.
LENGTHS = {"text": [6, 3, 4, 1, 2, 0, 0], "audio": [9, 5, 0, 7, 0, 9, 0], "video": [8, 2, 3, 0, 0, 8, 0]}
WEIGHTS = (0.33, 0.33, 0.33)
uneven = partial(networks.uneven, scale=0.4)


def encoder(anchor="text", sizes=SIZES, weights=WEIGHTS, n_substitutes=0):
    return uneven(build(0, CrossModalTransformer, N_FEATURES, sizes, anchor, weights, n_substitutes))


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
    """One clip of a batch alone, without its padding, and without the modalities that it lacks."""
    clip = {}
    for name in MODALITIES:
        length = int(batch[f"{name}_length"][number])
        if length:
            clip |= {
                name: batch[name][number : number + 1, :length],
                f"{name}_length": torch.tensor([length]),
            }
    return clip


def words_of(batch, n_words, seed=0):
    """Words to predict: some hidden, some of those outside the vocabulary, none of them in the padding."""
    shape = batch["text"].shape[:2]
    there = torch.arange(shape[1]) < batch["text_length"][:, None]
    ids = torch.randint(-1, n_words, shape, generator=seeded(seed))
    return batch | {"word_ids": ids, "hidden": there & (torch.rand(shape, generator=seeded(seed + 1)) < 0.5)}


# ---- The network against a plain one -------------------------------------------------------


def torch_attention(layer):
    """torch's multi-head attention with the weights of a Layer, without its output layer's residual."""
    width = layer.query.in_features
    theirs = nn.MultiheadAttention(width, layer.heads, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": torch.cat([layer.query.weight, layer.key_value.weight]),
            "in_proj_bias": torch.cat([layer.query.bias, layer.key_value.bias]),
            "out_proj.weight": layer.out.weight,
            "out_proj.bias": layer.out.bias,
        }
    )
    return theirs


def plain_layer(layer, x, source, is_padding=None):
    """Eq. 1 to 4 by torch's own parts."""
    attended, _ = torch_attention(layer)(x, source, source, key_padding_mask=is_padding)
    width = x.shape[2]
    residual = (
        F.linear(x, layer.query.weight, layer.query.bias)
        if layer.cross
        else F.linear(source, layer.key_value.weight[width:], layer.key_value.bias[width:])
    )
    o = layer.norm_attention(residual + attended)
    first, _, second = layer.feed_forward
    hidden = F.relu(F.linear(o, first.weight, first.bias))
    return layer.norm_feed_forward(o + F.linear(hidden, second.weight, second.bias))


def plain_terms(model, clip):
    """The three terms of Eq. 5 for a clip without padding, each (S, w), or 0."""
    states = {}
    for name in MODALITIES:
        if name in clip:
            project = model.project[name]
            x = F.linear(clip[name], project.weight, project.bias)
            x = x + sinusoidal(x.shape[1], x.shape[2], "cpu")
            for layer in model.unimodal[name]:
                x = plain_layer(layer, x, x)
            states[name] = x
    terms = [states[model.anchor][0]]
    for name in MODALITIES:
        if name != model.anchor:
            x = states[model.anchor]
            if name in states:
                for layer in model.cross[name]:
                    x = plain_layer(layer, x, states[name])
            terms.append(x[0] if name in states else torch.zeros_like(x[0]))
    return terms


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("heads", [4, 1])
def test_a_layer_is_torchs_attention_with_the_papers_residual(cross, heads):
    layer = uneven(Layer(replace(SIZES, heads=heads), cross))
    x, source = noise(3, 6, 16), noise(3, 9, 16, seed=1)
    source = source if cross else x
    lost = torch.arange(source.shape[1]) >= torch.tensor([[source.shape[1]], [4], [1]])
    found = layer(x, source, ~lost[:, None, None])
    torch.testing.assert_close(found, plain_layer(layer, x, source, lost), atol=1e-5, rtol=1e-5)
    assert found.shape == (3, 6, 16)


def test_equation_3_by_hand():
    """Two values (1, 3) and (5, 3), attention that adds (10, 0) to all: norms to (1, -1) whatever the input was."""
    layer = Layer(Sizes(2, 1, 1, 3, 0.0), cross=False)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        for norm in (layer.norm_attention, layer.norm_feed_forward):
            norm.weight.fill_(1.0)
        layer.key_value.weight[2:] = torch.eye(2)
    everything = torch.ones(1, 1, 1, 2, dtype=torch.bool)
    x = torch.tensor([[[1.0, 3.0], [5.0, 3.0]]])
    torch.testing.assert_close(
        layer(x, x, everything), torch.tensor([[[-1.0, 1.0], [1.0, -1.0]]]), atol=1e-4, rtol=0
    )
    with torch.no_grad():
        layer.out.bias.copy_(torch.tensor([10.0, 0.0]))
    torch.testing.assert_close(layer(x, x, everything), torch.tensor([[[1.0, -1.0]] * 2]), atol=1e-4, rtol=0)
    with torch.no_grad():
        layer.key_value.weight.zero_()  # no residual from the input itself: V is 0, and so is what x was
    torch.testing.assert_close(
        layer(-x, -x, everything), torch.tensor([[[1.0, -1.0]] * 2]), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("n_clips, n_steps", [(1, 9), (7, 5), (33, 5), (19, 33), (64, 9)])
def test_linear_is_torchs_with_its_gradients(n_clips, n_steps):
    theirs, ours = nn.Linear(16, 24), Linear(16, 24)
    ours.load_state_dict(theirs.state_dict())
    results = []
    for layer in (ours, theirs):
        x = noise(n_clips, n_steps, 16).requires_grad_()
        y = layer(x)
        (y * noise(*y.shape, seed=1)).sum().backward()
        results.append([y, x.grad, *(parameter.grad for parameter in layer.parameters())])
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("anchor", MODALITIES)
@pytest.mark.parametrize("depth", [1, 3])
def test_a_padded_batch_is_plain_clips(anchor, depth):
    """Every clip of a batch, with garbage as padding, against a loop over clips without padding; modalities missing."""
    weights = (0.5, 0.3, 0.2)
    model, batch = encoder(anchor, replace(SIZES, depth=depth), weights), batch_of(filling=37.0)
    terms, is_step = model.terms(batch)
    encoded, same = model(batch)
    assert torch.equal(is_step, same) and torch.isfinite(encoded).all()
    assert encoded.shape == (7, N_STEPS[anchor], 16) and (encoded[~is_step] == 0).all()
    for number, length in enumerate(LENGTHS[anchor]):
        assert is_step[number].sum() == length
        if length:
            expected = plain_terms(model, clip_of(batch, number))
            for found, wanted in zip(terms, expected, strict=True):
                torch.testing.assert_close(found[number, :length], wanted, atol=2e-5, rtol=1e-4)
            total = sum(weight * term for weight, term in zip(weights, expected))
            torch.testing.assert_close(encoded[number, :length], total, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("n_substitutes", [0, 3])
@pytest.mark.parametrize("anchor", MODALITIES)
def test_a_clip_alone_is_the_clip_in_a_padded_batch(anchor, n_substitutes):
    classifier = uneven(EmotionClassifier(encoder(anchor, n_substitutes=n_substitutes), 6))
    batch = batch_of(filling=37.0)
    together = classifier(batch)
    for number in range(6):
        clip = clip_of(batch, number)
        if anchor in clip or n_substitutes:
            torch.testing.assert_close(classifier(clip)[0], together[number], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(classifier(batch_of(filling=-1e4)), together, atol=1e-5, rtol=1e-4)


def test_a_missing_modality_adds_nothing_and_breaks_no_gradient():
    model, batch = encoder(), batch_of()
    (_, audio, video), _ = model.terms(batch)
    assert model.term_names == ("text", "audio", "video")
    for term, name in ((audio, "audio"), (video, "video")):
        lacks = batch[f"{name}_length"] == 0
        assert (term[lacks] == 0).all() and (term[~lacks] != 0).all(2).any(1).all()
    classifier = EmotionClassifier(model, 6)
    classifier(batch).square().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in classifier.parameters())


def test_without_text_the_papers_model_says_nothing():
    classifier = uneven(EmotionClassifier(encoder(), 6))
    logits = classifier(batch_of())
    assert torch.equal(logits[5], classifier.output.bias) and torch.equal(logits[6], classifier.output.bias)
    assert (logits[:5] != classifier.output.bias).all()
    with pytest.raises(UserError, match="no clip of this batch has text"):
        classifier({name: x for name, x in batch_of().items() if "text" not in name})


def test_substitutes_let_a_clip_without_text_be_told_from_another():
    classifier = uneven(EmotionClassifier(encoder(n_substitutes=8), 6))
    first, second = classifier(batch_of(seed=0)), classifier(batch_of(seed=1))
    assert (first[5] - second[5]).abs().min() > 1e-4, "audio and video of a clip without text are not heard"
    torch.testing.assert_close(first[6], second[6])
    assert torch.isfinite(first).all()
    encoded, is_step = classifier.encoder(batch_of())
    assert encoded.shape[1] == 8 and is_step.sum(1).tolist() == [6, 3, 4, 1, 2, 8, 8]
    first.square().sum().backward()
    assert all((vector.grad != 0).all() for vector in classifier.encoder.substitutes.values())


def test_substitutes_change_nothing_where_nothing_is_missing():
    without, having = encoder(), encoder(n_substitutes=2)
    missing = having.load_state_dict(without.state_dict(), strict=False)
    assert sorted(missing.missing_keys) == [f"substitutes.{name}" for name in sorted(MODALITIES)]
    batch = batch_of({name: lengths[:2] for name, lengths in LENGTHS.items()})
    torch.testing.assert_close(having(batch)[0], without(batch)[0])


@pytest.mark.parametrize("lengths", [{"text": [6, 3]}, {"text": [6, 3], "video": [8, 4]}])
def test_modalities_can_be_left_out_of_a_batch(lengths):
    model, batch = encoder(), batch_of(lengths)
    absent = {name: [0, 0] for name in MODALITIES if name not in lengths}
    torch.testing.assert_close(model(batch)[0], model(batch | batch_of(absent))[0])


@pytest.mark.parametrize("anchor", MODALITIES)
def test_attention_is_returned_and_what_the_model_used(anchor, monkeypatch):
    model, batch = encoder(anchor), batch_of(filling=5.0)
    expected, _ = model(batch)
    encoded, _, attention = model(batch, return_attention=True)
    assert torch.equal(encoded, expected)
    others = [name for name in MODALITIES if name != anchor]
    assert set(attention) == {*MODALITIES, *(f"{name}->{anchor}" for name in others)}
    for name, weights in attention.items():
        source, asks = name.split("->")[0], name.split("->")[-1]
        assert weights.shape == (7, 2, 4, N_STEPS[asks], N_STEPS[source])
        torch.testing.assert_close(weights.sum(4), torch.ones(weights.shape[:4]))
        there = torch.arange(N_STEPS[source]) < batch[f"{source}_length"][:, None]
        beyond = ~there & there.any(1, keepdim=True)
        assert (weights.permute(0, 4, 1, 2, 3)[beyond] == 0).all(), "somebody looks at the padding"
    monkeypatch.setattr(khare_model, "attention", lambda q, k, v, is_key: attention_weights(q, k, is_key) @ v)
    torch.testing.assert_close(model(batch)[0], expected, atol=1e-5, rtol=1e-4)


def test_parameters_at_the_papers_size():
    """(w + 1) w for each of four projections, the feed-forward part, two norms; 20 layers and three projections."""
    w, hidden = 512, 200
    layer = 4 * (w + 1) * w + (w + 1) * hidden + (hidden + 1) * w + 4 * w
    model = CrossModalTransformer({"text": 300, "audio": 200, "video": 4096}, PAPER, "text", WEIGHTS, 0)
    assert count_parameters(model) == 20 * layer + (300 + 200 + 4096 + 3) * w == 27_518_368


def test_dropout_is_for_training_alone():
    model, batch = encoder(sizes=replace(SIZES, dropout=0.5)), batch_of()
    assert not torch.allclose(model(batch)[0], model(batch)[0])
    model.eval()
    torch.testing.assert_close(model(batch)[0], encoder()(batch)[0])


def test_sizes_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match="3 attention heads"):
        encoder(sizes=replace(SIZES, heads=3))
    with pytest.raises(UserError, match="choose one of text, audio, video"):
        encoder(anchor="words")
    with pytest.raises(UserError, match="set ANCHOR to text"):
        MaskedLM(encoder("audio"), 10, None)


def test_dropped_modalities():
    lengths = {"text": [4] * 3000 + [0] * 3000, "audio": [5] * 6000, "video": [6] * 6000}
    batch = {name: torch.zeros(6000, 6, 1) for name in MODALITIES}
    batch |= {f"{name}_length": torch.tensor(length) for name, length in lengths.items()}
    found = drop_modalities(batch, 0.3, seeded())
    left = torch.stack([found[f"{name}_length"] for name in MODALITIES])
    before = torch.stack([batch[f"{name}_length"] for name in MODALITIES])
    assert ((left == before) | (left == 0)).all() and (left > 0).any(0).all()
    assert batch["text_length"][0] == 4 and found["text"] is batch["text"]
    shares = (left[:, :3000] == 0).double().mean(1)  # 0.3, less the 0.3 ** 3 that would lose everything
    assert (shares - (0.3 - 0.3**3)).abs().max() < 0.03  # three and a half standard errors
    shares = (left[1:, 3000:] == 0).double().mean(1)
    assert (shares - (0.3 - 0.3**2)).abs().max() < 0.03


# ---- Masked language model -----------------------------------------------------------------


def small_noise(n_words, shared=False, counts=(50, 30, 10, 5, 3, 2)):
    return Noise(torch.tensor(counts), n_words, shared)


def normal_scores(n_words=6, n_positions=4):
    """Weights (V, w) whose scores for each of w one-hot inputs have exp(s) that sums to V, as NCE takes for granted."""
    scores = noise(n_words, n_positions, seed=3)
    return scores - scores.logsumexp(0) + math.log(n_words)


def gradient_of(loss, x, weight, bias, *arguments):
    weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    loss(x, weight, bias, *arguments).backward()
    return torch.cat([weight.grad.flatten(), bias.grad])


def test_softmax_loss_is_torchs():
    x, weight, bias, target = noise(7, 16), noise(9, 16, seed=1), noise(9, seed=2), torch.arange(7)
    logits = x @ weight.T + bias
    loss, right = softmax_loss(x, weight, bias, target)
    torch.testing.assert_close(loss, F.cross_entropy(logits, target, reduction="sum"))
    assert right == (logits.argmax(1) == target).sum()


@pytest.mark.parametrize("shared", [False, True])
def test_nce_by_hand(shared):
    """One position, V = 2 words as likely as noise, k = 3: whatever is drawn, D = s - ln 2 - ln(3 / 2)."""
    noise_words = Noise(torch.tensor([5, 5]), 3, shared)
    found = nce_loss(
        torch.ones(1, 1),
        torch.tensor([[1.0], [1.0]]),
        torch.tensor([0.5, 0.5]),
        torch.tensor([1]),
        noise_words,
    )
    d = 1.5 - math.log(2) - math.log(1.5)
    expected = math.log(1 + math.exp(-d)) + 3 * math.log(1 + math.exp(d))
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_noise_words_follow_their_counts(shared):
    counts = torch.tensor([50, 30, 10, 5, 3, 2])
    words = small_noise(20, shared).draw(2000, 20, generator=seeded())
    assert words.shape == (2000, 20)
    shares = torch.bincount(words.flatten(), minlength=6) / words.numel()
    assert ((shares - counts / 100).abs() < 4 * (counts / 100 / words.numel()).sqrt()).all()
    torch.testing.assert_close(small_noise(20).log_k_p(torch.arange(6)).exp(), 20 * counts / 100)
    many = torch.full((88_000,), 1_000_000_000)
    words = Noise(many, 1, shared).draw(20_000, generator=seeded())
    assert words.min() < 200 and words.max() > 87_800 and words.max() < 88_000


@pytest.mark.parametrize("shared", [False, True])
def test_nce_has_its_exact_expectation(shared):
    """The mean over 4,000 draws of noise against the sum over the vocabulary, with k = 2."""
    weight, bias, target = noise(6, 4, seed=5), noise(6, seed=6), torch.tensor([0, 4, 1, 5])
    noise_words, x, generator = small_noise(2, shared), noise(4, 4, seed=7), seeded()
    found = torch.stack([nce_loss(x, weight, bias, target, noise_words, generator) for _ in range(4000)])
    d = x @ weight.T + bias - math.log(6) - noise_words.log_k_p(torch.arange(6))
    expected = (
        -F.logsigmoid(d)[torch.arange(4), target].sum()
        - 2 * (noise_words.log_p.exp() * F.logsigmoid(-d)).sum()
    )
    assert abs(found.mean() - expected) < 4 * found.std() / 4000**0.5


@pytest.mark.parametrize("shared", [False, True])
def test_with_much_noise_the_gradient_is_that_of_the_full_softmax(shared):
    """[21]: the gradient tends to that of maximum likelihood as k grows, where exp(s) / Z sums to 1."""
    x, weight, bias, target = torch.eye(4), normal_scores(), torch.zeros(6), torch.tensor([0, 3, 1, 5])
    exact = gradient_of(lambda *a: softmax_loss(*a)[0], x, weight, bias, target)
    errors = []
    for k in (1, 100, 20_000):
        found = gradient_of(nce_loss, x, weight, bias, target, small_noise(k, shared), seeded())
        errors.append(((found - exact).norm() / exact.norm()).item())
    assert errors[0] > 0.2 and errors[1] < errors[0] and errors[2] < 0.02, errors


def test_noise_that_cannot_be_is_refused():
    with pytest.raises(UserError, match="take unseen words out"):
        small_noise(5, counts=(5, 0, 2))
    with pytest.raises(UserError, match="0 noise words"):
        small_noise(0)


def test_the_loss_is_that_of_hidden_words_in_the_vocabulary():
    model = uneven(MaskedLM(encoder(), 12, None))
    batch = words_of(batch_of(), 12)
    encoded, _ = model.encoder(batch)
    losses, right = [], 0
    for clip, position in batch["hidden"].nonzero().tolist():
        word = int(batch["word_ids"][clip, position])
        if word >= 0:
            logits = model.output(encoded[clip, position])
            losses.append(-logits.log_softmax(0)[word])
            right += int(logits.argmax() == word)
    assert 3 < len(losses) < int(batch["hidden"].sum()), "the test needs hidden words outside the vocabulary"
    found = model(batch)
    assert (found["count"], found["right"]) == (len(losses), right)
    torch.testing.assert_close(found["loss"], sum(losses))


@pytest.mark.parametrize("noise_words", [None, small_noise(3), small_noise(3, shared=True)])
def test_a_batch_without_a_hidden_word_has_no_loss(noise_words):
    model, batch = MaskedLM(encoder(), 6, noise_words), words_of(batch_of(), 6)
    found = model(batch | {"hidden": torch.zeros_like(batch["hidden"])})
    assert found["count"] == 0 and found["loss"] == 0
    found["loss"].backward()


def test_nce_is_for_training_alone_and_leaves_no_trace_in_the_weights():
    batch = words_of(batch_of(), 6)
    plain, with_noise = (uneven(MaskedLM(encoder(), 6, n)) for n in (None, small_noise(3)))
    assert set(plain.state_dict()) == set(with_noise.state_dict())
    a, b = (with_noise(batch, seeded(0))["loss"] for _ in range(2))
    assert a == b and a != with_noise(batch, seeded(1))["loss"]
    torch.testing.assert_close(with_noise.eval()(batch), plain.eval()(batch))


def train(model, loss, n_steps, rate):
    optimizer = torch.optim.Adam(model.parameters(), rate, betas=(0.9, 0.98), eps=1e-9)
    for _ in range(n_steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def fresh(anchor="text", n_substitutes=0):
    return build(0, CrossModalTransformer, N_FEATURES, SIZES, anchor, WEIGHTS, n_substitutes)


def complete(n_clips=8):
    """Clips that lack nothing, of several lengths."""
    return batch_of(
        {
            name: [1 + (5 * number + shift) % N_STEPS[name] for number in range(n_clips)]
            for shift, name in enumerate(MODALITIES)
        }
    )


TWENTY = torch.arange(1, 21)


@pytest.mark.parametrize("noise_words", [None, Noise(TWENTY, 10, False), Noise(TWENTY, 40, True)])
def test_eight_clips_are_learned_as_masked_language_model(noise_words):
    batch = words_of(complete(), 20)
    model = build(0, MaskedLM, fresh(), 20, noise_words)
    n_words, generator = int((batch["hidden"] & (batch["word_ids"] >= 0)).sum()), seeded()
    train(model, lambda: model(batch, generator)["loss"] / n_words, 120, 1e-2)
    found = model.eval()(batch)
    assert found["count"] > 8 and found["right"] == found["count"]
    assert found["loss"] / found["count"] < 0.5, "scores of NCE are not those of a softmax"


# ---- Schedule ------------------------------------------------------------------------------


def test_the_schedule_by_hand():
    k, w, warmup = 10, 512, 4000
    rates = [learning_rate(n, k, w, warmup) for n in (1, 2000, 4000, 16000)]
    peak = 10 / math.sqrt(512 * 4000)
    assert rates == pytest.approx([peak / 4000, peak / 2, peak, peak / 2])


# ---- Emotions ------------------------------------------------------------------------------


def test_weights_let_positives_and_negatives_count_alike():
    labels = (torch.rand(200, 6, generator=seeded()) < torch.tensor([0.7, 0.4, 0.3, 0.2, 0.1, 0.05])).long()
    weights = balance(labels)
    for emotion in range(6):
        positive = labels[:, emotion] == 1
        assert float(weights[1, emotion]) * int(positive.sum()) == pytest.approx(100)
        assert float(weights[0, emotion]) * int((~positive).sum()) == pytest.approx(100)
    assert torch.isfinite(balance(torch.zeros(4, 2))).all()


def test_balanced_loss_by_hand():
    """Three clips, two emotions. Emotion 0 has one positive: weights 3/2 and 3/4; emotion 1 two: 3/4 and 3/2."""
    labels, logits = (
        torch.tensor([[1, 1], [0, 1], [0, 0]]),
        torch.tensor([[2.0, -1.0], [0.5, 0.0], [-3.0, 1.0]]),
    )
    weights = balance(labels)
    assert weights.tolist() == [[0.75, 1.5], [1.5, 0.75]]

    def soft(z):
        return math.log(1 + math.exp(z))

    first, second = 1.5 * soft(-2) + 0.75 * (soft(0.5) + soft(-3)), 0.75 * (soft(1) + soft(0)) + 1.5 * soft(1)
    assert balanced_loss(logits, labels, weights).item() == pytest.approx((first + second) / 2, rel=1e-5)


def test_pooling_and_contributions():
    classifier, batch = uneven(EmotionClassifier(encoder(weights=(0.5, 0.3, 0.2)), 6)), batch_of(filling=9.0)
    encoded, _ = classifier.encoder(batch)
    logits = classifier(batch)
    for number, length in enumerate(LENGTHS["text"][:5]):
        pooled = encoded[number, :length].mean(0)
        torch.testing.assert_close(logits[number], classifier.output(pooled), atol=1e-5, rtol=1e-4)
    parts = classifier.contributions(batch)
    assert parts.shape == (7, 3, 6) and (parts[2, 1] == 0).all() and (parts[3, 2] == 0).all()
    torch.testing.assert_close(parts.sum(1) + classifier.output.bias, logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("anchor, n_substitutes", [("text", 0), ("audio", 0), ("text", 2)])
def test_eight_clips_are_learned_as_emotions(anchor, n_substitutes):
    """With substitutes, clips without text are learned too."""
    batch = complete()
    if n_substitutes:
        batch["text_length"][:3] = 0
    labels = torch.arange(8)[:, None] >> torch.arange(6) & 1
    labels[:, 3:] = 1 - labels[:, :3]
    model = build(0, EmotionClassifier, fresh(anchor, n_substitutes), 6)
    weights = balance(labels)
    train(model, lambda: balanced_loss(model(batch), labels, weights), 150, 1e-2)
    assert torch.equal(model.eval()(batch) > 0, labels.bool())
