"""Takes jobs, shows their progress, serves the meta-models. No training here."""
