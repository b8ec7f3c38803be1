"""What travels between Metazoo's processes: models of jobs, methods, meta-models, zoo, errors, and the wire codec. No I/O."""
