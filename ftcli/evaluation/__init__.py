"""From a checkpoint and images to outputs and figures."""
