"""Training: config, loss, the run itself and its evaluation."""
