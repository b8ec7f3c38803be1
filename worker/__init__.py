"""Celery workers: they ask the APIs, train the meta-model, survive being killed and never overspend."""
