"""The one error of programs that cannot be used."""


class BadProgram(ValueError):
    """The file is damaged, holds what is never run here, or is no classifier. The message says which."""
