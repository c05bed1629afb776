"""The clients' side: the ClientApp, local training, private state."""

import gc

# A site starts a process for every message, and what it imports is there until the end: to search that for
# garbage, while it is imported and when the process ends, takes about as long as the import itself.
gc.disable()
import app.full_model  # noqa: E402, F401

gc.freeze()
gc.enable()
