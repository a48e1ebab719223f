"""Other nodes that guide: what the model answered before them, and those that guide once more after us."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

PRE_CFG, POST_CFG = "sampler_pre_cfg_function", "sampler_post_cfg_function"


class ModelsAnswer:
    """The host's pre-cfg function that stands first: keeps what the model answers, before others change it."""

    prompts: Sequence[Any] = ()
    answers: Sequence[Tensor] = ()

    def __call__(self, args: dict[str, Any]) -> list[Tensor]:
        self.prompts, self.answers = args["conds"], args["conds_out"]
        return args["conds_out"]

    def under(self, prompt: Any) -> Tensor | None:
        """The prediction under one of the guider's prompts; None where it was not asked for."""
        pairs = zip(self.prompts, self.answers, strict=False)
        return next((answer for known, answer in pairs if known is prompt), None)


@dataclass(frozen=True, eq=False)
class Following:
    """Another's post-cfg function after ours. One that reads the cfg guides by it (Mahiro, CFG-Zero*): bound it too."""

    function: Callable[[dict[str, Any]], Tensor]
    bound: Callable[[dict[str, Any]], Tensor]

    def __call__(self, args: dict[str, Any]) -> Tensor:
        watched = WatchedArguments(args)
        result = self.function(watched)
        return self.bound(args | {"denoised": result}) if watched.cfg_was_read else result


class WatchedArguments(dict):
    """The arguments of a post-cfg function, which note whether the cfg was read; who reads all, reads it."""

    cfg_was_read = False

    def __getitem__(self, name: str) -> Any:
        self.cfg_was_read |= name == "cond_scale"
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default

    def keys(self):
        self.cfg_was_read = True
        return super().keys()

    def __iter__(self):
        return iter(self.keys())

    def items(self):
        return [(name, self[name]) for name in self]

    def values(self):
        return [self[name] for name in self]

    def copy(self) -> dict[str, Any]:
        return dict(self.items())
