"""Models, losses, optimizers, the training state, and what is measured."""
