"""A Metazoo to break: real processes under a supervisor, proxies that cut, and an audit of what is left."""
