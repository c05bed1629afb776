"""The server's side: the ServerApp, pretraining, reports."""
