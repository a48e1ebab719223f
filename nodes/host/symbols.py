"""Everything that the pack takes from ComfyUI by name, so that a host without it is told what, and not by a traceback.

A test holds the list to what our files use.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable

SYMBOLS = (
    "comfy.conds.CONDRegular",
    "comfy.controlnet.ControlBase",
    "comfy.hooks.Hook",
    "comfy.hooks.HookGroup",
    "comfy.hooks.HookKeyframe",
    "comfy.hooks.HookKeyframeGroup",
    "comfy.latent_formats.LatentFormat",
    "comfy.latent_formats.SD15",
    "comfy.ldm.modules.attention.attention_basic",
    "comfy.ldm.modules.attention.optimized_attention",
    "comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel",
    "comfy.lora.load_lora",
    "comfy.lora.model_lora_keys_unet",
    "comfy.model_base.BaseModel",
    "comfy.model_base.ModelType",
    "comfy.model_management.InterruptProcessingException",
    "comfy.model_management.OOM_EXCEPTION",
    "comfy.model_management.get_free_memory",
    "comfy.model_management.get_torch_device",
    "comfy.model_management.intermediate_device",
    "comfy.model_management.is_device_cpu",
    "comfy.model_management.soft_empty_cache",
    "comfy.model_management.throw_exception_if_processing_interrupted",
    "comfy.model_management.unet_dtype",
    "comfy.model_management.unet_manual_cast",
    "comfy.model_management.unet_offload_device",
    "comfy.model_patcher.ModelPatcher",
    "comfy.model_patcher.create_model_options_clone",
    "comfy.model_patcher.set_model_options_post_cfg_function",
    "comfy.model_sampling.ModelSamplingContinuousEDM",
    "comfy.model_sampling.ModelSamplingDiscrete",
    "comfy.model_sampling.V_PREDICTION",
    "comfy.model_sampling.reshape_sigma",
    "comfy.nested_tensor.NestedTensor",
    "comfy.ops.manual_cast",
    "comfy.patcher_extension.WrapperExecutor",
    "comfy.patcher_extension.WrappersMP",
    "comfy.patcher_extension.add_wrapper",
    "comfy.patcher_extension.get_all_wrappers",
    "comfy.sample.fix_empty_latent_channels",
    "comfy.sample.prepare_noise",
    "comfy.sampler_helpers.cleanup_models",
    "comfy.sampler_helpers.prepare_sampling",
    "comfy.samplers.CFGGuider",
    "comfy.samplers.KSAMPLER",
    "comfy.samplers.KSampler",
    "comfy.samplers.SAMPLER_NAMES",
    "comfy.samplers.SCHEDULER_NAMES",
    "comfy.samplers.calculate_sigmas",
    "comfy.samplers.cast_to_load_options",
    "comfy.samplers.get_area_and_mult",
    "comfy.samplers.process_conds",
    "comfy.samplers.sampler_object",
    "comfy.samplers.sampling_function",
    "comfy.sd.CLIP",
    "comfy.sd.VAE",
    "comfy.sd1_clip.escape_important",
    "comfy.sd1_clip.token_weights",
    "comfy.sd1_clip.unescape_important",
    "comfy.supported_models_base.BASE",
    "comfy.utils.PROGRESS_BAR_ENABLED",
    "comfy.utils.ProgressBar",
    "comfy.utils.calculate_parameters",
    "comfy.utils.load_torch_file",
    "comfy.utils.pack_latents",
    "comfy.utils.weight_dtype",
    "comfy_api.latest.ComfyAPI",
    "comfy_api.latest.ComfyExtension",
    "comfy_api.latest.io",
    "comfy_api.latest.ui",
    "comfy_execution.utils.get_executing_context",
    "folder_paths.add_model_folder_path",
    "folder_paths.get_filename_list",
    "folder_paths.get_folder_paths",
    "folder_paths.get_full_path",
    "folder_paths.get_output_directory",
    "folder_paths.get_save_image_path",
    "folder_paths.models_dir",
)
METHODS = (
    "comfy.model_base.BaseModel.memory_required",
    "comfy.model_base.BaseModel.process_latent_in",
    "comfy.model_base.BaseModel.process_latent_out",
    "comfy.model_patcher.ModelPatcher.add_object_patch",
    "comfy.model_patcher.ModelPatcher.add_object_patch",
    "comfy.model_patcher.ModelPatcher.add_patches",
    "comfy.model_patcher.ModelPatcher.add_wrapper_with_key",
    "comfy.model_patcher.ModelPatcher.cleanup",
    "comfy.model_patcher.ModelPatcher.clone",
    "comfy.model_patcher.ModelPatcher.get_model_object",
    "comfy.model_patcher.ModelPatcher.loaded_size",
    "comfy.model_patcher.ModelPatcher.model_dtype",
    "comfy.model_patcher.ModelPatcher.model_size",
    "comfy.model_patcher.ModelPatcher.pre_run",
    "comfy.model_patcher.ModelPatcher.remove_wrappers_with_key",
    "comfy.model_patcher.ModelPatcher.set_model_sampler_post_cfg_function",
    "comfy.samplers.CFGGuider.inner_sample",
    "comfy.samplers.CFGGuider.inner_set_conds",
    "comfy.samplers.CFGGuider.outer_predict_noise",
    "comfy.samplers.CFGGuider.outer_sample",
    "comfy.samplers.CFGGuider.predict_noise",
    "comfy.samplers.CFGGuider.sample",
    "comfy.samplers.CFGGuider.set_cfg",
    "comfy.samplers.CFGGuider.set_conds",
)


def missing(names: Iterable[str]) -> list[str]:
    """Those that this host does not have."""
    return [name for name in names if not has(name)]


def has(name: str) -> bool:
    """Whether a dotted name leads to something: a module as far as there is one, then attributes."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part, None)
        return found is not None
    return False


def check_host() -> None:
    """Raises ImportError, naming what this ComfyUI lacks."""
    lacking = missing([*SYMBOLS, *METHODS])
    if lacking:
        raise ImportError(
            f"FewStep needs {', '.join(lacking)}, which this ComfyUI does not have. It was tried with ComfyUI 0.3.75 "
            "and 0.33: update ComfyUI if it is older, update FewStep if it is newer."
        )
