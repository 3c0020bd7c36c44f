"""What tests of networks share: generators, noise, and weights of which none is what a fresh network has."""

import torch

# Sizes of a wav2vec 2.0 or WavLM small enough for tests; a frame every 20 ms, as theirs.
TINY_SPEECH = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    conv_dim=[16] * 3,
    conv_kernel=[10, 8, 8],
    conv_stride=[5, 8, 8],
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed))


def uneven(module, seed=1, scale=0.3):
    """Random values for every parameter: fresh biases are zero and norms one, which would hide mistakes."""
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return module
