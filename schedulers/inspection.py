"""A schedule looked at: its steps in numbers, and what is unusual about them in words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from ..samplers.noise_law import NoiseLaw
from ..samplers.sigmas import is_repeat
from .restart.plan import plural

FINEST = 0.05  # noise-to-signal: below it only grain is left to decide
LEAP = 3.0  # times the median step, in the logarithm of the ratio
HIGHER, LOWER = 1.001, 0.999  # of the model's range, before it is said
SHOWN = 60  # steps, in numbers


@dataclass(frozen=True)
class Looked:
    """sigmas: as a node made them, any numbers. law: of the model, where one is known. span: its lowest and highest."""

    sigmas: tuple[float, ...]
    law: NoiseLaw | None = None
    span: tuple[float, float] | None = None

    @property
    def is_sound(self) -> bool:
        return all(math.isfinite(sigma) and sigma >= 0 for sigma in self.sigmas)

    def ratio(self, sigma: float) -> float:
        """Noise-to-signal; sigma itself where no model tells."""
        return self.law.ratio(sigma) if self.law else sigma

    @property
    def jumps(self) -> list[int]:
        """Numbers of the sigmas, from 0, that the next one lies above; none where all rise, as for unsampling."""
        rising = [n for n, (s, t) in enumerate(pairwise(self.sigmas)) if t > s and not is_repeat(t, s)]
        return rising if len(rising) < len(self.sigmas) - 1 else []

    @property
    def calls(self) -> list[int]:
        """Model calls that were made when each sigma is reached, by a sampler of one call a step: jumps cost none."""
        jumps, made = set(self.jumps), [0]
        for number in range(len(self.sigmas) - 1):
            made.append(made[-1] + (number not in jumps))
        return made

    def words(self) -> str:
        """A line of the whole, then what is unusual."""
        if len(self.sigmas) < 2:
            return f"{len(self.sigmas)} sigmas: a schedule has two or more. Look at the node that made them."
        counted = plural(self.calls[-1], "call")
        head = f"{counted} from sigma {told(self.sigmas[0])} to {told(self.sigmas[-1])}"
        return "\n".join([head, *self.remarks()])

    def numbers(self) -> Iterator[str]:
        """A line for every sigma: calls so far, sigma, and what it is on this model."""
        if len(self.sigmas) < 2:
            return
        known = self.law is not None and self.is_sound
        yield "calls  sigma" + ("      noise/signal  log-SNR" if known else "")
        for calls, sigma in list(zip(self.calls, self.sigmas, strict=True))[:SHOWN]:
            ratio, line = self.ratio(sigma) if known else math.nan, f"{calls:5}  {told(sigma):9}"
            yield (f"{line}  {told(ratio):12}  {told(log_snr(ratio))}" if known else line).rstrip()
        if len(self.sigmas) > SHOWN:
            yield f"and {len(self.sigmas) - SHOWN} more"

    # ---------------------------------------------------------------------------------------------------------
    # What is unusual

    def remarks(self) -> list[str]:
        """Sentences; none for an ordinary schedule."""
        if len(self.sigmas) < 2:
            return []
        if not self.is_sound:
            return list(self.of_nonsense())
        parts = (self.of_ends(), self.of_jumps(), self.of_repeats(), self.of_leaps(), self.of_grain())
        return [sentence for part in parts for sentence in part]

    def of_nonsense(self) -> Iterator[str]:
        number, sigma = next((n, s) for n, s in enumerate(self.sigmas, 1) if not (math.isfinite(s) and s >= 0))
        yield f"Number {number} is {sigma:g}: no sampler can begin or end there. Look at the node that made it."

    def of_ends(self) -> Iterator[str]:
        first, last = self.sigmas[0], self.sigmas[-1]
        if self.span:
            lowest, highest = self.span
            if max(self.sigmas) > highest * HIGHER:
                yield f"It goes up to {told(max(self.sigmas))}; the model knows no noise above {told(highest)}."
            elif first < highest * LOWER and last < first:
                yield (
                    f"It begins at {told(first)}, below the model's {told(highest)}: right for a picture that is drawn "
                    "anew in part, too little for an empty latent."
                )
            if any(0 < sigma < lowest * LOWER for sigma in self.sigmas):
                yield f"It goes below {told(lowest)}, the least noise that the model knows."
        if 0 < last < first:
            yield f"It ends at {told(last)}, not at 0: noise is left for another sampler."

    def of_jumps(self) -> Iterator[str]:
        jumps = self.jumps
        if all(s < t for s, t in pairwise(self.sigmas)):
            yield "All steps rise: it adds noise, as for unsampling."
        if jumps:
            times = "once" if len(jumps) == 1 else f"{len(jumps)} times"
            yield f"It goes back up {times}: for Restart Sampler, other samplers take the way up for a step."

    def of_repeats(self) -> Iterator[str]:
        for number, (s, t) in enumerate(pairwise(self.sigmas), 1):
            if is_repeat(s, t):
                yield f"Step {number} goes nowhere: it begins and ends at {told(s)}. Its call is lost."

    def of_leaps(self) -> Iterator[str]:
        """A step that is much longer than usual and than both of its neighbours, the ends left out."""
        lengths = {
            number: abs(math.log(self.ratio(s) / self.ratio(t)))
            for number, (s, t) in enumerate(pairwise(self.sigmas), 1)
            if 0 < t < s and math.isfinite(self.ratio(s))
        }
        usual = median(lengths.values()) if len(lengths) > 3 else math.inf
        for number, length in lengths.items():
            beside = max(lengths.get(number - 1, 0.0), lengths.get(number + 1, 0.0))
            if length > LEAP * usual and length > 2 * beside and number - 1 in lengths:
                s, t = self.sigmas[number - 1 : number + 1]
                yield f"Step {number} is long: from {told(s)} to {told(t)}, {length / usual:.1f} times the usual step."

    def of_grain(self) -> Iterator[str]:
        fine = [s for s, t in pairwise(self.sigmas) if t < s and self.ratio(s) < FINEST]
        if len(fine) == 1:
            yield f"The last call is spent between {told(fine[0])} and {told(self.sigmas[-1])}: on grain alone."
        elif fine:
            yield f"The last {len(fine)} calls are spent below {told(fine[0])}: on grain alone."


def told(number: float) -> str:
    return f"{number + 0.0:.4g}".replace("inf", "infinite")


def log_snr(ratio: float) -> float:
    """ln(signal^2 / noise^2)."""
    if ratio > 0 and math.isfinite(ratio):
        return 0.0 - 2 * math.log(ratio)
    return math.nan if math.isnan(ratio) else math.inf if ratio == 0 else -math.inf
