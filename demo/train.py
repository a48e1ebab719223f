"""Train the bundled model: `python3 run.py python demo/train.py`.

Resumable: a checkpoint is written every few minutes, and the same command goes on from it. The learning rate
is constant and falls to zero over the last `--cooldown` share of `--steps`, so a run can be cut short by a
smaller --steps without a loss. CUDA where there is one, else the CPU with bfloat16 autocast.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path

import numpy as np
import torch
from data import Emoji, caption, download, pictures, select, vocabulary
from safetensors.torch import save_file
from support.host import start_host
from torch import Tensor, nn
from torch.nn import functional

start_host()
import comfy.ops  # noqa: E402
from fewstep.nodes.models import demo_network as net  # noqa: E402

HERE = Path(__file__).parent
MIXTURE_SHARE = 0.25  # the likelihood's weight beside the squared error: the trunk learns from both


class Trained(nn.Module):
    """What the file holds: the network and the words' vectors."""

    def __init__(self, vocabulary_size: int):
        super().__init__()
        self.network = net.DemoNetwork(torch.float32, operations=comfy.ops.disable_weight_init)
        self.words = nn.Embedding(vocabulary_size + 1, net.TEXT_WIDTH)
        initialise(self)

    def text(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, L), 0 = padding -> context (B, L, 96) and pooled (B, 96): the mean of the real words."""
        context = self.words(tokens)
        real = (tokens > 0).float()
        real[:, 0] += (tokens == 0).all(dim=1)  # the empty prompt is the padding's own vector
        return context, (context * real[..., None]).sum(1) / real.sum(1, keepdim=True)


def initialise(model: Trained) -> None:
    """The host's layers come without values. torch's defaults; residual branches and the head start at zero."""
    kinds: tuple = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)
    for layer in model.modules():
        for kind in kinds:
            if isinstance(layer, kind):
                kind.reset_parameters(layer)
    nn.init.normal_(model.words.weight, std=0.5)
    nn.init.zeros_(model.network.spread.get_submodule("2").weight)  # type: ignore[arg-type]
    for name, layer in model.named_modules():
        if name.endswith(("out_layers.3", "proj_out")):
            for value in layer.parameters():
                nn.init.zeros_(value)


def times(count: int, generator: torch.Generator) -> Tensor:
    """t in (0, 1): logit-normal where pictures are decided, a quarter uniform so that no level is forgotten."""
    centred = torch.sigmoid(0.2 + 1.1 * torch.randn(count, generator=generator))
    uniform = torch.rand(count, generator=generator)
    return torch.where(torch.rand(count, generator=generator) < 0.25, uniform, centred).clamp(1e-3, 1 - 1e-3)


def losses(heads: Tensor, logstd: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared error of the velocity head and negative log-likelihood of the mixture head.

    Differs: the likelihood of an item is scaled by its own s (beta-NLL, arXiv 2203.09168, beta = 1/2), which
    leaves the minimiser and keeps low noise levels from drowning the others.
    """
    squared = functional.mse_loss(heads[:, : net.COLORS].float(), target)
    mixture = net.split_mixture(heads, logstd)
    s = mixture["logstds"].exp().clamp_min(1e-3)
    residual = (target[:, None] - mixture["means"]) / s
    logprob = mixture["logweights"] - 0.5 * residual.square().sum(2, keepdim=True) - net.COLORS * s.log()
    likelihood = -logprob.logsumexp(dim=1).mean(dim=(1, 2, 3))
    return squared, (likelihood * s.detach().flatten()).mean()


def tokens(emoji: list[Emoji], vocab: dict[str, int], rng: np.random.Generator) -> Tensor:
    """Captions as (B, L) word numbers, in random order, a tenth of their words dropped."""
    rows = np.zeros((len(emoji), net.CONTEXT_WORDS), np.int64)
    for row, one in zip(rows, emoji, strict=True):
        known = [vocab[w] for w in caption(one, rng) if rng.random() > 0.05]
        kept = rng.permutation(known)[: net.CONTEXT_WORDS]
        row[: len(kept)] = kept
    return torch.from_numpy(rows)


def update_average(average: dict[str, Tensor], model: nn.Module, step: int) -> None:
    """Exponential moving average; its memory grows with the step up to a thousand steps."""
    decay = min(0.999, (step + 1) / (step + 10))
    values = [p.detach() for p in model.state_dict().values()]
    torch._foreach_lerp_(list(average.values()), values, 1 - decay)


def rate(step: int, steps: int, peak: float, cooldown: float) -> float:
    """Linear warm-up over 300 steps, constant, linear to zero over the last share."""
    return peak * min(1.0, (step + 1) / 300, max(0.0, (steps - step) / (cooldown * steps)))


def publish(average: dict[str, Tensor], vocab: list[str], path: Path) -> None:
    """The averaged weights as float16 safetensors; the words ride in the metadata."""
    tensors = {k: v.half().contiguous().cpu() for k, v in average.items()}
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={"format": "pt", "words": json.dumps(vocab)})
    temporary.replace(path)


class Run:
    """The state of a training run, all of which a checkpoint keeps."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        package = download(args.data)
        self.emoji = select(package)
        self.vocab = vocabulary(self.emoji)
        self.index = {word: 1 + i for i, word in enumerate(self.vocab)}
        mean = torch.tensor(net.PIXEL_MEAN)[:, None, None]
        self.x0 = ((torch.from_numpy(pictures(package, self.emoji)) - mean) * net.PIXEL_SCALE).to(self.device)
        torch.manual_seed(0)
        self.model = Trained(len(self.vocab)).to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=args.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.average = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.step = 0
        self.resume()

    @property
    def checkpoint(self) -> Path:
        return self.args.state / "checkpoint.pt"

    def resume(self) -> None:
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
            self.step, self.average = state["step"], state["average"]
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])

    def save(self) -> None:
        self.args.state.mkdir(parents=True, exist_ok=True)
        state = {"step": self.step, "average": self.average, "model": self.model.state_dict()}
        temporary = self.checkpoint.with_suffix(".tmp")
        torch.save(state | {"optimizer": self.optimizer.state_dict()}, temporary)
        temporary.replace(self.checkpoint)
        publish(self.average, self.vocab, self.args.weights)

    def batch(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x_t, t, tokens and the velocity; drawn from the step's own seed, so a resumed run is the same run."""
        rng = np.random.default_rng(self.step)
        generator = torch.Generator().manual_seed(self.step)
        chosen = rng.integers(len(self.emoji), size=self.args.batch)
        x0 = self.x0[torch.from_numpy(chosen).to(self.device)]
        noise = torch.randn(x0.shape, generator=generator).to(self.device)
        t = times(len(x0), generator).to(self.device)
        at = t[:, None, None, None]
        words = tokens([self.emoji[i] for i in chosen], self.index, rng).to(self.device)
        return ((1 - at) * x0 + at * noise), t, words, noise - x0

    def advance(self) -> tuple[float, float]:
        """One step of the optimizer; returns the two losses."""
        x, t, words, target = self.batch()
        for group in self.optimizer.param_groups:
            group["lr"] = rate(self.step, self.args.steps, self.args.rate, self.args.cooldown)
        with torch.autocast(self.device.type, torch.bfloat16):
            context, pooled = self.model.text(words)
            heads = self.model.network.pixels(x.contiguous(memory_format=torch.channels_last), t, context, pooled)
            logstd = self.model.network.logstd(t, pooled)
        squared, likelihood = losses(heads, logstd, target)
        (squared + MIXTURE_SHARE * likelihood).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad()
        update_average(self.average, self.model, self.step)
        self.step += 1
        return squared.item(), likelihood.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=HERE / ".state", help="where the picture archive is or goes")
    parser.add_argument("--state", type=Path, default=HERE / ".state", help="folder of the checkpoint")
    parser.add_argument("--weights", type=Path, default=HERE / "emoji.safetensors")
    parser.add_argument("--log", type=Path, default=HERE / "training.jsonl")
    parser.add_argument("--steps", type=int, default=14000)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--cooldown", type=float, default=0.3)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run, sums, began, saved = Run(args), np.zeros(2), time.time(), time.time()
    parameters = sum(p.numel() for p in run.model.parameters())
    logging.info("%d pictures, %d words, %.2f M parameters", len(run.emoji), len(run.vocab), parameters / 1e6)
    while run.step < args.steps:
        sums += run.advance()
        if run.step % 100 == 0:
            squared, likelihood = sums / 100
            seconds, began, sums = time.time() - began, time.time(), np.zeros(2)
            line = {
                "step": run.step,
                "pictures": run.step * args.batch,
                "squared_error": round(squared, 5),
                "likelihood": round(likelihood, 5),
                "pictures_per_second": round(100 * args.batch / seconds, 1),
            }
            with args.log.open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
            logging.info("%s", line)
        if time.time() - saved > 240 or run.step == args.steps:
            run.save()
            saved = time.time()


if __name__ == "__main__":
    main()
