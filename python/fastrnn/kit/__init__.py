"""What trains a model around the layers: embedding and read-out, losses, optimizers, the reach of gradients."""
