"""mobilenext: train mobile-size image classifiers, MobileNeXt first of all.

Importing it makes its networks known to timm, which is not loaded for that, before or after
`import timm`: `timm.create_model("mobilenext_100")` and others. ARCHITECTURE.md is the map of the
rooms and of who may import whom.
"""

from mobilenext.timm_names import register_with_timm

__version__ = "0.1.0"

register_with_timm()
