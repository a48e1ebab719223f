"""How to step: pure torch. Never imports comfy, nodes or schedulers."""
