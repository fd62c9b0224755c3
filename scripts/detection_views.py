"""Draw what a detector's training sees: `python scripts/detection_views.py data.root=VOCdevkit`."""

from checkout import start

if __name__ == "__main__":
    start("detection_views")
