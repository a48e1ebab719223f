"""One way of guiding, that of Compare or an entry's own: its pictures, drawn by entries and converged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

from ....samplers.contract import Denoiser
from ....schedulers.tuning.path import teacher
from ...host.boost import without_boost
from ...host.guiders import prompt_digest
from ...host.identity import conditioning_digest, parts_of
from ...host.schedules import shift_of
from ...host.streams import in_hosts_scale, in_models_scale, nested, packed
from ...host.walk import Told
from ...host.watched import Watch, watched
from ..asked import Asked
from ..running import HostDenoiser, check_reached, inside_sampling
from ..trajectories import batch_of
from .entries import Candidate
from .shelf import Picture, Shelf

OTHER_SEED = 0x5EED  # of a sampler's own noise, where it is told whether it draws any
SAME_PICTURE = 1e-2  # of the latents' mean square: two ends that differ by more are not one with rounding
TOGETHER = 2  # latents that are solved at a time: a cancel loses no more, and another host may solve the next
BEYOND_ROUNDING = 4.0  # times what the same seed gives a second time


@dataclass(frozen=True, eq=False)
class Side:
    """request: on what. shelf: where pictures are kept. steps: of the finer of the two converged runs.

    watch: around a denoiser whose calls are to be counted; tick: told of every guided prediction otherwise.
    keeps_boost: of an entry's own guider, which is run as it is.
    """

    request: Asked
    shelf: Shelf
    steps: int
    watch: Callable[[Denoiser], Denoiser]
    tick: Callable[[], None]
    keeps_boost: bool = False
    samplers: dict[int, str] = field(default_factory=dict)

    @cached_property
    def each(self) -> list[comfy.samplers.CFGGuider]:
        """A guider for each prompt."""
        guiders = self.request.each
        return guiders if self.keeps_boost else [without_boost(guider) for guider in guiders]

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Of the model and its guidance; whatever is unknown of it equals nothing."""
        wrappers = getattr(self.request.model, "wrappers", {}) if self.keeps_boost else {}
        boost = {"boost": Told(wrappers, parts_of).text} if wrappers else {}
        left_out = ("prompt", "prompts", "seed")
        asked = {name: value for name, value in self.request.asked.items() if name not in left_out}
        return asked | boost

    @cached_property
    def prompts(self) -> list[str]:
        return [prompt_digest(guider) for guider in self.each]

    def facts_of(self, image: int) -> dict[str, Any]:
        """Of one picture: the latent it begins with, its noise and its prompt."""
        (prompt,) = self.request.dealt([image])
        latent = self.latent_digests[self.at(image)]
        return self.facts | {"prompt": self.prompts[prompt], "seed": self.seed_of(image), "latent": latent}

    @cached_property
    def latent_digests(self) -> list[str]:
        return [conditioning_digest([latent]) for latent in self.request.latent]

    def at(self, image: int) -> int:
        """Which of the given latents."""
        return image % len(self.request.latent)

    def seed_of(self, image: int) -> int:
        return (self.request.seed + image) % 2**64

    def noise(self, image: int) -> Tensor:
        """What the host draws for that seed, (1, ...), packed where there are several streams."""
        return packed(comfy.sample.prepare_noise(self.given_latent(image), self.seed_of(image)))

    def given_latent(self, image: int) -> Any:
        """(1, ...), nested where there are several streams."""
        at = self.at(image)
        return nested(self.request.latent[at : at + 1], self.request.streams)

    # -----------------------------------------------------------------------------------------------------
    # Entries

    def key(self, candidate: Candidate, image: int, sampler_seed: int | None = None) -> str:
        facts = self.facts_of(image) | {"sigmas": candidate.sigmas, "sampler_seed": sampler_seed}
        return key_of(facts | {"sampler": self.told(candidate.sampler)})

    def told(self, sampler: Any) -> str:
        """A digest; remembered as long as the comparison, which holds the sampler."""
        if id(sampler) not in self.samplers:
            self.samplers[id(sampler)] = Told(sampler, parts_of).text
        return self.samplers[id(sampler)]

    def sort_of(self, candidate: Candidate) -> tuple[str, bool]:
        """What decides whether it draws noise: the sampler, and that a restart's sigmas rise."""
        rises = any(later > sigma for sigma, later in pairwise(candidate.sigmas))
        return self.told(candidate.sampler), rises

    def draw(self, candidate: Candidate, image: int, sampler_seed: int | None = None) -> Picture:
        """As SamplerCustomAdvanced would. sampler_seed: of what the sampler draws; the picture's where it is None."""
        request = self.request
        (prompt,) = request.dealt([image])
        watch = Watch(self.tick)
        guider = watched(self.each[prompt], watch)
        noise = nested(self.noise(image), request.streams)
        seed = self.seed_of(image)
        if sampler_seed is not None:  # for samplers that draw from torch's own generator, too
            seed = sampler_seed
            torch.manual_seed(seed)
        sigmas = torch.tensor(candidate.sigmas, dtype=torch.float64).float()
        given = noise, self.given_latent(image), candidate.sampler, sigmas
        with torch.no_grad():
            end = guider.sample(*given, callback=ignored, disable_pbar=True, seed=seed)
        return Picture(packed(end).detach().cpu()[0], watch.calls, watch.seconds)

    @property
    def other_seed(self) -> int:
        return OTHER_SEED + self.request.seed % 2**32

    def drawn_otherwise(self, candidate: Candidate) -> Picture:
        """From the same noise, by a sampler that would draw other noise of its own."""
        return self.draw(candidate, 0, self.other_seed)

    def draws_noise(self, candidate: Candidate, first: Callable[[], Picture]) -> bool:
        """Whether the end depends on more than where the picture begins: asked by drawing it once more.

        first: draws the picture of image 0.
        """
        other = self.shelf.once(self.key(candidate, 0, self.other_seed), lambda: self.drawn_otherwise(candidate))
        one = first()
        apart = mean_square(one.end - other.end)
        if not apart > 0:
            return False
        if apart > SAME_PICTURE * max(mean_square(one.end), 1e-6):
            return True
        again = self.draw(candidate, 0)
        return apart > BEYOND_ROUNDING * mean_square(one.end - again.end)

    def in_models_scale(self, ends: Tensor) -> Tensor:
        return in_models_scale(self.request.model.model, ends.clone(), self.request.streams)

    def in_hosts_scale(self, ends: Tensor) -> Tensor:
        return in_hosts_scale(self.request.model.model, ends.clone(), self.request.streams)

    # -----------------------------------------------------------------------------------------------------
    # The converged pictures

    def start_of(self, candidate: Candidate) -> float:
        """The sigma from which the converged picture is solved.

        Schedules that begin a little lower, over an empty latent, do so to save a step: they are after the same end.
        """
        highest = float(self.request.sampling.sigma_max)
        return min(candidate.sigmas[0], highest) if self.request.from_references else highest

    def reference_key(self, start: float, image: int) -> str:
        return key_of(self.facts_of(image) | {"start": start, "converged": self.steps})

    @property
    def calls_to_converge(self) -> int:
        """Of one latent: with all steps, and with half of them."""
        return self.steps + self.steps // 2

    def missing(self, start: float, images: int) -> list[int]:
        return [image for image in range(images) if self.reference_key(start, image) not in self.shelf]

    def converge(self, start: float, images: int) -> list[Picture]:
        """In the model's own scale. Raises ValueError where the model's answers lead nowhere."""
        keys = [self.reference_key(start, image) for image in range(images)]
        found = {key: picture for key in keys if (picture := self.shelf.get(key))}
        for part in self.parts(start, images):
            for image, picture in zip(part, self.solved(start, part), strict=True):
                found[keys[image]] = self.shelf.put(keys[image], picture)
        return [found[key] for key in keys]

    def parts(self, start: float, images: int) -> list[list[int]]:
        """Those that are missing, as they are solved together."""
        asked = self.missing(start, images)
        most = min(batch_of(self.request, len(asked)), TOGETHER) if asked else 1
        return [asked[first : first + most] for first in range(0, len(asked), most)]

    def solved(self, start: float, images: Sequence[int]) -> list[Picture]:
        ends = zip(*self.both_ends(start, images), strict=True)
        return [Picture(end.clone(), difference=mean_square(end.double() - other.double())) for end, other in ends]

    def both_ends(self, start: float, images: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The ends with all steps and with half of them, on the CPU."""
        request = self.request
        noise = torch.cat([self.noise(image) for image in images])
        latents = request.latents[[self.at(image) for image in images]]

        def work(denoise: HostDenoiser, x: Tensor) -> tuple[Tensor, Tensor]:
            whole = start >= float(request.sampling.sigma_max) * (1 - 1e-5)
            scaled = request.sampling.noise_scaling
            begun = scaled(torch.tensor([start]).to(x), noise.to(x), latents.to(x), whole)
            ask = self.watch(denoise.deal(denoise, request.dealt(images)))
            fine, coarse = (self.end_of(ask, denoise, begun, start, steps) for steps in (self.steps, self.steps // 2))
            return fine, coarse

        fine, coarse = inside_sampling(request.guidance(), noise, [start, 0.0], work, request.seed, request.streams)
        what = f"The reference of {self.steps} steps, at cfg {request.cfg:g},"
        check_reached(fine, what, "Lower the cfg, check the model's shift, or raise reference_steps.", request.streams)
        return fine, coarse

    def end_of(self, ask: Denoiser, denoise: HostDenoiser, begun: Tensor, start: float, steps: int) -> Tensor:
        law, sampling = self.request.law, self.request.sampling
        sigmas, solver = teacher(law, start, steps, shift_of(sampling, law))
        denoise.announce(sigmas)
        return solver(ask, begun.clone(), sigmas).float().cpu()


def ignored(*_: Any) -> None:
    """The host gives every sampler somebody to tell its steps to."""


def mean_square(x: Tensor) -> float:
    return float(x.double().square().mean())


def key_of(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
