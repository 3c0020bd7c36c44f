"""The networks of Sadok et al., "A vector quantized masked autoencoder for speech emotion recognition", 2023.

Read it from the top beside the paper: tokens and masking (Sec. 2.2), encoder, decoder and loss (Sec. 2.3, Eq. 1),
the heads and the loss of fine-tuning (Sec. 3.1.2), and SpecMAE, the baseline on the raw spectrogram (Sec. 3.2).

B samples, T frames, D' codes per frame, S = n_t * n_d tokens of t * d codes, V of them visible and H hidden, K codes of
width e, w width of a token inside the model, C classes. `hidden` is True where a token is masked. The order of tokens
means nothing to a Transformer once their positions are added, so the decoder keeps the visible ones first and the
hidden ones last, and nothing is ever put back into the order of the grid but the indices of a reconstruction.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from common.errors import UserError

STRATEGIES = ("patch-tf", "patch-t", "patch-f", "frame")  # Table 2
HEADS = ("cls", "query2emo", "mean")  # Sec. 3.1.2; "mean" is not in the paper
TOKEN_STD = 0.02  # of the first CLS and mask tokens, as in MAE [10]
# Of the first positions; MAE trains none. As large as the first embeddings of codes: with 0.02 a small model had not
# left the plateau of the codes' frequencies after 1,000 steps on smooth synthetic codes, with 1 after 350 it had.
POSITION_STD = 1.0
POWER_FLOOR = 1e-7  # added to a power before its logarithm: 12 decades below the largest that a clip can have
CPU_ROWS, GPU_ROWS = 2**10, 2**18  # of logits at a time: what stays in a CPU's cache; few launches on a GPU


# ---- Tokens (Section 2.2) ------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """How a (T, D') array of codes, or of powers, is divided into tokens of (t, d).

    Raises UserError if t does not divide T or d does not divide D'.
    """

    n_frames: int  # T
    codes_per_frame: int  # D'
    t: int  # frames per token
    d: int  # codes of a frame per token

    def __post_init__(self):
        for size, total, what in (
            (self.t, self.n_frames, "frames"),
            (self.d, self.codes_per_frame, "codes per frame"),
        ):
            if size < 1 or total < 1 or total % size:
                raise UserError(
                    f"token size ({self.t}, {self.d}): {size} does not divide {total} {what}; "
                    f"choose one of {', '.join(str(n) for n in range(1, total + 1) if total % n == 0)}"
                )

    @property
    def n_time(self):
        """Tokens along time, n_t."""
        return self.n_frames // self.t

    @property
    def n_freq(self):
        """Tokens along frequency, n_d."""
        return self.codes_per_frame // self.d

    @property
    def n_tokens(self):
        return self.n_time * self.n_freq

    @property
    def token_size(self):
        return self.t * self.d


def patchify(x, grid):
    """Divide x (B, T, D') into tokens (B, n_t * n_d, t * d), numbered time-major: all of the first t frames come first.

    Raises ValueError if x is not of the grid's size.
    """
    if x.shape[1:] != (grid.n_frames, grid.codes_per_frame):
        raise ValueError(
            f"input (B, {', '.join(map(str, x.shape[1:]))}) on a grid of (B, {grid.n_frames}, "
            f"{grid.codes_per_frame})"
        )
    x = x.reshape(-1, grid.n_time, grid.t, grid.n_freq, grid.d).transpose(2, 3)  # (B, n_t, n_d, t, d)
    return x.reshape(-1, grid.n_tokens, grid.token_size)  # (B, n_t * n_d, t * d)


def unpatchify(tokens, grid):
    """The inverse of `patchify`: tokens (B, n_t * n_d, t * d) -> (B, T, D')."""
    x = tokens.reshape(-1, grid.n_time, grid.n_freq, grid.t, grid.d).transpose(2, 3)  # (B, n_t, t, n_d, d)
    return x.reshape(-1, grid.n_frames, grid.codes_per_frame)  # (B, T, D')


# ---- Masking (Section 2.2) -----------------------------------------------------------------


def mask_tokens(grid, strategy, ratio, n_samples, generator):
    """Choose the tokens to hide, for every sample on its own.

    grid       Grid
    strategy   "patch-tf": round(ratio * n_t * n_d) tokens anywhere; "patch-t": all tokens of round(ratio * n_t)
               columns; "patch-f": all tokens of round(ratio * n_d) rows; "frame": round(ratio * T) whole frames, on a
               grid whose tokens are whole frames, t = 1 and d = D'
    ratio      share to hide, 0 < ratio < 1
    n_samples  B
    generator  torch.Generator, the only randomness used; the result is on its device
    Returns hidden (B, n_t * n_d) bool, with as many True in every row.
    Raises UserError if nothing or everything would be hidden, or if frames are to be hidden of another grid.
    """
    if strategy not in STRATEGIES:
        raise UserError(f"masking strategy {strategy!r}: unknown; choose one of {', '.join(STRATEGIES)}")
    if strategy == "frame" and (grid.t, grid.d) != (1, grid.codes_per_frame):
        raise UserError(
            f"masking strategy 'frame': tokens of ({grid.t}, {grid.d}) are not whole frames; set their "
            f"size to (1, {grid.codes_per_frame}), or hide columns of them by 'patch-t'"
        )
    lines = {"patch-t": grid.n_time, "patch-f": grid.n_freq}.get(strategy, grid.n_tokens)
    count = round(ratio * lines)
    if not 0 < count < lines:
        raise UserError(
            f"masking ratio {ratio}: hides {count} of {lines} ({strategy}); choose one between 0 and 1 "
            "that leaves some hidden and some visible"
        )
    noise = torch.rand(n_samples, lines, generator=generator, device=generator.device)
    hidden = torch.zeros_like(noise, dtype=torch.bool).scatter_(1, noise.argsort(1)[:, :count], True)
    if strategy == "patch-t":
        return hidden.repeat_interleave(grid.n_freq, dim=1)  # (B, n_t * n_d)
    if strategy == "patch-f":
        return hidden.repeat(1, grid.n_time)  # (B, n_t * n_d)
    return hidden


def places(hidden, device):
    """Indices of the visible tokens (B, V) and of the hidden ones (B, H), each in the order of the grid.

    hidden  (B, S) bool, on any device; on a CPU the count costs a GPU no waiting
    device  where the indices are needed
    Raises ValueError unless every row hides the same number of tokens, and neither none nor all.
    """
    counts = set(hidden.sum(1).tolist())
    if len(counts) != 1 or counts & {0, hidden.shape[1]}:
        raise ValueError(
            f"masks of one batch hide {sorted(counts)} of {hidden.shape[1]} tokens: every sample must "
            "hide as many, and neither none nor all"
        )
    order = hidden.to(device, torch.uint8, non_blocking=True).argsort(dim=1, stable=True)
    n_visible = hidden.shape[1] - counts.pop()
    return order[:, :n_visible], order[:, n_visible:]


def take(tokens, at):
    """Some tokens of each sample: tokens (B, S, n), at (B, V) -> (B, V, n)."""
    return torch.take_along_dim(tokens, at[..., None], 1)


# ---- Continuous embedding tokens (Section 2.2) ---------------------------------------------


@dataclass
class Sizes:
    """The sizes of a masked autoencoder besides its tokens, from the constants of 05."""

    width: int  # w; 0 = t * d * e, the paper's, which needs no projection
    depth: int  # L, blocks of the encoder
    decoder_depth: int  # L'
    heads: int
    mlp_ratio: int  # hidden units of a block's MLP, as a multiple of the width


class Linear(nn.Linear):
    """nn.Linear on a batch of sequences; on a CPU as a convolution of one token at a time, the same but faster.

    For fp32, torch takes its matrix products from MKL and its convolutions from oneDNN, which reaches twice the rate on
    AMD's processors. A batch of sequences lies in memory as one of images with channels last, so nothing is copied.
    """

    def forward(self, x):
        """x (B, S, n) -> (B, S, m)."""
        if x.device.type != "cpu" or not torch.backends.mkldnn.is_available():
            return super().forward(x)
        x = x.transpose(1, 2).unsqueeze(2)  # (B, n, 1, S)
        x = F.conv2d(x, self.weight[..., None, None], self.bias)  # (B, m, 1, S)
        return x.squeeze(2).transpose(1, 2)  # (B, S, m)


class CodeEmbedding(nn.Module):
    """Tokens of t * d indices -> their t * d vectors of width e in a row, and a projection where w is another width."""

    def __init__(self, grid, n_codes, code_width, width, codebook, train_codebook):
        super().__init__()
        same = codebook is not None and codebook.shape == (n_codes, code_width)
        table = codebook.detach().clone().float() if same else torch.randn(n_codes, code_width)
        self.table = nn.Parameter(table, requires_grad=train_codebook)
        n_inputs = grid.token_size * code_width
        self.project = nn.Identity() if width == n_inputs else Linear(n_inputs, width)

    def inputs(self, codes):
        return codes.long()

    def forward(self, tokens):
        """tokens (B, V, t * d) int64 -> (B, V, w)."""
        return self.project(F.embedding(tokens, self.table).flatten(2))


# ---- Encoder and decoder (Section 2.3) -----------------------------------------------------


class Block(nn.Module):
    """A Transformer block as in ViT: LayerNorm before attention and MLP, GELU, no dropout, no bias on Q, K and V."""

    def __init__(self, width, heads, mlp_ratio):
        super().__init__()
        if width % heads:
            raise UserError(
                f"model width {width}: {heads} attention heads do not divide it; change the token size, "
                "the width of the codes or the number of heads"
            )
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key_value = Linear(width, width, bias=False), Linear(width, 2 * width, bias=False)
        self.out = Linear(width, width)
        self.mlp = nn.Sequential(
            Linear(width, mlp_ratio * width), nn.GELU(), Linear(mlp_ratio * width, width)
        )

    def forward(self, x, n_last):
        """x (B, S, w) -> the last `n_last` tokens (B, n_last, w), each of which has attended to all S."""
        x = x[:, -n_last:] + self.attend(self.norm_attention(x), n_last)
        return x + self.mlp(self.norm_mlp(x))

    def attend(self, x, n_last):
        q = self.query(x[:, -n_last:]).unflatten(2, (1, self.heads, -1))  # (B, n_last, 1, heads, w / heads)
        kv = self.key_value(x).unflatten(2, (2, self.heads, -1))  # (B, S, 2, heads, w / heads)
        q, k, v = (part.transpose(1, 2) for part in (*q.unbind(2), *kv.unbind(2)))
        attended = F.scaled_dot_product_attention(q, k, v)  # (B, heads, n_last, w / heads)
        return self.out(attended.transpose(1, 2).flatten(2))  # (B, n_last, w)


def vectors(std, *shape):
    """Trained vectors that start from N(0, std^2)."""
    return nn.Parameter(std * torch.randn(*shape))


class Encoder(nn.Module):
    """CLS and the visible tokens, with trained positions, through L blocks and a last LayerNorm.

    embed  CodeEmbedding or PowerEmbedding
    width  w
    """

    def __init__(self, embed, grid, width, sizes):
        super().__init__()
        self.embed, self.grid, self.width = embed, grid, width
        self.cls, self.positions = vectors(TOKEN_STD, width), vectors(POSITION_STD, grid.n_tokens, width)
        self.blocks = nn.ModuleList(Block(width, sizes.heads, sizes.mlp_ratio) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(width)

    def tokens(self, x):
        """x (B, T, D') as stored -> tokens (B, S, t * d) as `embed` reads them."""
        return patchify(self.embed.inputs(x), self.grid)

    def forward(self, tokens, visible_at=None):
        """tokens (B, S, t * d), of which those at visible_at (B, V) are read, or all -> (B, 1 + V, w), CLS first."""
        positions = self.positions
        if visible_at is not None:
            tokens, positions = take(tokens, visible_at), F.embedding(visible_at, self.positions)
        x = self.embed(tokens) + positions  # (B, V, w)
        x = torch.cat([self.cls.expand(len(x), 1, -1), x], 1)  # (B, 1 + V, w)
        for block in self.blocks:
            x = block(x, x.shape[1])
        return self.norm(x)

    def encode(self, x):
        """x (B, T, D'), nothing hidden -> (B, 1 + S, w)."""
        return self(self.tokens(x))


class Decoder(nn.Module):
    """What the encoder made of the visible tokens, and one mask vector for every hidden one, through L' blocks."""

    def __init__(self, grid, width, sizes):
        super().__init__()
        self.mask, self.positions = vectors(TOKEN_STD, width), vectors(POSITION_STD, 1 + grid.n_tokens, width)
        self.blocks = nn.ModuleList(
            Block(width, sizes.heads, sizes.mlp_ratio) for _ in range(sizes.decoder_depth)
        )

    def forward(self, encoded, visible_at, hidden_at):
        """encoded (B, 1 + V, w), visible_at (B, V), hidden_at (B, H) -> the hidden tokens (B, H, w).

        Nobody reads what the last block makes of the others, so it does not; they are its keys and values only.
        """
        n_hidden = hidden_at.shape[1]
        at = torch.cat([torch.zeros_like(visible_at[:, :1]), 1 + visible_at, 1 + hidden_at], 1)  # (B, 1 + S)
        x = torch.cat([encoded, self.mask.expand(len(encoded), n_hidden, -1)], 1)  # (B, 1 + S, w)
        x = x + F.embedding(at, self.positions)
        for block in self.blocks[:-1]:
            x = block(x, x.shape[1])
        return self.blocks[-1](x, n_hidden)


def initialise(module):
    """First weights as in MAE [10]: Glorot uniform, and no biases."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class VQMAE(nn.Module):
    """VQ-MAE-S: predicts the codes of hidden tokens from the visible ones (Figure 1).

    grid            Grid of the codes
    n_codes         K
    code_width      e
    sizes           Sizes; where its width is not t * d * e, one linear layer leads there and another one back
    codebook        (K, e) of the VQ-VAE, from which the embedding starts, or None; one of another width than e
                    cannot be used, and the embedding then starts from N(0, 1), as the VQ-VAE's own did
    train_codebook  whether the embedding is trained
    """

    def __init__(self, grid, n_codes, code_width, sizes, codebook, train_codebook):
        super().__init__()
        n_outputs = grid.token_size * code_width
        width = sizes.width or n_outputs
        embed = CodeEmbedding(grid, n_codes, code_width, width, codebook, train_codebook)
        self.encoder, self.decoder = Encoder(embed, grid, width, sizes), Decoder(grid, width, sizes)
        self.project = nn.Identity() if width == n_outputs else Linear(width, n_outputs)
        self.head = nn.Linear(code_width, n_codes)
        self.apply(initialise)

    def forward(self, codes, hidden):
        """Eq. 1 on codes (B, T, D'), with hidden (B, S) from `mask_tokens`.

        Returns {"loss": mean cross-entropy over the B * H * t * d hidden indices, "accuracy": share of them predicted}.
        """
        tokens = self.encoder.tokens(codes)  # (B, S, t * d)
        slices, hidden_at = self.predict(tokens, hidden)
        target = take(tokens, hidden_at).flatten()  # (B * H * t * d,)
        loss, right = LinearCrossEntropy.apply(slices, self.head.weight, self.head.bias, target)
        return {"loss": loss / len(target), "accuracy": right / len(target)}

    def predict(self, tokens, hidden):
        """The decoder's vector for every hidden index (B * H * t * d, e), and where the hidden tokens are (B, H)."""
        visible_at, hidden_at = places(hidden, tokens.device)
        decoded = self.decoder(self.encoder(tokens, visible_at), visible_at, hidden_at)  # (B, H, w)
        return self.project(decoded).reshape(-1, self.head.in_features), hidden_at

    @torch.no_grad()
    def reconstruct(self, codes, hidden):
        """codes (B, T, D') with those of hidden (B, S) tokens replaced by the most likely ones."""
        tokens = self.encoder.tokens(codes)
        slices, hidden_at = self.predict(tokens, hidden)
        best = self.head(slices).argmax(1).view(*hidden_at.shape, -1)  # (B, H, t * d)
        tokens = tokens.scatter(1, hidden_at[..., None].expand_as(best), best)
        return unpatchify(tokens, self.encoder.grid).to(codes.dtype)


class LinearCrossEntropy(torch.autograd.Function):
    """The sum of cross_entropy(linear(x), target) over many rows, without ever holding all of their logits.

    There are K = 256 logits for 8 inputs: writing them to memory, and reading them again for the gradient, takes far
    longer than computing them. The gradient is therefore made at once, a few rows at a time.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, target):
        """x (N, e), weight (K, e), bias (K,), target (N,) -> sum of the losses, number of rows predicted right."""
        x = x.to(weight.dtype)
        x_gradient, weight_gradient, bias_gradient = (
            torch.empty_like(x),
            torch.zeros_like(weight.T),
            torch.zeros_like(bias),
        )
        loss, right = x.new_zeros(()), target.new_zeros(())
        rows = CPU_ROWS if x.device.type == "cpu" else GPU_ROWS
        for x_part, wanted, gradient in zip(
            x.split(rows), target[:, None].split(rows), x_gradient.split(rows)
        ):
            logits = F.linear(x_part, weight, bias)  # (rows, K)
            found, best = logits.gather(1, wanted), logits.amax(1, keepdim=True)  # (rows, 1)
            right += (found == best).sum()
            flow = logits.softmax(1)
            # The best of K has 1 / K or more, so that its logarithm is safe where that of the target is not.
            loss -= (found - best + flow.amax(1, keepdim=True).log()).sum()
            # What flows back into the logits is their probabilities less the one-hot targets. The narrow side of each
            # product comes first: MKL takes a third of the time then.
            flow.scatter_add_(1, wanted, -torch.ones_like(found))
            gradient.copy_((weight.T @ flow.T).T)
            weight_gradient += x_part.T @ flow
            bias_gradient += flow.sum(0)
        gradients = x_gradient, weight_gradient.T, bias_gradient
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(right)
        return loss, right

    @staticmethod
    @once_differentiable
    def backward(ctx, scale, _):
        return *(scale * gradient for gradient in ctx.saved_tensors), None


# ---- Emotion from the encoder (Section 3.1.2) ----------------------------------------------


def sinusoidal(n_steps, width, device):
    """Position vectors (n_steps, width) of the vanilla Transformer [17]."""
    rate = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10000.0) / width))
    angle = torch.arange(n_steps, device=device)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)[:, :width]


class Query2Emo(nn.Module):
    """One trained query per class that attends to all tokens, CLS among them, after Query2Label [21].

    n_blocks  Transformer blocks (of the tokens, of the queries): (1, 1) in the paper, (1, 2) in the authors' code
    A block of queries has self-attention, attention to the tokens, and an MLP. A logit is the product of a class's
    vector with weights of that class alone, as in Query2Label.
    """

    def __init__(self, width, n_classes, n_blocks, heads, mlp_ratio):
        super().__init__()
        if width % heads:
            raise UserError(
                f"model width {width}: {heads} heads of Query2Emo do not divide it; change their number"
            )
        block = {
            "d_model": width,
            "nhead": heads,
            "dim_feedforward": mlp_ratio * width,
            "dropout": 0.0,
            "activation": "gelu",
            "batch_first": True,
            "norm_first": True,
        }
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(**block), n_blocks[0], nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.decoder = nn.TransformerDecoder(
            nn.TransformerDecoderLayer(**block), n_blocks[1], nn.LayerNorm(width)
        )
        self.queries, self.weight = vectors(1.0, n_classes, width), vectors(TOKEN_STD, n_classes, width)
        self.bias = nn.Parameter(torch.zeros(n_classes))

    def forward(self, x):
        """x (B, 1 + S, w) -> logits (B, C)."""
        x = self.encoder(x + sinusoidal(x.shape[1], x.shape[2], x.device))
        x = self.decoder(self.queries.expand(len(x), -1, -1), x)  # (B, C, w)
        return (x * self.weight).sum(2) + self.bias


class Standardise(nn.BatchNorm1d):
    """Batch normalisation that takes a batch of one sample too, with the mean and variance that it has kept so far."""

    def forward(self, x):
        """x (B, w) -> (B, w)."""
        if self.training and len(x) == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, eps=self.eps)
        return super().forward(x)


class EmotionClassifier(nn.Module):
    """A pretrained encoder, or a fresh one, with a head on all of its tokens; nothing is hidden.

    encoder         Encoder of a VQMAE or a SpecMAE
    head            "cls": a linear layer on CLS; "query2emo": Query2Emo with the three arguments below; "mean": a linear
                    layer on the mean of all tokens, whose values are first brought to mean 0 and standard deviation 1
                    by batch normalisation, as in the linear probing of MAE [10]
    n_classes       C
    freeze          the encoder is not trained
    query_blocks, query_heads, query_mlp_ratio   sizes of Query2Emo
    """

    def __init__(self, encoder, head, n_classes, freeze, query_blocks, query_heads, query_mlp_ratio):
        super().__init__()
        if head not in HEADS:
            raise UserError(f"head {head!r}: unknown; choose one of {', '.join(HEADS)}")
        self.encoder, self.freeze = encoder, freeze
        if freeze:
            encoder.requires_grad_(False)
        self.reads = head
        self.head = {
            "cls": lambda: nn.Linear(encoder.width, n_classes),
            "mean": lambda: nn.Sequential(
                Standardise(encoder.width, affine=False), nn.Linear(encoder.width, n_classes)
            ),
            "query2emo": lambda: Query2Emo(
                encoder.width, n_classes, query_blocks, query_heads, query_mlp_ratio
            ),
        }[head]()

    def train(self, mode=True):
        """A frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.freeze:
            self.encoder.eval()
        return self

    def forward(self, x):
        """x (B, T, D') codes, or powers for SpecMAE -> logits (B, C)."""
        encoded = self.encoder.encode(x)  # (B, 1 + S, w)
        return self.head(
            {"cls": encoded[:, 0], "mean": encoded[:, 1:].mean(1), "query2emo": encoded}[self.reads]
        )


def asymmetric_loss(logits, labels, gamma_pos, gamma_neg, smoothing):
    """The asymmetric loss of Ridnik et al. [22], adapted to a single label per sample.

    -sum_c y_c (1 - q_c)^gamma log p_c, where p = softmax(logits) and y is the smoothed one-hot label. For the label
    itself q_c = p_c and gamma = gamma_pos, for every other class q_c = 1 - p_c and gamma = gamma_neg. With gammas of 0
    this is cross-entropy with label smoothing, whose terms -log p of the other classes keep them from vanishing. With
    gamma_neg 4 these become -p^4 log p: they press down a class that is still probable, and leave small ones alone.

    logits     (B, C)
    labels     (B,) int64
    gamma_pos, gamma_neg   focus on the label and on the others; 0 = none
    smoothing  share of the label given to all C classes alike
    Returns the mean over the batch.
    """
    log_p = F.log_softmax(logits.float(), 1)  # (B, C)
    p, one_hot = log_p.exp(), F.one_hot(labels, logits.shape[1])
    focus = torch.where(one_hot.bool(), (1 - p) ** gamma_pos, p**gamma_neg)
    target = one_hot * (1 - smoothing) + smoothing / logits.shape[1]
    return -(target * focus * log_p).sum(1).mean()


# ---- SpecMAE (Section 3.2) -----------------------------------------------------------------


class PowerEmbedding(nn.Module):
    """Tokens of t * d powers -> width w, by one linear layer.

    log  read log10(power + POWER_FLOOR) instead of the power itself, as input and as target
    """

    def __init__(self, grid, width, log):
        super().__init__()
        self.log, self.project = log, Linear(grid.token_size, width)

    def inputs(self, power):
        return torch.log10(power + POWER_FLOOR) if self.log else power

    def forward(self, tokens):
        """tokens (B, V, t * d) -> (B, V, w)."""
        return self.project(tokens)


class SpecMAE(nn.Module):
    """The same masked autoencoder on patches of the power spectrogram: predicts the powers of hidden patches.

    grid   Grid of the spectrogram; in the authors' code (200, 513) in patches of (10, 27)
    sizes  Sizes; a width of 0 is t * d
    log    whether powers are read and predicted on a logarithmic scale; the authors do neither scale nor normalise them
    """

    def __init__(self, grid, sizes, log):
        super().__init__()
        width = sizes.width or grid.token_size
        self.encoder = Encoder(PowerEmbedding(grid, width, log), grid, width, sizes)
        self.decoder = Decoder(grid, width, sizes)
        self.head = Linear(width, grid.token_size)
        self.apply(initialise)

    def forward(self, power, hidden):
        """power (B, T, D), hidden (B, S) -> {"loss": mean squared error over the B * H * t * d hidden powers}."""
        tokens = self.encoder.tokens(power)  # (B, S, t * d)
        visible_at, hidden_at = places(hidden, tokens.device)
        decoded = self.decoder(self.encoder(tokens, visible_at), visible_at, hidden_at)  # (B, H, w)
        return {"loss": F.mse_loss(self.head(decoded).float(), take(tokens, hidden_at))}


# ---- All of them ---------------------------------------------------------------------------


def build(seed, network, *arguments):
    """network(*arguments), one of the classes above, with first weights that depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return network(*arguments)


def count_parameters(network):
    """Number of parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in network.parameters())
