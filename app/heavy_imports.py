"""The libraries that every app's process needs, imported without a search for garbage among what they bring.

A site starts a process for every message, and what it imports is there until the end: to search that again
and again while it grows, and once more when the process ends, takes about as long as the import itself.
"""

import gc
import sys

from . import quiet_imports  # noqa: F401

gc.disable()
# Meanwhile a simulation's other thread starts Ray, in many small steps: it does not wait long for its turn.
patience = sys.getswitchinterval()
sys.setswitchinterval(patience / 10)
try:
    from . import methods  # noqa: F401

    gc.freeze()
finally:
    gc.enable()
    sys.setswitchinterval(patience)
