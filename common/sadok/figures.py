"""Figures 2 and 3 of Sadok et al. 2023, and a test clip as VQ-VAE and VQ-MAE-S reconstruct it."""

from pathlib import Path

import numpy as np
import torch
from torchaudio.functional import griffinlim

from common import metrics, panels, plots
from common.files import make_folder
from common.media import write_wav
from common.sadok.vqvae import HOP, N_FFT, RATE_HZ, cached_clip, power_spectrogram

POOLED = "accuracy pooled"


def ratio_figure(report, labelled, cells):
    """Figure 2: accuracy by masking ratio, patches and frames; labelled {label: Row}, cells of its table."""
    found, series = {cell.row: cell for cell in cells if cell.column == POOLED}, {}
    for label, row in labelled.items():
        name = "frame masking" if row.network.strategy == "frame" else "patch masking (tf)"
        point = 100 * row.network.ratio, found[label].mean, found[label].low, found[label].high
        series.setdefault(name, []).append(point)
    series = {name: tuple(zip(*points)) for name, points in series.items()}
    chance = 100 * metrics.chance(report.first.y, len(report.first.classes))[0]
    figure = panels.curve_panels({"": series}, "hidden tokens (%)", "accuracy, pooled (%)", chance)
    caption = (
        "Figure 2. Impact of the masking ratio; bars: 95 % interval, speakers resampled. The paper finds the "
        "best of patch masking near 80 %, frame masking nearly flat."
    )
    save(report, figure, "sadok_fig_2_ratio", caption)


def token_size_figure(report, labelled, cells):
    """Figure 3: accuracy by token size; sizes that were not tried stay white."""
    found = {cell.row: cell.mean for cell in cells if cell.column == POOLED}
    values = {(row.network.t, row.network.d): found[label] for label, row in labelled.items()}
    rows, columns = (sorted({size[i] for size in values}) for i in (0, 1))
    table = np.array([[values.get((t, d), np.nan) for d in columns] for t in rows])
    texts = {at: f"{value:.1f}" for at, value in np.ndenumerate(table) if np.isfinite(value)}
    names = "t, frames per token", "d, codes of a frame per token", "accuracy, pooled (%)"
    limits, maps = (np.nanmin(table), np.nanmax(table)), {"": (table, texts, rows, columns)}
    caption = "Figure 3. Impact of the token size (t, d). The paper's best is (10, 4)."
    figure = panels.heat_maps(maps, names, limits, (5.6, 4.2), 1)
    save(report, figure, "sadok_fig_3_token_size", caption)


DRAW = {"fig2": ratio_figure, "fig3": token_size_figure}


def save(report, figure, stem, caption):
    corpus, seeds = report.corpus, ", ".join(map(str, report.seeds))
    caption = f"{caption} {corpus.name}, n = {len(corpus.turns):,}, seeds {seeds}."
    plots.save(figure, report.run.folder, stem, caption)


@torch.no_grad()
def reconstruct(vqvae, model, masked, path):
    """{title: power (T, 513)} of a clip: original, masked, and as VQ-VAE and VQ-MAE-S reconstruct it.

    model   VQMAE; masked: numbers of the visible (V,) and of the hidden tokens (H,)
    """
    network, device = model.network, vqvae.mean.device
    power = power_spectrogram(cached_clip(path))
    power = power[torch.arange(network.n_frames) % len(power)]
    codes = vqvae.encode(power.to(device)).clone()  # (T, 64)
    visible_at, hidden_at = (torch.from_numpy(at)[None].to(device) for at in masked)
    found = model.to(device).eval().reconstruct(codes[None], visible_at, hidden_at)[0]
    hidden = torch.zeros(network.n_tokens, dtype=torch.bool).index_fill(0, hidden_at[0].cpu(), True)
    hidden = hidden.view(network.grid).repeat_interleave(network.t, 0).repeat_interleave(network.d, 1)
    # 513 bins stand above 64 codes: 8 bins each, the last bin with the last code
    bins = hidden.repeat_interleave(8, 1)[:, torch.arange(power.shape[1]).clamp(max=511)]
    right = 100 * float((found == codes).cpu()[hidden].float().mean())
    return {
        "original": power,
        "masked": power.masked_fill(bins, float("nan")),
        "VQ-VAE": vqvae.decode(codes).cpu(),
        f"VQ-MAE-S, {right:.0f} % of hidden codes found": vqvae.decode(found).cpu(),
    }


def reconstruction_figure(report, vqvae, model, masked, data_root):
    """Beyond the paper: the panels of `reconstruct` for a test clip, as a figure and as wav files."""
    turn, network = report.corpus.folds[0].test[0], model.network
    folder = make_folder(Path(data_root) / "listen" / report.corpus.name)
    shown = reconstruct(vqvae, model, masked, report.corpus.manifest.path(turn.audio))
    for title, power in shown.items():
        torch.manual_seed(0)  # of the phases that Griffin-Lim starts from
        window = torch.hann_window(N_FFT)
        samples = griffinlim(power.T.nan_to_num(0.0), window, N_FFT, HOP, N_FFT, 2.0, 60, 0.99, None, True)
        file = folder / f"{turn.utterance_id}_{title.split(',')[0].replace(' ', '_')}.wav"
        write_wav(file, samples.numpy() / max(1.0, float(samples.abs().max())), RATE_HZ)
    print(f"  listen    {folder}/{turn.utterance_id}_*.wav (phase by Griffin-Lim)")
    masking = f"Masking {network.strategy}, {100 * network.ratio:g} % of the tokens hidden (white)"
    caption = f"A test clip ({turn.utterance_id}), not in the paper. {masking}; what is found is decoded."
    save(report, spectrograms(shown), "sadok_fig_reconstruction", caption)


def spectrograms(powers):
    """Spectrograms of {title: power (T, 513)} below each other on one scale; NaN stays white."""
    fig, grid = plots.plt.subplots(len(powers), 1, figsize=(6.4, 1.9 * len(powers)), sharex=True)
    shown = {title: 10 * torch.log10(power + 1e-10).T.numpy() for title, power in powers.items()}
    top = max(np.nanmax(decibels) for decibels in shown.values())
    look = {"origin": "lower", "aspect": "auto", "cmap": "magma", "vmin": top - 80, "vmax": top}
    for axes, (title, decibels) in zip(grid, shown.items()):
        extent = 0, decibels.shape[1] * HOP / RATE_HZ, 0, RATE_HZ / 2000
        image = axes.imshow(decibels, extent=extent, **look)
        axes.set(title=title, ylabel="frequency (kHz)")
        axes.grid(False)
    grid[-1].set_xlabel("time (s)")
    fig.colorbar(image, ax=grid, label="power (dB)", shrink=0.6)
    return fig
