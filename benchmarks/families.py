"""The host's families of networks with random weights, at full size and tiny: what architectures.py builds.

The sizes are those of the published checkpoints, as numbers; the classes are the host's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import comfy.supported_models
import torch
from comfy.model_management import get_torch_device
from comfy.model_patcher import ModelPatcher
from fewstep.nodes.host.noise_law import noise_law
from fewstep.samplers.noise_law import NoiseLaw
from torch import Tensor, nn


@dataclass(frozen=True)
class Family:
    """kind: of comfy.supported_models. config: of its class, and `tiny`, what the short form has instead.

    latent: (B, C, *S), and `small`, the short form's. text: tokens and width. also: what stands beside the text, a
    shape to be drawn, a number, or a function of the text's shape. dtype: what the weights are distributed in.
    """

    kind: str
    config: Mapping[str, Any]
    latent: tuple[int, ...]
    text: tuple[int, int]
    cfg: float
    tiny: Mapping[str, Any]
    small: tuple[int, ...] = (1, 16, 8, 8)
    also: Mapping[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.bfloat16

    @property
    def there(self) -> bool:
        """Whether this ComfyUI has the family."""
        return hasattr(comfy.supported_models, self.kind)

    def model(self, tiny: bool) -> ModelPatcher:
        """A MODEL with random weights on the device, where that is the CPU in float32."""
        device, sizes = get_torch_device(), {**self.config, **(self.tiny if tiny else {})}
        config = getattr(comfy.supported_models, self.kind)(sizes)
        config.unet_config |= sizes  # the host puts its own defaults over some
        config.set_inference_dtype(torch.float32 if device.type == "cpu" else self.dtype, None)
        model = config.get_model(stand_in_weights(self.kind), "", device=device)
        draw_weights(model.to(device))
        made = ModelPatcher(model.eval(), load_device=device, offload_device=torch.device("cpu"))
        made.set_model_unet_function_wrapper(partial(around_a_gaussian, noise_law(model.model_sampling)))
        return made

    def conditioning(self, seed: int, tiny: bool) -> list:
        """A CONDITIONING of random numbers."""
        generator = torch.Generator().manual_seed(seed)
        tokens, width = self.text
        text = torch.randn(1, 8 if tiny else tokens, width, generator=generator)
        beside = dict(self.also)
        for name, value in self.also.items():
            if isinstance(value, tuple):
                beside[name] = torch.randn(value, generator=generator)
            elif callable(value):
                beside[name] = value(text.shape[:2])
        return [[text, beside]]


def around_a_gaussian(law: NoiseLaw, ask: Callable, args: dict[str, Any]) -> Tensor:
    """What the host puts in place of a model call: random weights alone would draw noise of any size.

    The posterior mean where all latents are of a unit Gaussian, and on top of it what the network says, held below 0.3.
    """
    x, sigmas = args["input"], args["timestep"]
    sigma = sigmas.reshape(-1, *[1] * (x.ndim - 1))
    alpha = law.alpha(sigma)
    return alpha / (alpha * alpha + sigma * sigma) * x + 0.3 * ask(x, sigmas, **args["c"]).tanh()


def stand_in_weights(kind: str) -> dict[str, Tensor]:
    """What the host reads out of a checkpoint before it builds the network: two small embedders of Stable Audio."""
    if kind != "StableAudio":
        return {}
    generator = torch.Generator().manual_seed(0)
    shapes = {"weights": (128,), "1.weight": (768, 257), "1.bias": (768,)}
    return {
        f"conditioner.conditioners.seconds_{end}.embedder.embedding.{'0.' if name == 'weights' else ''}{name}": (
            torch.randn(shape, generator=generator)
        )
        for end in ("start", "total")
        for name, shape in shapes.items()
    }


@torch.no_grad()
def draw_weights(model: nn.Module) -> None:
    """Of variance 0.36 / inputs, norms of 1 and biases of 0, so that numbers keep their size through the layers."""
    generator = torch.Generator(get_torch_device()).manual_seed(0)
    for name, weight in model.named_parameters():
        weight.requires_grad_(False)
        if weight.ndim > 1:
            weight.normal_(0, 0.6 / weight[0].numel() ** 0.5, generator=generator)
        else:
            weight.fill_(0.0 if name.endswith("bias") else 1.0)


def unet(**config) -> dict[str, Any]:
    """What the host's UNets of Stable Diffusion have in common."""
    common = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "legacy": False}
    switches = {"use_checkpoint": False, "use_spatial_transformer": True}
    return {**common, **switches, "use_temporal_attention": False, "use_temporal_resblock": False, **config}


SD15 = unet(
    adm_in_channels=None,
    num_res_blocks=[2, 2, 2, 2],
    transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
    channel_mult=[1, 2, 4, 4],
    transformer_depth_middle=1,
    use_linear_in_transformer=False,
    context_dim=768,
    transformer_depth_output=[1] * 9 + [0] * 3,
)
SDXL = unet(
    num_classes="sequential",
    adm_in_channels=2816,
    num_res_blocks=[2, 2, 2],
    transformer_depth=[0, 0, 2, 2, 10, 10],
    channel_mult=[1, 2, 4],
    transformer_depth_middle=10,
    use_linear_in_transformer=True,
    context_dim=2048,
    transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10],
)
SD3: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "depth": 24,
    "input_size": None,
    "adm_in_channels": 2048,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 1536}},
    "num_patches": 192 * 192,
    "pos_embed_max_size": 192,
    "pos_embed_scaling_factor": None,
    "x_block_self_attn_layers": [],
}
FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "depth": 19,
    "depth_single_blocks": 38,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "qkv_bias": True,
    "guidance_embed": True,
}
FLUX2 = FLUX | {
    "image_model": "flux2",
    "in_channels": 128,
    "out_channels": 128,
    "patch_size": 1,
    "vec_in_dim": None,
    "context_in_dim": 15360,
    "hidden_size": 6144,
    "mlp_ratio": 3.0,
    "num_heads": 48,
    "depth": 8,
    "depth_single_blocks": 48,
    "axes_dim": [32, 32, 32, 32],
    "theta": 2000,
    "qkv_bias": False,
    "ops_bias": False,
    "global_modulation": True,
    "mlp_silu_act": True,
}
CHROMA = {name: value for name, value in FLUX.items() if name not in ("vec_in_dim", "guidance_embed")} | {
    "image_model": "chroma",
    "in_channels": 64,
    "out_channels": 64,
    "in_dim": 64,
    "out_dim": 3072,
    "hidden_dim": 5120,
    "n_layers": 5,
}
LUMINA = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": 2304,
    "cap_feat_dim": 2304,
    "n_layers": 26,
    "qk_norm": True,
    "n_heads": 24,
    "n_kv_heads": 8,
    "axes_dims": [32, 32, 32],
    "axes_lens": [300, 512, 512],
    "rope_theta": 10000.0,
    "ffn_dim_multiplier": 4.0,
}
ZIMAGE = LUMINA | {
    "dim": 3840,
    "cap_feat_dim": 2560,
    "n_layers": 30,
    "n_heads": 30,
    "n_kv_heads": 30,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0,
    "ffn_dim_multiplier": 8 / 3,
    "z_image_modulation": True,
    "time_scale": 1000.0,
}
WAN = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "dim": 1536,
    "in_dim": 16,
    "out_dim": 16,
    "num_heads": 12,
    "ffn_dim": 8960,
    "num_layers": 30,
    "patch_size": (1, 2, 2),
    "freq_dim": 256,
    "window_size": (-1, -1),
    "qk_norm": True,
    "cross_attn_norm": True,
    "eps": 1e-6,
}
WAN_I2V = WAN | {"model_type": "i2v", "dim": 5120, "in_dim": 36, "num_heads": 40, "ffn_dim": 13824, "num_layers": 40}
HUNYUAN = {
    "image_model": "hunyuan_video",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": [1, 2, 2],
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "depth": 20,
    "depth_single_blocks": 40,
    "axes_dim": [16, 56, 56],
    "theta": 256,
    "qkv_bias": True,
    "guidance_embed": True,
    "meanflow": False,
    "byt5": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
}
LTXV = {"image_model": "ltxv", "num_layers": 28, "attention_head_dim": 64, "cross_attention_dim": 2048}
AURA = {"cond_seq_dim": 2048, "max_seq": 96 * 96, "n_layers": 36, "n_double_layers": 4}
QWEN = {"image_model": "qwen_image", "in_channels": 64, "num_layers": 60}
PIXART = {
    "image_model": "pixart_sigma",
    "num_heads": 16,
    "patch_size": 2,
    "hidden_size": 1152,
    "in_channels": 4,
    "depth": 28,
    "model_max_length": 300,
    "input_size": 128,
    "pe_interpolation": 2,
    "micro_condition": False,
}
COSMOS = {
    "image_model": "cosmos_predict2",
    "max_img_h": 240,
    "max_img_w": 240,
    "max_frames": 128,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 2048,
    "num_blocks": 28,
    "num_heads": 16,
    "concat_padding_mask": True,
    "crossattn_emb_channels": 1024,
    "pos_emb_cls": "rope3d",
    "pos_emb_learnable": True,
    "pos_emb_interpolation": "crop",
    "min_fps": 1,
    "max_fps": 30,
    "use_adaln_lora": True,
    "adaln_lora_dim": 256,
    "extra_per_block_abs_pos_emb": False,
    "rope_h_extrapolation_ratio": 4.0,
    "rope_w_extrapolation_ratio": 4.0,
    "rope_t_extrapolation_ratio": 1.0,
    "extra_h_extrapolation_ratio": 1.0,
    "extra_w_extrapolation_ratio": 1.0,
    "extra_t_extrapolation_ratio": 1.0,
    "rope_enable_fps_modulation": False,
}
HIDREAM = {
    "image_model": "hidream",
    "attention_head_dim": 128,
    "axes_dims_rope": [64, 32, 32],
    "caption_channels": [4096, 4096],
    "max_resolution": [128, 128],
    "in_channels": 16,
    "out_channels": 16,
    "llama_layers": [*range(32), *[31] * 16],
    "num_attention_heads": 20,
    "num_routed_experts": 4,
    "num_activated_experts": 2,
    "num_layers": 16,
    "num_single_layers": 32,
    "patch_size": 2,
    "text_emb_dim": 2048,
}
STABLE_AUDIO = {"audio_model": "dit1.0"}
ACE = {
    "audio_model": "ace",
    "attention_head_dim": 128,
    "in_channels": 8,
    "inner_dim": 2560,
    "max_position": 32768,
    "max_width": 32768,
    "max_height": 16,
    "mlp_ratio": 2.5,
    "num_attention_heads": 20,
    "num_layers": 24,
    "out_channels": 8,
    "patch_size": [16, 1],
    "rope_theta": 1000000.0,
    "speaker_embedding_dim": 512,
    "text_embedding_dim": 768,
    "ssl_encoder_depths": [8, 8],
    "ssl_latent_dims": [1024, 768],
    "ssl_names": ["mert", "m-hubert"],
    "lyric_encoder_vocab_size": 6693,
    "lyric_hidden_size": 1024,
}
HALVED = {"hidden_size": 128, "num_heads": 2, "depth": 1, "depth_single_blocks": 1, "axes_dim": [16, 24, 24]}
WAN_TINY = {"dim": 256, "num_heads": 2, "ffn_dim": 256, "num_layers": 1}
LUMINA_TINY = {"n_layers": 1, "dim": 256, "n_heads": 2, "n_kv_heads": 2}
LUMINA2_TINY = {"n_layers": 1, "dim": 192, "n_heads": 2, "n_kv_heads": 2}
QWEN_TINY = {"num_layers": 1, "num_attention_heads": 2}
SD3_TINY = {
    "depth": 2,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 128}},
}
FLUX2_TINY = {"hidden_size": 256, "num_heads": 2, "depth": 1, "depth_single_blocks": 1}
LTXV_TINY = {"num_layers": 1, "attention_head_dim": 8, "cross_attention_dim": 256}
AURA_TINY = {"dim": 256, "n_layers": 2, "n_double_layers": 1, "n_heads": 2, "global_conddim": 256}
CHROMA_TINY = HALVED | {"out_dim": 128, "hidden_dim": 64, "n_layers": 1}
PIXART_TINY = {"hidden_size": 144, "num_heads": 2, "depth": 1}
COSMOS_TINY = {"model_channels": 256, "num_heads": 2, "num_blocks": 1}
HIDREAM_TINY = {"num_attention_heads": 2, "num_layers": 1, "num_single_layers": 1, "llama_layers": [0, 31]}
AUDIO_TINY = {"depth": 1}
ACE_TINY = {"inner_dim": 256, "num_attention_heads": 2, "num_layers": 1}
PICTURE = (1, 16, 128, 128)
VIDEO, SHORT, TINY_VIDEO = (1, 16, 9, 60, 104), (1, 16, 5, 44, 80), (1, 16, 2, 8, 8)
POOLED = {"pooled_output": (1, 768), "guidance": 3.5}
UNET = {"model_channels": 32}
FAMILIES: dict[str, Family] = {
    "SD 1.5": Family("SD15", SD15, (2, 4, 64, 64), (77, 768), 7.0, UNET, (2, 4, 8, 8), {}, torch.float16),
    "SDXL": Family(
        "SDXL",
        SDXL,
        (1, 4, 128, 128),
        (77, 2048),
        5.0,
        {
            "model_channels": 64,
            "transformer_depth": [0, 0, 1, 1, 1, 1],
            "transformer_depth_middle": 1,
            "transformer_depth_output": [0, 0, 0, 1, 1, 1, 1, 1, 1],
        },
        (2, 4, 8, 8),
        {"pooled_output": (1, 1280)},
        torch.float16,
    ),
    "FLUX": Family("Flux", FLUX, PICTURE, (256, 4096), 1.0, HALVED, also=POOLED),
    "Wan 1.3B": Family("WAN21_T2V", WAN, VIDEO, (512, 4096), 5.0, WAN_TINY, TINY_VIDEO),
    "Z-Image": Family("ZImage", ZIMAGE, PICTURE, (128, 2560), 1.0, LUMINA_TINY),
    "Qwen-Image": Family("QwenImage", QWEN, (1, 16, 1, 128, 128), (128, 3584), 4.0, QWEN_TINY, (1, 16, 1, 8, 8)),
    "SD 3": Family("SD3", SD3, PICTURE, (154, 4096), 5.0, SD3_TINY, also={"pooled_output": (1, 2048)}),
    "FLUX.2": Family("Flux2", FLUX2, (1, 128, 64, 64), (512, 15360), 1.0, FLUX2_TINY, (1, 128, 4, 4), POOLED),
    "Wan 14B image to video": Family("WAN21_I2V", WAN_I2V, SHORT, (512, 4096), 5.0, WAN_TINY, TINY_VIDEO),
    "HunyuanVideo": Family("HunyuanVideo", HUNYUAN, SHORT, (256, 4096), 1.0, HALVED, TINY_VIDEO, POOLED),
    "LTX-V": Family(
        "LTXV",
        LTXV,
        (1, 128, 9, 16, 24),
        (128, 4096),
        3.0,
        LTXV_TINY,
        (1, 128, 2, 4, 4),
        {"attention_mask": partial(torch.ones, dtype=torch.long)},
    ),
    "AuraFlow": Family("AuraFlow", AURA, (1, 4, 128, 128), (256, 2048), 4.0, AURA_TINY, (1, 4, 8, 8)),
    "Chroma": Family("Chroma", CHROMA, PICTURE, (256, 4096), 4.0, CHROMA_TINY, also=POOLED),
    "PixArt": Family("PixArtSigma", PIXART, (1, 4, 128, 128), (300, 4096), 4.5, PIXART_TINY, (1, 4, 40, 40)),
    "Cosmos 2": Family(
        "CosmosT2IPredict2", COSMOS, (1, 16, 1, 96, 96), (512, 1024), 4.0, COSMOS_TINY, (1, 16, 1, 8, 8)
    ),
    "HiDream": Family(
        "HiDream",
        HIDREAM,
        PICTURE,
        (128, 4096),
        1.0,
        HIDREAM_TINY,
        also={"pooled_output": (1, 2048), "conditioning_llama3": (1, 32, 128, 4096)},
    ),
    "Lumina 2": Family("Lumina2", LUMINA, PICTURE, (128, 2304), 4.0, LUMINA2_TINY),
    "Stable Audio": Family("StableAudio", STABLE_AUDIO, (1, 64, 1024), (128, 768), 5.0, AUDIO_TINY, (1, 64, 32)),
    "ACE-Step": Family(
        "ACEStep",
        ACE,
        (1, 8, 16, 646),
        (128, 768),
        4.0,
        ACE_TINY,
        (1, 8, 16, 32),
        {"conditioning_lyrics": torch.ones(1, 16, dtype=torch.long)},
    ),
}
