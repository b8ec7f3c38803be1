"""One file a command; see `metazoo.cli` for what they may import at their top."""
