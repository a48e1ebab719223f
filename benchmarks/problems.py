"""What is solved: a MODEL of the host with its conditioning, one start and the converged end of that start."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import comfy.sample
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from fewstep.nodes.models.demo import load_clip, load_model
from fewstep.samplers.noise_law import FLOW, VARIANCE_EXPLODING
from support.host_mixture import label_conditioning, mixture_model
from support.mixture import GuidedMixture, converged, picture_like
from torch import Tensor

sys.path.append(str(Path(__file__).with_name("second")))
WORDS = ["red apple", "blue heart", "cat face", "rabbit", "sunflower", "penguin", "hot dog", "grinning face"]
# Of the second network: a class and words each.
ICONS = [
    ("Foods", "apple one red"),
    ("Weather", "cloudy night blue"),
    ("Animals", "cat orange"),
    ("Sports", "basketball green"),
    ("Music", "acoustic purple"),
    ("Travel", "airplane night"),
    ("Foods", "birthday cake pink"),
    ("Build", "castle brown"),
]


@dataclass(frozen=True)
class Problem:
    """Latents are (seeds, C, H, W) in the model's own scale; `end` is the converged solution from `noise`."""

    name: str
    model: ModelPatcher
    positive: list
    negative: list
    cfg: float
    noise: Tensor
    end: Tensor
    end_error: float  # how well `end` itself is known: mean squared change when it was solved more coarsely

    @property
    def sampling(self):
        return self.model.get_model_object("model_sampling")


def run(problem: Problem, sampler, sigmas: Tensor, seed: int = 0) -> tuple[Tensor, int]:
    """The latents that the host's guider and SAMPLER reach, and the guided model calls they took."""
    calls = 0

    def count(args: dict) -> Tensor:
        nonlocal calls
        calls += 1
        return args["denoised"]

    model = problem.model.clone()
    model.set_model_sampler_post_cfg_function(count)
    latent = torch.zeros_like(problem.noise)
    conditioning = (problem.positive, problem.negative)
    drawn = comfy.sample.sample_custom(
        model, problem.noise, problem.cfg, sampler, sigmas, *conditioning, latent, disable_pbar=True, seed=seed
    )
    return problem.model.model.process_latent_in(drawn), calls


def mixture_problem(kind: str, cfg: float, seeds: int) -> Problem:
    """The exact mixture, solved in float64 to nine digits. flow has SD3's shift of 3."""
    mixture = picture_like()
    patcher = mixture_model(mixture, kind, shift=3.0 if kind == "flow" else 1.0)
    sampling = patcher.model.model_sampling
    labels = [i % 8 for i in range(seeds)]
    noise = torch.randn((seeds, 4, 16, 16), generator=torch.Generator().manual_seed(0))
    start = sampling.noise_scaling(sampling.sigma_max, noise.double(), torch.zeros(1), max_denoise=True)
    denoise = GuidedMixture(mixture, FLOW if kind == "flow" else VARIANCE_EXPLODING, torch.tensor(labels), cfg)
    end, coarse = (converged(denoise, start, float(sampling.sigma_max), tol) for tol in (1e-8, 1e-6))
    error = float((end - coarse).square().mean())
    conditioning = (label_conditioning(labels), label_conditioning([-1] * seeds))
    return Problem(f"mixture {kind} cfg {cfg:g}", patcher, *conditioning, cfg, noise, end.float(), error)


def demo_problem(variant: str, cfg: float, seeds: int, steps: int = 200) -> Problem:
    """The bundled model. Its end is the host's Heun of many steps, because no closed form exists."""
    return solved_by_heun(demo_start(variant, cfg, [WORDS[i % len(WORDS)] for i in range(seeds)], seed=0), steps)


def coded(text: str) -> list:
    """CONDITIONING of the bundled model."""
    clip = load_clip()
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def demo_start(variant: str, cfg: float, words: list[str], seed: int) -> Problem:
    """The bundled model and one start a prompt, not solved yet."""
    each = [coded(text)[0] for text in words]
    positive = [[torch.cat([c for c, _ in each]), {"pooled_output": torch.cat([e["pooled_output"] for _, e in each])}]]
    noise = torch.randn((len(words), 3, 64, 64), generator=torch.Generator().manual_seed(seed))
    return Problem(f"demo {variant} cfg {cfg:g}", load_model(variant), positive, coded(""), cfg, noise, noise, 0.0)


def second_problem(variant: str, cfg: float, seeds: int, steps: int = 200) -> Problem:
    """The second network (benchmarks/second), told a class and words. Raises FileNotFoundError without its weights."""
    return solved_by_heun(second_start(variant, cfg, [ICONS[i % len(ICONS)] for i in range(seeds)], seed=0), steps)


def second_coded(prompts: list[tuple[str, str]]) -> list:
    """CONDITIONING of the second network: a class and words a batch item, either of them "" for none."""
    import icon_model

    return icon_model.conditioning(prompts)


def second_start(variant: str, cfg: float, prompts: list[tuple[str, str]], seed: int) -> Problem:
    """The second network and one start a prompt, not solved yet. prompts: a class and words each."""
    import icon_model

    noise = torch.randn((len(prompts), 4, 16, 16), generator=torch.Generator().manual_seed(seed))
    given = (second_coded(prompts), second_coded([("", "")]))
    return Problem(f"second {variant} cfg {cfg:g}", icon_model.load_model(variant), *given, cfg, noise, noise, 0.0)


def solved_by_heun(start: Problem, steps: int) -> Problem:
    end, coarse = (converge_by_heun(start, n) for n in (steps, steps // 2))
    return replace(start, end=end, end_error=float((end - coarse).square().mean()))


def converge_by_heun(problem: Problem, steps: int) -> Tensor:
    scheduler = "simple" if problem.name.split()[1] == "flow" else "karras"
    sigmas = comfy.samplers.calculate_sigmas(problem.sampling, scheduler, steps)
    return run(problem, comfy.samplers.sampler_object("heun"), sigmas)[0]
