"""What every training loop does in the same order, whatever it learns.

`Run` is the run: folder, checkpoints, reports, signals. `Update` is one optimiser step. Nothing
here sees a config.
"""
