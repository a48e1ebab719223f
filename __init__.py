"""FewStep: the converged picture in the fewest model calls. The entry point and nothing else."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Called by ComfyUI; everything heavy is imported here, not when the package is."""
    from .nodes.host.symbols import check_host

    check_host()
    from .nodes.extension import FewStepExtension

    return FewStepExtension()
