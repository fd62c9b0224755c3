"""Say whether loading is the wall: `python scripts/loader_report.py data=... [as for train.py]`."""

from checkout import start

if __name__ == "__main__":
    start("loader_report")
