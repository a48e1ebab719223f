"""Probabilistic guidance on a MODEL: it bounds what all guidance together adds, whatever nodes it shares it with.

after.py: the bound, behind the host's guidance. others.py: other nodes that guide, before it and after it. told.py:
what one run of a sampler tells, read back when it is over.
"""

from .after import AfterGuidance, guided_model

__all__ = ["AfterGuidance", "guided_model"]
