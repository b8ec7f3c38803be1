"""The `metazoo` command and what it starts. Nothing else imports this package."""
