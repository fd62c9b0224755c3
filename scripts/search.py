"""Search for cells by DARTS: `python scripts/search.py space=darts_sandglass data=cifar10`."""

from checkout import start

if __name__ == "__main__":
    start("search")
