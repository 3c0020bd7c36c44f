"""What tests of networks share: generators, noise, and weights of which none is what a fresh network has."""

import torch


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
