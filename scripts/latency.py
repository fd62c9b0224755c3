"""Time networks: `python scripts/latency.py identity=1,1/2 engine=eager,onnxruntime`."""

from checkout import start

if __name__ == "__main__":
    start("latency")
