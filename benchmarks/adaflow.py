"""AdaFlow's variance-adaptive step (arXiv 2402.04292), with the exact variance.

From sigma the step of a sample is min(max(eta / s, 1 / N_max), sigma), s^2 the variance of the velocity given x, the
mean over the latent's numbers. The paper's network predicts s; here it is that of the standard mixture, at no call.
Euler's steps all, flow, no guidance; errors are mean squares to the converged end.
"""

from __future__ import annotations

import json

import torch
from fewstep.samplers.noise_law import FLOW
from fewstep.schedulers.meters import Fine, Run, followed, run_through
from fewstep.schedulers.optimal_steps.students import Euler
from fewstep.schedulers.recipe import recipe
from support.mixture import GuidedMixture, Mixture, picture_like
from torch import Tensor

SAMPLES, MOST, ETAS, STEPS, FINEST = 64, 50, (0.13, 0.095, 0.065), (5, 6, 8, 10, 12, 16), 400


def spread_of_velocity(mixture: Mixture, x: Tensor, sigma: Tensor) -> Tensor:
    """s of every sample, (B,): the deviation of x0 given x, over sigma. Within the components, and between them."""
    ratio = (sigma / (1 - sigma).clamp(min=1e-9)).reshape(-1, 1, 1, 1)
    y, means, power = (
        mixture.to_frequency(x) / (1 - sigma).clamp(min=1e-9).reshape(-1, 1, 1, 1),
        mixture.means,
        mixture.spectrum,
    )
    gain = 1 / (power + ratio**2)
    logits = torch.einsum("bchw,kchw->bk", gain * y, means) - 0.5 * torch.einsum("bchw,kchw->bk", gain, means**2)
    weights = logits.softmax(1)
    kept = means[None] * (1 - power * gain)[:, None]  # what of a component's mean is in E[x0 | y, component]
    middle = torch.einsum("bk,bkchw->bchw", weights, kept)
    between = torch.einsum("bk,bkchw->bchw", weights, (kept - middle[:, None]).square())
    return (between + power * ratio**2 * gain).flatten(1).mean(1).sqrt() / sigma


def adaptive(mixture: Mixture, x: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """The ends, and the calls of every sample, (B,)."""
    sigma, calls = torch.ones(len(x), dtype=x.dtype), torch.zeros(len(x))
    while (sigma > 0).any():
        now = sigma > 0
        at, own = sigma[now], x[now]
        step = torch.minimum((eta / spread_of_velocity(mixture, own, at)).clamp(min=1 / MOST), at)
        safe = at.clamp(max=1 - 1e-9)
        answer = mixture.denoise(own / (1 - safe).reshape(-1, 1, 1, 1), safe / (1 - safe))
        left = ((at - step) / at).reshape(-1, 1, 1, 1)
        x[now], calls[now] = torch.lerp(answer, own, left), calls[now] + 1
        sigma[now] = torch.where(at - step < 1e-9, 0.0, at - step)
    return x, calls


def short(number: Tensor) -> float:
    return float(f"{number:.2g}")


def main() -> None:
    mixture = picture_like()
    denoise = GuidedMixture(mixture, FLOW)
    noise = torch.randn((SAMPLES, 4, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    every = tuple(n / FINEST for n in range(FINEST, -1, -1))
    converged: Run = followed(denoise, noise, FLOW, Fine(every, ()), torch.device("cpu"))
    end = converged.states[-1]

    def told(name: str, ends: Tensor, calls: Tensor) -> None:
        row = {"steps": name, "calls": float(calls.mean()), "fewest": int(calls.min()), "most": int(calls.max())}
        errors = (ends - end).square().flatten(1).mean(1)
        print(json.dumps(row | {"mean": short(errors.mean()), "geom.": short(errors.log().mean().exp())}), flush=True)

    for eta in ETAS:
        told(f"adaptive, eta {eta:g}", *adaptive(mixture, noise.clone(), eta))
    for steps in STEPS:
        even = [n / steps for n in range(steps, -1, -1)]
        shifted = [3 * s / (1 + 2 * s) for s in even]
        for name, sigmas in (
            ("even", even),
            ("shift 3", shifted),
            ("Boost's", recipe(steps, True).sigmas(FLOW, 1.0, 0.0, steps)),
        ):
            told(name, run_through(Euler(), denoise, noise, sigmas), torch.full((SAMPLES,), float(steps)))


if __name__ == "__main__":
    main()
