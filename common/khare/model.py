"""The networks of Khare et al., "Self-supervised learning with cross-modal transformers for emotion recognition", 2021.

Read it from the top beside the paper: the layer of Eq. 1 to 4, the model of Eq. 5 (Sec. 2.1), the masked language model
with full softmax and with noise-contrastive estimation (Sec. 2.2), the schedule of [27] (Sec. 3.1), and emotions with
their balanced loss (Sec. 2.1, 3.1). What the paper leaves open is marked as our choice.

B clips, W words, T_a steps of audio, T_v frames of video, S any of the three, w width of the model, V words of the
vocabulary, N hidden words of a batch, k noise words, E emotions. A batch is a dict:

    "text" (B, W, 300), "audio" (B, T_a, 200), "video" (B, T_v, 4096)   features, 0 where hidden or padded
    "text_length", "audio_length", "video_length" (B,) int64            steps that are there; 0 = the clip lacks it
    "word_ids" (B, W) int64, "hidden" (B, W) bool                       for the masked language model alone

A modality that the whole batch lacks can be left out of it, features and lengths; its encoders are then not run.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from common.chochlakis import mae as chochlakis_mae
from common.chochlakis.mae import CONV_GROUPS, CONV_ROWS, keys_of
from common.errors import UserError
from common.sadok import vqmae as sadok_vqmae
from common.sadok.vqmae import TOKEN_STD, initialise, sinusoidal, vectors

MODALITIES = ("text", "audio", "video")


# ---- One layer (Section 2.1, Equations 1 to 4) ---------------------------------------------


@dataclass
class Sizes:
    """The sizes of the model, from the constants of 07; the paper's in brackets."""

    width: int  # w, of keys, queries and values (512), and, our choice, of the projected inputs
    depth: int  # layers of every unimodal and every cross-modal encoder (4)
    heads: int  # (4)
    feed_forward: int  # hidden units of the feed-forward part (200)
    dropout: float  # of every part before its residual, and of the inputs, as in [19]; the paper names none


class Linear(chochlakis_mae.Linear):
    """nn.Linear on a batch of sequences; on a CPU as a convolution where that is faster, up to twice."""

    def forward(self, x):
        """x (B, S, n) -> (B, S, m)."""
        rows = x.shape[0] * x.shape[1]
        if x.shape[0] >= CONV_GROUPS and rows >= CONV_ROWS and rows % CONV_GROUPS:
            return sadok_vqmae.Linear.forward(self, x)
        return super().forward(x)


def attention(q, k, v, is_key):
    """Eq. 2, fused: softmax(Q K^T / sqrt(d)) V of q (B, heads, S, d) and k, v (B, heads, S', d).

    is_key  (B, 1, 1, S') bool, True where to look
    """
    return F.scaled_dot_product_attention(q, k, v, is_key)


def attention_weights(q, k, is_key):
    """softmax(Q K^T / sqrt(d)) (B, heads, S, S'), to be looked at."""
    scores = q @ k.transpose(2, 3) / q.shape[3] ** 0.5
    return scores.masked_fill(~is_key, -torch.inf).softmax(3)


class Layer(nn.Module):
    """A layer of a unimodal encoder, or of a cross-modal one, with a residual as the paper prints it.

    Eq. 3 adds what was attended to the values V, not to the layer's input as in [19]: LayerNorm(V + A), then
    LayerNorm(O + FeedForward(O)). A of several heads goes through a linear layer as in [19].
    In a cross-modal layer (Eq. 4) queries come from one modality, keys and values from another, and "identical, with
    one exception" cannot hold to the letter: V has the other modality's length. Our choice is LayerNorm(Q + A): of the
    three projections Q alone has the length of A. It also keeps which word a query came from, as the residual does in
    [15].

    sizes  Sizes
    cross  whether this is a layer of a cross-modal encoder
    """

    def __init__(self, sizes, cross):
        super().__init__()
        if sizes.width % sizes.heads:
            raise UserError(
                f"model width {sizes.width}: {sizes.heads} attention heads do not divide it; change one"
            )
        self.heads, self.cross = sizes.heads, cross
        self.query, self.key_value = Linear(sizes.width, sizes.width), Linear(sizes.width, 2 * sizes.width)
        self.out, self.dropout = Linear(sizes.width, sizes.width), nn.Dropout(sizes.dropout)
        self.feed_forward = nn.Sequential(
            Linear(sizes.width, sizes.feed_forward), nn.ReLU(), Linear(sizes.feed_forward, sizes.width)
        )
        self.norm_attention, self.norm_feed_forward = nn.LayerNorm(sizes.width), nn.LayerNorm(sizes.width)

    def forward(self, x, source, is_key, kept=None):
        """x (B, S, w) asks, source (B, S', w), x itself in a unimodal encoder, answers -> (B, S, w).

        is_key  (B, 1, 1, S') bool
        kept    a list to which the weights of attention (B, heads, S, S') are added, or None
        """
        query = self.query(x)  # (B, S, w)
        key, value = self.key_value(source).chunk(2, 2)  # (B, S', w) each
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
        if kept is not None:
            kept.append(attention_weights(q, k, is_key))
        attended = self.out(attention(q, k, v, is_key).transpose(1, 2).flatten(2))  # (B, S, w)
        x = self.norm_attention((query if self.cross else value) + self.dropout(attended))
        return self.norm_feed_forward(x + self.dropout(self.feed_forward(x)))


# ---- The model (Section 2.1, Equation 5) ---------------------------------------------------


class CrossModalTransformer(nn.Module):
    """Features of three modalities -> one vector for each step of the anchor modality (Figure 1).

    Each modality goes through a linear layer (our choice), positions are added, and then its own encoder gives S_T,
    S_A, S_V. Two cross-modal encoders let every step of the anchor look at the two others. The output is the sum of
    Eq. 5, w_1 E_T + w_2 E_A->T + w_3 E_V->T with E_T = S_T. Queries of a layer after the first are the output of the
    layer before; keys and values are always those of S_A or S_V, as in [15].

    A term is 0 where the clip lacks its modality, whose weight is not shared out among the others: Eq. 5 has fixed
    weights. Where the anchor is missing, all is 0, the paper's limitation (Sec. 4.2): no words, no queries.
    `n_substitutes` > 0 is our way out: a missing modality is a sequence of that many trained vectors, which ask when
    it is the anchor and answer when it is not. The rest of the model stays as it is, so that pretrained weights fit;
    averaging models with an anchor each would take three times the encoders, and a comparison with the paper's would
    be one of sizes. The vectors must be trained on clips that lack something: see `drop_modalities`.

    n_features     width of the features of each of MODALITIES, for example {"text": 300, "audio": 200, "video": 4096}
    sizes          Sizes
    anchor         one of MODALITIES (text)
    term_weights   of the anchor and the two others in the order of MODALITIES (0.33, 0.33, 0.33)
    n_substitutes  trained vectors in place of a missing modality; 0 = none, the paper's
    """

    def __init__(self, n_features, sizes, anchor, term_weights, n_substitutes):
        super().__init__()
        if anchor not in MODALITIES:
            raise UserError(f"anchor {anchor!r}: unknown; choose one of {', '.join(MODALITIES)}")
        self.anchor, self.width, self.term_weights = anchor, sizes.width, tuple(term_weights)
        self.term_names = (anchor, *(name for name in MODALITIES if name != anchor))
        self.project = nn.ModuleDict({name: Linear(n_features[name], sizes.width) for name in MODALITIES})
        self.dropout, self.n_substitutes = nn.Dropout(sizes.dropout), n_substitutes
        if n_substitutes:
            self.substitutes = nn.ParameterDict(
                {name: vectors(TOKEN_STD, n_substitutes, sizes.width) for name in MODALITIES}
            )
        self.unimodal = nn.ModuleDict({name: layers(sizes, cross=False) for name in MODALITIES})
        self.cross = nn.ModuleDict({name: layers(sizes, cross=True) for name in self.term_names[1:]})
        self.apply(initialise)

    def forward(self, batch, return_attention=False):
        """The output of Eq. 5 for a batch.

        return_attention  also return the weights of all attention, which are otherwise never in memory
        Returns encoded (B, S, w), 0 at steps that are not there, and is_step (B, S) bool, for the S steps of the
        anchor; S is n_substitutes where that is more. Then, if asked, a dict of (B, depth, heads, S, S') by "text",
        "audio", "video" (the encoders of each) and "audio->text", "video->text" (who is looked at, who looks).
        """
        attention = {} if return_attention else None
        terms, is_step = self.terms(batch, attention)
        encoded = sum(weight * term for weight, term in zip(self.term_weights, terms, strict=True))
        encoded = encoded.masked_fill(~is_step[..., None], 0.0)
        return (encoded, is_step, attention) if return_attention else (encoded, is_step)

    def terms(self, batch, attention=None):
        """E_T, E_A->T and E_V->T, each (B, S, w), in the order of `term_names`; and is_step (B, S)."""
        states, is_step = {}, {}
        for name in MODALITIES:
            x, is_step[name] = self.embed(batch, name)
            states[name] = through(self.unimodal[name], x, None, is_step[name], name, attention)
        own, terms = states[self.anchor], [states[self.anchor]]
        if not own.shape[1]:
            raise UserError(
                f"no clip of this batch has {self.anchor}, the anchor: choose another anchor for this "
                "corpus, or N_SUBSTITUTES above 0"
            )
        for name in self.term_names[1:]:
            term = through(
                self.cross[name], own, states[name], is_step[name], f"{name}->{self.anchor}", attention
            )
            terms.append(term.masked_fill(~is_step[name].any(1)[:, None, None], 0.0))
        return terms, is_step[self.anchor]

    def embed(self, batch, name):
        """A modality as vectors with positions (B, S, w), and which of its steps are there (B, S) bool."""
        x, length = self.inputs(batch, name)  # (B, S, w), (B,)
        if self.n_substitutes:
            n_steps, absent = max(x.shape[1], self.n_substitutes), length == 0
            x = F.pad(x, (0, 0, 0, n_steps - x.shape[1]))
            vector = F.pad(self.substitutes[name], (0, 0, 0, n_steps - self.n_substitutes)).to(x.dtype)
            x, length = (
                torch.where(absent[:, None, None], vector, x),
                length.masked_fill(absent, self.n_substitutes),
            )
        is_step = torch.arange(x.shape[1], device=x.device) < length[:, None]
        return self.dropout(x + sinusoidal(x.shape[1], self.width, x.device)), is_step

    def inputs(self, batch, name):
        """The projected features (B, S, w) and lengths (B,) of a modality, of no steps if the batch lacks it."""
        if name in batch and batch[name].shape[1]:
            return self.project[name](batch[name].to(self.project[name].weight.dtype)), batch[
                f"{name}_length"
            ]
        other = next((batch[f"{name}_length"] for name in MODALITIES if f"{name}_length" in batch), None)
        if other is None:
            raise ValueError(
                f"a batch needs at least one of {', '.join(MODALITIES)} with its length; found {[*batch]}"
            )
        return self.project[name].weight.new_zeros(len(other), 0, self.width), torch.zeros_like(other)


def layers(sizes, cross):
    """An encoder as a list of its layers."""
    return nn.ModuleList(Layer(sizes, cross) for _ in range(sizes.depth))


def through(encoder, x, source, is_step, name, attention):
    """x (B, S, w) through all layers of an encoder; source (B, S', w) is what they look at, None = each at its input.

    is_step    (B, S') bool, the steps that can be looked at
    attention  dict that gets the weights (B, depth, heads, S, S') under `name`, or None
    With nothing to look at, x (B, S, w) comes back as it is.
    """
    if not is_step.shape[1]:
        return x
    is_key, kept = keys_of(is_step), None if attention is None else []
    for layer in encoder:
        x = layer(x, x if source is None else source, is_key, kept)
    if kept:
        attention[name] = torch.stack(kept, 1)
    return x


def drop_modalities(batch, rate, generator):
    """Take modalities away from clips, so that a model with substitutes learns to do without them.

    batch      as above; it stays as it is
    rate       probability of losing a modality, for each that a clip has, independently; a clip that would lose all
               of them loses none
    generator  torch.Generator, the only randomness used
    Returns a batch with lengths of 0 where a modality is taken away. Not in the paper.
    """
    names = [name for name in MODALITIES if name in batch]
    lengths = torch.stack([batch[f"{name}_length"] for name in names])  # (M, B)
    lost = torch.rand(lengths.shape, generator=generator, device=generator.device).to(lengths.device) < rate
    left = lengths.masked_fill(lost, 0)
    left = torch.where((left > 0).any(0), left, lengths)
    return batch | {f"{name}_length": length for name, length in zip(names, left)}


# ---- Masked language model (Section 2.2) ---------------------------------------------------


class Noise(nn.Module):
    """The noise of NCE: words drawn from their frequencies in the training transcripts.

    A draw is a number below the count of all running words, looked up in the cumulative counts: exact in integers, and
    logarithmic in V, where torch.multinomial goes through all V words each time.

    counts   (V,) int64, how often each word of the vocabulary occurs
    n_words  k
    shared   whether all positions of a forward pass have the same noise words. [22] draws anew for every position
             (False). Sharing reads k rows of weights instead of N * k; its expected gradient is the same, its variance
             larger. On a small synthetic language of 2,000 words, 1,000 shared words learned about as fast as 25 to 100
             for each position, and 25 shared ones much more slowly
    Raises UserError if a word never occurs: its probability as noise, by which NCE divides, would be 0.
    """

    def __init__(self, counts, n_words, shared):
        super().__init__()
        counts = torch.as_tensor(counts, dtype=torch.int64)
        if n_words < 1 or counts.min() < 1:
            raise UserError(
                f"NCE with {n_words} noise words and a least frequent word that occurs {int(counts.min())} "
                "times: both must be 1 or more; take unseen words out of the vocabulary"
            )
        self.n_words, self.shared, self.total = n_words, shared, int(counts.sum())
        # Not saved: models trained with and without NCE are then the same file.
        self.register_buffer("cumulative", counts.cumsum(0), persistent=False)
        self.register_buffer("log_p", (counts.double() / self.total).log().float(), persistent=False)

    def draw(self, *shape, generator):
        """Words (*shape) int64 from a generator on the counts' device; None = torch's own."""
        number = torch.randint(self.total, shape, generator=generator, device=self.cumulative.device)
        return torch.searchsorted(self.cumulative, number, right=True)

    def log_k_p(self, words):
        """ln(k P_noise(w)) of some words."""
        return self.log_p[words] + math.log(self.n_words)


def softmax_loss(x, weight, bias, target):
    """Sum of the cross-entropies of x (N, w) through weight (V, w), bias (V,), and how many targets (N,) come first.

    Logits are made of hidden words alone, N of them and not B * W. Making them a few at a time, as in
    `LinearCrossEntropy`, was slower here: it reads all V rows of weights each time.
    """
    logits = F.linear(x, weight, bias).float()  # (N, V)
    right = logits.detach().gather(1, target[:, None])[:, 0] == logits.detach().amax(1)
    return F.cross_entropy(logits, target, reduction="sum"), right.sum()


def nce_loss(x, weight, bias, target, noise, generator=None):
    """Noise-contrastive estimation after [22]: tell each hidden word from k noise words; a sum over N positions.

    -sum_n [ln sigma(D(w_n)) + sum_k ln sigma(-D(w_nk))],  D(w) = s(w) - ln Z - ln(k P_noise(w)),  Z = V

    s(w) is the score of a word, the logit of the softmax. [22] fixes Z to 1; "we use a normalization factor of
    vocabulary size which we found to be critical" (Sec. 2.2): fresh scores are about 0, so that exp(s) sums to V.

    x (N, w), weight (V, w), bias (V,), target (N,) int64
    noise      Noise
    generator  of the noise words; None = torch's own, which `training` seeds for every step
    """
    n, log_z = len(x), math.log(len(weight))
    words = noise.draw(*(() if noise.shared else (n,)), noise.n_words, generator=generator)  # (k,) or (N, k)
    # Rows of weights are taken once for both kinds of words: each taking makes a gradient as large as all of them.
    asked = torch.cat([target, words.flatten()])
    rows, biases = F.embedding(asked, weight), bias[asked]  # (N + k or N + N * k, w)
    data = torch.einsum("nw,nw->n", x, rows[:n]).float() + biases[:n]  # (N,)
    if noise.shared:
        scores = F.linear(x, rows[n:], biases[n:]).float()  # (N, k)
    else:
        scores = torch.einsum("nw,nkw->nk", x, rows[n:].view(*words.shape, x.shape[1])).float()  # (N, k)
        scores = scores + biases[n:].view_as(words)
    data_part = F.logsigmoid(data - log_z - noise.log_k_p(target)).sum()
    return -data_part - F.logsigmoid(log_z + noise.log_k_p(words) - scores).sum()


class MaskedLM(nn.Module):
    """Predicts hidden words from the words around them, and from audio and video (Sec. 2.2).

    encoder  CrossModalTransformer with text as its anchor
    n_words  V
    noise    Noise, to train by NCE, or None for the full softmax
    """

    def __init__(self, encoder, n_words, noise):
        super().__init__()
        if encoder.anchor != "text":
            raise UserError(
                f"anchor {encoder.anchor!r}: the masked language model gives a word for every step of the "
                "anchor; set ANCHOR to text"
            )
        self.encoder, self.noise = encoder, noise
        # A plain layer: with this many outputs the convolution takes longer.
        self.output = nn.Linear(encoder.width, n_words)
        initialise(self.output)

    def forward(self, batch, generator=None):
        """The loss of a batch whose hidden words are already 0 in all modalities.

        Only hidden words count that are in the vocabulary, word_ids >= 0. In evaluation mode the loss is that of the
        full softmax for a model trained by NCE too, so that the two can be compared and no noise chooses the epoch.
        Returns {"loss": their sum, "count": N} and, with the full softmax, {"right": words predicted}.
        """
        # Before the encoder: a GPU waits for this count, and has little to finish here.
        row, column = (batch["hidden"] & (batch["word_ids"] >= 0)).nonzero(as_tuple=True)
        encoded, _ = self.encoder(batch)
        x, target = encoded[row, column], batch["word_ids"][row, column]  # (N, w), (N,)
        weight, bias = self.output.weight, self.output.bias
        if self.noise is not None and self.training:
            return {"loss": nce_loss(x, weight, bias, target, self.noise, generator), "count": len(x)}
        loss, right = softmax_loss(x, weight, bias, target)
        return {"loss": loss, "count": len(x), "right": right}


# ---- Learning schedule (Section 3.1) -------------------------------------------------------


def learning_rate(step, k, width, warmup_steps):
    """The schedule of [27]: k * w^-0.5 * min(n^-0.5, n * warmup_steps^-1.5), with Adam (0.9, 0.98), eps 1e-9.

    step  n, from 1
    k     tunable; the paper gives neither it nor the warm-up
    The peak, at n = warmup_steps, is k * (w * warmup_steps)^-0.5.
    """
    return k * width**-0.5 * min(step**-0.5, step * warmup_steps**-1.5)


# ---- Emotions (Sections 2.1 and 3.1) -------------------------------------------------------


class EmotionClassifier(nn.Module):
    """Average pooling over the steps of the anchor, then a linear layer with a sigmoid for each emotion.

    encoder     CrossModalTransformer, fresh or from a MaskedLM
    n_emotions  E
    """

    def __init__(self, encoder, n_emotions):
        super().__init__()
        self.encoder, self.output = encoder, nn.Linear(encoder.width, n_emotions)
        initialise(self.output)

    def forward(self, batch):
        """batch -> logits (B, E); those of the bias alone where there is nothing to pool."""
        return self.output(pool(*self.encoder(batch)))

    def contributions(self, batch):
        """What each term of Eq. 5 adds to the logits: (B, 3, E), in the order of the encoder's `term_names`.

        Pooling and the last layer are linear, so that these and the bias add up to the logits exactly.
        """
        terms, is_step = self.encoder.terms(batch)
        pooled = [
            weight * pool(term, is_step)
            for weight, term in zip(self.encoder.term_weights, terms, strict=True)
        ]
        return F.linear(torch.stack(pooled, 1), self.output.weight)


def pool(x, is_step):
    """The mean of x (B, S, w) over the steps that are there, is_step (B, S) -> (B, w); 0 where there are none."""
    return x.masked_fill(~is_step[..., None], 0.0).sum(1) / is_step.sum(1, keepdim=True).clamp(min=1)


def balance(labels):
    """Weights by which "the positive and negative examples across all emotions contribute equally" (Sec. 3.1).

    With P_e of N training clips positive for emotion e, a positive clip weighs N / (2 P_e) and a negative one
    N / (2 (N - P_e)): the positives and the negatives of every emotion then weigh N / 2.

    labels  (N, E) bool or 0/1, of the training part
    Returns weights (2, E) of negative and positive clips.
    """
    positive = torch.as_tensor(labels).bool().sum(0)  # (E,)
    of_each = torch.stack([len(labels) - positive, positive])
    return len(labels) / (
        2.0 * of_each.clamp(min=1)
    )  # a kind that does not occur is never asked for its weight


def balanced_loss(logits, labels, weights):
    """Binary cross-entropy, weighted by `balance`: the mean over emotions, summed over clips.

    logits, labels (B, E), weights (2, E)
    """
    labels = labels.bool()
    losses = F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none")  # (B, E)
    return (losses * torch.where(labels, weights[1], weights[0])).mean(1).sum()
