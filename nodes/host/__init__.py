"""The only code of the pack that imports comfy: one file a contact point."""
