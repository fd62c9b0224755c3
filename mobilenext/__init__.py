"""mobilenext: train mobile-size image classifiers, MobileNeXt first of all.

Importing it registers its networks with timm: `timm.create_model("mobilenext_100")` and others.
ARCHITECTURE.md is the map of the rooms and of who may import whom.
"""

from mobilenext import models as models
