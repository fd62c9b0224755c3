import os

# Before torch is loaded: threads that wait for others leave the cores to other workers.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
