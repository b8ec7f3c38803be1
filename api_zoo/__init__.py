"""Hosts teachers as classification APIs: black boxes by construction, rate-limited, every image counted."""
