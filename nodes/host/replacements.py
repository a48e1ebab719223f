"""Which of our nodes stand in for nodes of other packs. The host offers the exchange where it knows how (0.33).

It does so only where the other pack is not there. In a prompt it takes every old input by name; in a saved workflow
widgets have no names, and `widgets` says what stood where.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from comfy_api.latest import ComfyAPI, io

# Of ssitu's ComfyUI_restart_sampling: names, inputs in their order, outputs. `chunked_mode` is left behind: a falling
# piece always runs in one go here, which is what it is by default.
AFTER_SEED = "control_after_generate"  # the browser's own widget
SEEDED = ("seed", AFTER_SEED, "steps", "cfg", "sampler_name", "scheduler", "denoise", "segments")
SPAN = ("start_at_step", "end_at_step", "return_with_leftover_noise")
NOISY = ("add_noise", "noise_seed", AFTER_SEED, "steps", "cfg")
WRITTEN = ("segments", "restart_scheduler", "chunked_mode")
SOCKETS = ("model", "positive", "negative", "latent_image")
LEFT_BEHIND = (AFTER_SEED, "chunked_mode")


@dataclass(frozen=True)
class Replacement:
    """old: another pack's node, with its widgets in their order and its sockets, all of which `new` calls the same.

    values: what `new` is given besides. outputs: how many the old one has, which are the first of the new one.
    """

    old: str
    new: str
    widgets: tuple[str, ...]
    sockets: tuple[str, ...] = SOCKETS
    values: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1

    @property
    def kept(self) -> list[str]:
        return [name for name in (*self.sockets, *self.widgets) if name not in LEFT_BEHIND]


REPLACEMENTS = (
    Replacement("KRestartSamplerSimple", "FewStepRestartKSampler", SEEDED, values={"restart_scheduler": "same"}),
    Replacement("KRestartSampler", "FewStepRestartKSampler", (*SEEDED[:-1], *WRITTEN)),
    Replacement(
        "KRestartSamplerAdv",
        "FewStepRestartKSamplerAdvanced",
        (*NOISY, "sampler_name", "scheduler", *SPAN, *WRITTEN),
    ),
    Replacement(
        "KRestartSamplerCustom",
        "FewStepRestartKSamplerAdvanced",
        (*NOISY, "scheduler", *SPAN, *WRITTEN),
        (*SOCKETS, "sampler"),
        {"sampler_name": "euler"},
        outputs=2,
    ),
)


async def register_replacements() -> None:
    """Tells the host; one that cannot exchange nodes is not asked."""
    replacing, api = getattr(io, "NodeReplace", None), getattr(ComfyAPI(), "node_replacement", None)
    if replacing is None or api is None:
        return
    for one in REPLACEMENTS:
        inputs = [{"new_id": name, "old_id": name} for name in one.kept]
        values = [{"new_id": name, "set_value": value} for name, value in one.values.items()]
        outputs = [{"old_idx": number, "new_idx": number} for number in range(one.outputs)]
        await api.register(replacing(one.new, one.old, list(one.widgets), [*inputs, *values], outputs))
