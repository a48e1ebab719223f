"""A network as the host's own are: called through the wrappers that nodes hang around the model (EasyCache)."""

from __future__ import annotations

from typing import Any

from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from torch import Tensor, nn


class HostNetwork(nn.Module):
    """Base of the networks of the pack. A subclass has `predict`, with the arguments of `forward`."""

    def predict(
        self, x: Tensor, timesteps: Tensor, context, y, control, transformer_options: dict[str, Any], **host
    ) -> Tensor:
        """The prediction at the host's timesteps."""
        raise NotImplementedError

    def forward(
        self, x: Tensor, timesteps: Tensor, context=None, y=None, control=None, transformer_options=None, **host
    ) -> Tensor:
        """What the host calls. A network of the host's inside of this one is not wrapped once more."""
        options = {} if transformer_options is None else transformer_options

        def unwrapped(x, timesteps, context, y, control, options, **host) -> Tensor:
            others = {k: v for k, v in options.get("wrappers", {}).items() if k != WrappersMP.DIFFUSION_MODEL}
            return self.predict(x, timesteps, context, y, control, options | {"wrappers": others}, **host)

        around = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
        executor = WrapperExecutor.new_class_executor(unwrapped, self, around)
        own = x.clone() if around else x  # EasyCache writes into it, and the host computes with it in float32
        return executor.execute(own, timesteps, context, y, control, options, **host)
