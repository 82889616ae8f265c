"""Training: flags, runtime, losses, ranks, the run's folder, and the trainer."""
