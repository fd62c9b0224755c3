"""The parts of training that every loop has in common, whatever it learns.

`Run` is the run: folder, checkpoints, reports, signals. `Update` is one optimiser step. Nothing
here sees a config.
"""
