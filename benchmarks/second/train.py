"""Train the second network: `python3 run.py python benchmarks/second/train.py --minutes 60`, or `python3` alone.

Needs torch, numpy, safetensors and Pillow, no ComfyUI and no network. The autoencoder learns for the first share of
the time, the transformer on its latents for the rest; the learning rate of each falls to zero at the end of its own
part, so a run ends inside --minutes. Resumable: a checkpoint is written every minute, and the same command goes on
from it; the minutes are those of all its runs together. CUDA where there is one, else the CPU; bfloat16 where it is
fast.
"""

from __future__ import annotations

import time

BEGAN = time.monotonic()

import argparse  # noqa: E402
import json  # noqa: E402
import math  # noqa: E402
from pathlib import Path  # noqa: E402

import icons  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from icon_network import CONTEXT_WORDS, LATENT_CHANNELS, WIDTH, Autoencoder, IconTransformer  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

HERE = Path(__file__).parent
KL = 1e-3  # of the autoencoder's loss, a mean over the latent's values as the picture's errors are over its own
COOLDOWN = {"autoencoder": 0.4, "transformer": 0.3}


class Trained(nn.Module):
    """What the file holds of the transformer's side: the network, and the vectors of words and classes."""

    def __init__(self, words: int, classes: int):
        super().__init__()
        self.network = IconTransformer()
        self.words = nn.Embedding(words + 1, WIDTH)
        self.classes = nn.Embedding(classes + 1, WIDTH)
        nn.init.normal_(self.words.weight, std=0.5)
        nn.init.normal_(self.classes.weight, std=0.02)
        for layer in (self.network.modulation, self.network.last, self.network.outof):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, t: Tensor, words: Tensor, classes: Tensor) -> Tensor:
        return self.network.velocity(x, t, self.words(words), self.classes(classes))


# ---------------------------------------------------------------------------------------------------------
# Data on the device


class Pictures:
    """All pictures and their words, on the device. A picture's number is icon * palettes + palette."""

    def __init__(self, found: icons.Icons, device: torch.device):
        self.device, self.names = device, found.names
        self.shares = torch.from_numpy(found.shares).to(device)
        self.palettes = torch.from_numpy(icons.palettes()).to(device)
        number = {word: 1 + i for i, word in enumerate(found.vocabulary)}
        rows = np.zeros((len(found), CONTEXT_WORDS - 1), np.int64)
        for row, name in zip(rows, found.names, strict=True):
            row[: len(name.split())] = [number[word] for word in name.split()]
        self.name_words = torch.from_numpy(rows).to(device)
        self.colour_words = torch.tensor([number[word] for word in icons.PALETTES], device=device)
        self.labels = 1 + torch.from_numpy(found.categories.astype(np.int64)).to(device)

    def __len__(self) -> int:
        return len(self.shares) * len(self.palettes)

    def drawn(self, chosen: Tensor) -> Tensor:
        """Pictures (B, 3, 64, 64) in [-1, 1]."""
        shares = self.shares[chosen // len(self.palettes)].float() / 255
        whole = torch.cat([shares, (1 - shares.sum(1, keepdim=True)).clamp_min(0)], dim=1)
        colours = self.palettes[chosen % len(self.palettes)]
        return torch.einsum("bkhw,bkc->bchw", whole, colours).clamp(-1, 1)

    def told(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """The whole caption: words (B, 6), the colour last, and classes (B,)."""
        icon, palette = chosen // len(self.palettes), chosen % len(self.palettes)
        return torch.cat([self.name_words[icon], self.colour_words[palette][:, None]], dim=1), self.labels[icon]

    def partly_told(self, chosen: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Captions of training: a tenth without words, some with colour or name alone, some without the class."""
        words, labels = self.told(chosen)
        draw = torch.rand((len(chosen), 3), generator=generator, device=self.device)
        empty, colour_alone, name_alone = draw[:, 0] < 0.1, draw[:, 0] < 0.15, draw[:, 0] > 0.85
        kept = torch.rand(words.shape, generator=generator, device=self.device) > 0.03
        kept[:, :-1] &= ~colour_alone[:, None]
        kept[:, -1] &= ~(empty | name_alone)
        labelled = draw[:, 1] > torch.where(empty, 0.7, 0.15)
        return words * kept, labels * labelled


# ---------------------------------------------------------------------------------------------------------
# Losses and rates


def times(count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """t in (0, 1): logit-normal where pictures are decided, a quarter uniform so that no level is forgotten."""
    centred = torch.sigmoid(1.1 * torch.randn(count, generator=generator, device=device))
    uniform = torch.rand(count, generator=generator, device=device)
    choice = torch.rand(count, generator=generator, device=device)
    return torch.where(choice < 0.25, uniform, centred).clamp(1e-3, 1 - 1e-3)


def autoencoder_loss(model: Autoencoder, pictures: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What is minimised, and the mean squared error alone."""
    mean, logvar = model.posterior(pictures)
    noise = torch.randn(mean.shape, generator=generator, device=mean.device)
    off = model.decoder(mean + (0.5 * logvar).exp() * noise).float() - pictures
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    squared = off.square().mean()
    return off.abs().mean() + squared + KL * divergence, squared


def rate(step: int, done: float, peak: float, cooldown: float) -> float:
    """Linear warm-up over 200 steps, constant, linear to zero over the last share of the time."""
    return peak * min(1.0, (step + 1) / 200, max(0.0, (1 - done) / cooldown))


def update_average(average: dict[str, Tensor], model: nn.Module, step: int) -> None:
    """Exponential moving average; its memory grows with the step up to a thousand steps."""
    decay = min(0.999, (step + 1) / (step + 10))
    torch._foreach_lerp_(list(average.values()), [p.detach() for p in model.state_dict().values()], 1 - decay)


# ---------------------------------------------------------------------------------------------------------
# The run


class Run:
    """The state of a training run, all of which a checkpoint keeps."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.device = torch.device(args.device)
        found = icons.load(args.data)
        self.vocabulary = found.vocabulary
        if args.icons:
            found = icons.Icons(found.shares[: args.icons], found.names[: args.icons], found.categories[: args.icons])
            found.__dict__["vocabulary"] = self.vocabulary
        self.pictures = Pictures(found, self.device)
        torch.manual_seed(0)
        self.autoencoder = Autoencoder().to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.transformer = Trained(len(self.vocabulary), len(icons.CATEGORIES)).to(self.device)
        self.models: dict[str, nn.Module] = {"autoencoder": self.autoencoder, "transformer": self.transformer}
        self.averages = {k: {n: v.clone() for n, v in m.state_dict().items()} for k, m in self.models.items()}
        self.optimizers = {
            name: torch.optim.AdamW(model.parameters(), lr=args.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
            for name, model in self.models.items()
        }
        self.batch = args.batch or (512 if self.device.type == "cuda" else 64)
        self.steps = {"autoencoder": 0, "transformer": 0}
        self.spent = 0.0  # seconds of the runs before this one
        self.latents: Tensor | None = None
        self.resume()

    @property
    def seconds(self) -> float:
        return self.spent + time.monotonic() - BEGAN

    @property
    def checkpoint(self) -> Path:
        return self.args.state / "checkpoint.pt"

    def resume(self) -> None:
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        self.steps, self.spent, self.averages = state["steps"], state["spent"], state["averages"]
        for name, model in self.models.items():
            model.load_state_dict(state["models"][name])
            self.optimizers[name].load_state_dict(state["optimizers"][name])

    def save(self) -> None:
        self.args.state.mkdir(parents=True, exist_ok=True)
        state = {
            "steps": self.steps,
            "spent": self.seconds,
            "averages": self.averages,
            "models": {name: model.state_dict() for name, model in self.models.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
        }
        temporary = self.checkpoint.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(self.checkpoint)

    def autocast(self) -> torch.autocast:
        """bfloat16, but on processors that are slow in it, or cannot do it."""
        fit = self.device.type != "cpu" or torch.backends.cpu.get_cpu_capability() == "AVX512"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=fit)

    def generator(self, name: str) -> torch.Generator:
        """Each step has a seed of its own, so a resumed run is the same run."""
        return torch.Generator(self.device).manual_seed(2 * self.steps[name] + (name == "transformer"))

    def chosen(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(len(self.pictures), (count,), generator=generator, device=self.device)

    def autoencoder_step(self) -> Tensor:
        generator = self.generator("autoencoder")
        pictures = self.pictures.drawn(self.chosen(max(1, self.batch // 2), generator))
        with self.autocast():
            loss, squared = autoencoder_loss(
                self.autoencoder, pictures.contiguous(memory_format=torch.channels_last), generator
            )
        loss.backward()
        return squared.detach()

    def transformer_step(self) -> Tensor:
        assert self.latents is not None
        generator = self.generator("transformer")
        chosen = self.chosen(self.batch, generator)
        x0 = self.latents[chosen].float()
        noise = torch.randn(x0.shape, generator=generator, device=self.device)
        t = times(len(x0), generator, self.device)
        at = t[:, None, None, None]
        words, labels = self.pictures.partly_told(chosen, generator)
        with self.autocast():
            velocity = self.transformer((1 - at) * x0 + at * noise, t, words, labels)
        loss = functional.mse_loss(velocity.float(), noise - x0)
        loss.backward()
        return loss.detach()

    def advance(self, name: str, done: float) -> Tensor:
        """One step of one of the two; done: the share of its time that is over. The loss stays on the device."""
        for group in self.optimizers[name].param_groups:
            group["lr"] = rate(self.steps[name], done, self.args.rate, COOLDOWN[name])
        loss = self.autoencoder_step() if name == "autoencoder" else self.transformer_step()
        nn.utils.clip_grad_norm_(self.models[name].parameters(), 1.0)
        self.optimizers[name].step()
        self.optimizers[name].zero_grad()
        update_average(self.averages[name], self.models[name], self.steps[name])
        self.steps[name] += 1
        return loss

    def train(self, name: str, begin: float, end: float) -> None:
        """Steps until `end`, in seconds of all runs; `begin` is where this part's clock starts."""
        total = torch.zeros((), device=self.device)
        began, saved, counted = time.monotonic(), time.monotonic(), 0
        while self.seconds < end:
            total += self.advance(name, (self.seconds - begin) / (end - begin))
            counted += 1
            if counted == self.args.log_every:
                loss, seconds = total.item() / counted, time.monotonic() - began
                self.log(part=name, step=self.steps[name], loss=round(loss, 5), seconds=round(self.seconds, 1),
                         steps_per_second=round(counted / seconds, 2))  # fmt: skip
                total.zero_()
                began, counted = time.monotonic(), 0
            if time.monotonic() - saved > self.args.save_every:
                self.save()
                saved = time.monotonic()

    def log(self, **line) -> None:
        print(json.dumps(line), flush=True)
        with (self.args.out / "training.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")

    def averaged(self, name: str) -> None:
        """Put the averaged weights into the model: its training is over."""
        self.models[name].load_state_dict(self.averages[name])
        self.models[name].eval()

    @torch.no_grad()
    def encode_all(self) -> None:
        """The latents of all pictures, and into the autoencoder their mean and deviation by channel."""
        model, everything = self.autoencoder, torch.arange(len(self.pictures), device=self.device)
        model.mean.zero_()
        model.std.fill_(1)
        latents = torch.cat([self.encoded(part) for part in everything.split(self.batch)])
        model.mean.copy_(latents.mean((0, 2, 3))[:, None, None])
        model.std.copy_(latents.std((0, 2, 3))[:, None, None])
        self.averages["autoencoder"] = {k: v.clone() for k, v in model.state_dict().items()}
        self.latents = (latents - model.mean) / model.std
        some = everything[:: max(1, len(everything) // 500)]
        with self.autocast():
            back = torch.cat([model.decode(part) for part in self.latents[some].split(self.batch)])
        error = (back.clamp(-1, 1) - self.pictures.drawn(some)).square().mean().item()
        self.log(part="autoencoder", psnr=round(10 * math.log10(4 / error), 2), seconds=round(self.seconds, 1))

    def encoded(self, chosen: Tensor) -> Tensor:
        with self.autocast():
            drawn = self.pictures.drawn(chosen).contiguous(memory_format=torch.channels_last)
            return self.autoencoder.encode(drawn)

    @torch.no_grad()
    def sample(self, chosen: Tensor, steps: int, cfg: float = 3.0) -> Tensor:
        """Pictures by Heun's method, with the captions of the chosen."""
        words, labels = self.pictures.told(chosen)
        generator = torch.Generator(self.device).manual_seed(7)
        x = torch.randn((len(chosen), LATENT_CHANNELS, 16, 16), generator=generator, device=self.device)

        def velocity(x: Tensor, t: float) -> Tensor:
            at = torch.full((2 * len(x),), t, device=self.device)
            both = torch.cat([words, torch.zeros_like(words)]), torch.cat([labels, torch.zeros_like(labels)])
            with self.autocast():
                told, untold = self.transformer(torch.cat([x, x]), at, *both).float().chunk(2)
            return untold + cfg * (told - untold)

        for i in range(steps):
            t, u = 1 - i / steps, 1 - (i + 1) / steps
            first = velocity(x, t)
            end = x + (u - t) * first
            x = end if u <= 0 else x + (u - t) * (first + velocity(end, u)) / 2
        with self.autocast():
            return self.autoencoder.decode(x).clamp(-1, 1)

    def publish(self) -> None:
        """The averaged weights as float16 safetensors; the words ride in the metadata."""
        parts = {f"autoencoder.{k}": v for k, v in self.averages["autoencoder"].items()}
        tensors = {k: v.half().contiguous().cpu() for k, v in (parts | self.averages["transformer"]).items()}
        temporary = self.args.out / "icons.tmp"
        save_file(tensors, temporary, metadata={"format": "pt", "words": json.dumps(self.vocabulary)})
        temporary.replace(self.args.out / "icons.safetensors")

    def picture(self, count: int, steps: int) -> None:
        """samples.png: pictures of the data in odd rows, drawings of their captions below."""
        chosen = torch.arange(count, device=self.device) * 9973 % len(self.pictures)
        rows = (
            torch.stack([self.pictures.drawn(chosen), self.sample(chosen, steps)])
            .unflatten(1, (-1, 16))
            .transpose(0, 1)
        )
        sheet = rows.permute(0, 1, 4, 2, 5, 3).reshape(-1, 16 * 64, 3)
        values = (sheet * 127.5 + 127.5).round().byte().cpu().numpy()
        Image.fromarray(values).save(self.args.out / "samples.png", optimize=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="train.py", description=__doc__)
    parser.add_argument("--data", type=Path, default=icons.ICONS, help="the file that icons.py makes")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of weights, training.jsonl and samples.png")
    parser.add_argument("--state", type=Path, default=HERE / ".state", help="folder of the checkpoint")
    parser.add_argument("--minutes", type=float, default=60, help="of all runs together")
    parser.add_argument("--share", type=float, default=0.25, help="of the time, for the autoencoder")
    parser.add_argument("--batch", type=int, help="512 on CUDA, 64 on the CPU; the autoencoder takes half")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--icons", type=int, help="only so many, to try the command out")
    parser.add_argument("--save-every", type=float, default=60, help="seconds between checkpoints")
    parser.add_argument("--log-every", type=int, default=100, help="steps a line")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    run = Run(args)
    end = 60 * args.minutes * 0.97 - 5  # what is left is for the latents of the end, the sheet and the files
    middle = args.share * end
    counts = {name: sum(p.numel() for p in model.parameters()) for name, model in run.models.items()}
    run.log(device=str(run.device), pictures=len(run.pictures), words=len(run.vocabulary), parameters=counts)
    run.train("autoencoder", 0, middle)
    run.averaged("autoencoder")
    run.encode_all()
    run.train("transformer", middle, end)
    run.averaged("transformer")
    run.save()
    run.publish()
    run.picture(*((64, 20) if run.device.type == "cuda" else (16, 8)))
    run.log(finished=True, steps=run.steps, seconds=round(run.seconds, 1))


if __name__ == "__main__":
    main()
