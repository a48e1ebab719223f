"""Several prompts in one sampling of the host: each call of the model takes one of them."""

from __future__ import annotations

from collections.abc import Sequence

import comfy.samplers
import torch
from torch import Tensor

from ...samplers.contract import Denoiser
from .guiders import fresh

Prompt = tuple[list, list]  # positive and negative CONDITIONING


def under(guider: comfy.samplers.CFGGuider, prompt: Prompt) -> comfy.samplers.CFGGuider:
    """An ordinary guider like this one, with another prompt."""
    made = fresh(guider)
    made.inner_set_conds(dict(zip(("positive", "negative"), prompt, strict=True)))
    return made


class ManyPrompts(comfy.samplers.CFGGuider):
    """Ordinary guiders of one model and cfg that differ in their prompts, as one. number: the prompt of the next call.

    LoRAs and ControlNets of all prompts are loaded with the model. Each is prepared by itself, so that areas, masks and
    time ranges of one do not reach another.
    """

    number = 0
    conds: dict[str, list]

    def __init__(self, guiders: Sequence[comfy.samplers.CFGGuider]):
        super().__init__(guiders[0].model_patcher)
        self.model_options, self.cfg = guiders[0].model_options, guiders[0].cfg
        self.names = [{name: f"{name} {number}".removesuffix(" 0") for name in guider.original_conds}
                      for number, guider in enumerate(guiders)]  # fmt: skip
        for guider, names in zip(guiders, self.names, strict=True):
            self.original_conds |= {names[name]: prompt for name, prompt in guider.original_conds.items()}

    def inner_sample(
        self, noise, latent_image, device, sampler, sigmas, denoise_mask, callback, disable_pbar, seed,
        latent_shapes=None,
    ):  # fmt: skip
        """As the host's, for all prompts. The first stands where the host looks for it."""
        together: dict[str, list] = self.conds
        each = [{name: together[key] for name, key in names.items()} for names in self.names]
        prepare = (device, latent_image, denoise_mask, seed)
        self.further = [
            comfy.samplers.process_conds(self.inner_model, noise, conds, *prepare, latent_shapes=latent_shapes)
            for conds in each[1:]
        ]
        self.conds = each[0]
        try:
            return super().inner_sample(
                noise, latent_image, device, sampler, sigmas, denoise_mask, callback, disable_pbar, seed,
                latent_shapes=latent_shapes,
            )  # fmt: skip
        finally:
            self.conds, self.further = together, []  # which the host unloads

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        first = self.conds
        self.conds = self.further[self.number - 1] if self.number else first
        try:
            return super().predict_noise(x, timestep, model_options or {}, seed)
        finally:
            self.conds = first


def together(guiders: Sequence[comfy.samplers.CFGGuider]) -> comfy.samplers.CFGGuider:
    """One guider for all of them; the first itself where it is alone."""
    return ManyPrompts(guiders) if len(guiders) > 1 else guiders[0]


def dealt(denoise: Denoiser, guider: comfy.samplers.CFGGuider, prompts: Sequence[int]) -> Denoiser:
    """The model asked about each item of a batch under its own prompt: `prompts`, by number. One call a prompt."""
    if not isinstance(guider, ManyPrompts):
        return denoise
    groups = {number: [i for i, own in enumerate(prompts) if own == number] for number in sorted(set(prompts))}
    back = torch.tensor([i for items in groups.values() for i in items]).argsort()

    def by_prompt(x: Tensor, sigma: float) -> Tensor:
        answers = []
        for guider.number, items in groups.items():
            answers.append(denoise(x[items], sigma))
        return torch.cat(answers)[back.to(x.device)]

    return by_prompt
