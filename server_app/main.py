"""The ServerApp. What a run needs is imported when it begins.

Flower loads the two apps of a simulation one after the other, and then starts its workers: with torch behind
either, they would wait for it.
"""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Check the settings, federate, export the result, report."""
    from .federation import federate

    federate(grid, context)
