"""What predictions are worth, exactly, for any number of processes."""
