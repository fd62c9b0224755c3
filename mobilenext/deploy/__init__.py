"""What becomes of a network after training; sees no config."""
