"""Training: the loss, the step, and what a run keeps."""
