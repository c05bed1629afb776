"""fedvision: a Flower app that names shapes."""
