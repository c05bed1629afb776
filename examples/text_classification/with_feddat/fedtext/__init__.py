"""fedtext: a Flower app that tells good reviews from bad ones."""
