"""Write a page about runs: `python scripts/report.py runs/ [output=report.html]`."""

from checkout import start

if __name__ == "__main__":
    start("report")
