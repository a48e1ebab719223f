"""What more prompts bring: one search of equal price on 1, 2 and 8 prompts, tried on prompts that none of them saw.

    python3 run.py python benchmarks/many_prompts.py [--steps 6] [--solver dpmpp_2m]

The bundled flow model at cfg 5. Errors are geometric means of the squared distance to the converged latent.
"""

from __future__ import annotations

import argparse
import logging
import warnings

import torch
from support.host import start_host
from torch import Tensor

logging.basicConfig(level=logging.ERROR)
start_host()
import comfy.samplers  # noqa: E402
import problems  # noqa: E402
from fewstep.nodes.measuring.estimate import geometric_mean  # noqa: E402
from fewstep.nodes.measuring.interrupted import Parts  # noqa: E402
from fewstep.nodes.measuring.search import Request, search_schedule  # noqa: E402
from fewstep.nodes.models.demo import load_clip, load_model  # noqa: E402

CFG = 5.0
SEEN = ["red apple", "blue heart", "cat face", "rabbit", "sunflower", "penguin", "hot dog", "grinning face"]
UNSEEN = ["violin", "rocket", "green leaf", "dog face", "pizza", "octopus", "crown", "umbrella",
          "banana", "tiger", "snowman", "guitar", "crying face", "mushroom", "owl", "balloon"]  # fmt: skip


def coded(text: str) -> list:
    clip = load_clip()
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def searched(steps: int, solver: str, count: int, trajectories: int) -> tuple[float, ...]:
    """The sigmas found on the first `count` prompts: as many calls whatever their number."""
    first, *further = (coded(text) for text in SEEN[:count])
    negative = coded("")
    prompts = tuple((prompt, negative) for prompt in further)
    latent, model = torch.zeros(1, 3, 64, 64), load_model("flow")
    asked = (model, first, negative, CFG, latent, 0, steps, solver, 60, trajectories)
    request = Request(*asked, polish=2, prompts=prompts)
    return search_schedule(request, Parts(), None).sigmas[steps]


def error(problem: problems.Problem, solver: str, sigmas: Tensor) -> float:
    drawn, _ = problems.run(problem, comfy.samplers.sampler_object(solver), sigmas)
    return geometric_mean((drawn - problem.end).square().flatten(1).mean(1))


def problem_of(words: list[str], seeds: int) -> problems.Problem:
    problems.WORDS[:] = words
    return problems.demo_problem("flow", CFG, seeds, steps=60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--solver", default="dpmpp_2m", choices=["euler", "dpmpp_2m"])
    parser.add_argument("--trajectories", type=int, default=8)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    own, others = problem_of(SEEN[:1], 16), problem_of(UNSEEN, 32)
    print(f"{args.solver}, {args.steps} steps | on {SEEN[0]!r} | on {len(UNSEEN)} unseen prompts")
    for count in (1, 2, 8):
        sigmas = torch.tensor(searched(args.steps, args.solver, count, args.trajectories), dtype=torch.float32)
        found = [error(problem, args.solver, sigmas) for problem in (own, others)]
        print(f"searched on {count} | {found[0]:.1e} | {found[1]:.1e}", flush=True)


if __name__ == "__main__":
    main()
