"""Predictions of a checkpoint, and tables, charts and pages that say how good they are."""
