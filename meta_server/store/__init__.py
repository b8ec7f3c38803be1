"""What the meta server and its workers keep: jobs and meta-models in Redis, tensors in the artefact store."""
