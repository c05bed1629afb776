"""The clients' side: the ClientApp, local training, private state."""
