"""Meta-models at work: they learn tasks from a few images, and what has learned one is served as an API.

The only package of the server that runs networks. One loaded backbone serves every task that shares it.
"""

from meta_server.serving.serving import Serving

__all__ = ["Serving"]
