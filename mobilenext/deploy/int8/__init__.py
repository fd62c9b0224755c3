"""Networks at 8 bits after training."""
