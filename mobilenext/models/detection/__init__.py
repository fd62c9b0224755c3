"""Detectors: a classifier's feature maps, further maps, and a head that finds objects in them."""
