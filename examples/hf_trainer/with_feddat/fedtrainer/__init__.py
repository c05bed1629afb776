"""fedtrainer: a Flower app that sorts questions by what they are about."""
