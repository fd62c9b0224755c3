"""mobilenext: train mobile-size image classifiers, MobileNeXt first of all.

ARCHITECTURE.md is the map of the rooms and of who may import whom.
"""
