"""Many runs: jobs in processes of their own here, or as tasks of SLURM."""
