"""The commands: one file each, its config's dataclass on top and its function below.

No job imports another one, and nothing but scripts and `mobilenext.__main__` imports a job.
"""
