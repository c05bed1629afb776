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
    from app.caches import cache_limit, prune
    from app.home import closed_home

    with closed_home() as home:
        from .federation import federate

        prune(home, cache_limit())
        try:
            federate(grid, context)
        finally:
            prune(home, cache_limit())
