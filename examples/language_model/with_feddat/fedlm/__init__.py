"""fedlm: a Flower app that answers questions."""
