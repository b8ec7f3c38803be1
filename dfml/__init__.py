"""Data-free meta-learning in plain PyTorch: from black-box classifiers to one backbone that learns a new task.

Knows no HTTP and no Redis. Importing the package brings neither torch nor numpy; `procedural` and `plans` need numpy alone.
"""
