"""`metazoo server`: the meta server."""

from typing import Annotated

import typer


def server(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
) -> None:
    """Serve jobs and meta-models over REST. Settings come from the environment (docs/operations.md)."""
    import uvicorn

    from meta_server.app import create_app
    from meta_server.settings import Settings
    from worker import logs

    logs.configure()
    uvicorn.run(create_app(Settings()), host=host, port=port, log_config=None, timeout_graceful_shutdown=5)
