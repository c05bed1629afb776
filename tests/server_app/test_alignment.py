"""The aligner: its loss by hand, its batches, its guards; and whole runs with it."""
