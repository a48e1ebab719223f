"""FewStep: the converged picture in the fewest model calls. The entry point and nothing else."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Called by ComfyUI; everything heavy is imported here, not when the package is."""
    from .nodes import FewStepExtension

    return FewStepExtension()
