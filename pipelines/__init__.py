"""End-to-end jobs: read one top to bottom and you have read the pipeline."""
