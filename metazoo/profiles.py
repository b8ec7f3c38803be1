"""Profiles: named servers in `~/.config/metazoo.toml`, each with the place of its key.

    [profiles.lab]
    url = "https://metazoo.lab.example"
    api_key_env = "LAB_KEY"            # the environment variable that holds the key

    [profiles.home]
    url = "http://127.0.0.1:8000"
    api_key_file = "~/.metazoo-key"    # or a file with nothing but the key, mode 0600

Keys themselves do not belong here: such files are shown, copied and committed.
"""

import os
import stat
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PLACES = ("api_key_env", "api_key_file")


class ProfileFault(ValueError):
    """The profile cannot be used; the message says what to mend, and never shows a value that may be a key."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A server and where its key is: an environment variable, a file, or nowhere."""

    url: str
    api_key_env: str | None = None
    api_key_file: Path | None = None

    def api_key(self) -> str | None:
        """The key; None where no place is named. Raises `ProfileFault` where the place does not hold one."""
        if self.api_key_env is not None:
            if not (key := os.environ.get(self.api_key_env)):
                raise ProfileFault(f"the environment variable {self.api_key_env} is not set: put the key there")
            return key
        return None if self.api_key_file is None else _key_in(self.api_key_file)


def config_file() -> Path:
    """`metazoo.toml` in `$XDG_CONFIG_HOME`, else in `~/.config`."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "metazoo.toml"


def read(name: str) -> Profile:
    """The profile of that name. Raises `ProfileFault`, naming the file and what to mend in it."""
    path = config_file()
    try:
        profiles = tomllib.loads(path.read_text("utf-8")).get("profiles")
    except OSError as error:
        raise ProfileFault(f"{path}: {error.strerror}: put [profiles.{name}] with a url there") from None
    except tomllib.TOMLDecodeError as error:
        raise ProfileFault(f"{path} is no TOML: {error}") from None
    except UnicodeDecodeError:
        raise ProfileFault(f"{path} is no TOML: it is not UTF-8") from None
    if not isinstance(profiles, dict) or name not in profiles:
        known = ", ".join(sorted(profiles)) if isinstance(profiles, dict) and profiles else "none"
        raise ProfileFault(f"{path} has no profile {name!r}; it has: {known}")
    return _checked(f"{path}: profile {name!r}", profiles[name])


def _checked(where: str, given: Any) -> Profile:
    if not isinstance(given, dict) or not all(isinstance(value, str) and value for value in given.values()):
        raise ProfileFault(f"{where} must be a table of texts: url, and api_key_env or api_key_file")
    if "api_key" in given:
        raise ProfileFault(f"{where} holds a key: name its place instead, by api_key_env or api_key_file")
    if unknown := sorted(given.keys() - {"url", *_PLACES}):
        raise ProfileFault(f"{where} has unknown fields: {', '.join(unknown)}; known: url, {', '.join(_PLACES)}")
    if "url" not in given:
        raise ProfileFault(f"{where} needs a url")
    if all(place in given for place in _PLACES):
        raise ProfileFault(f"{where} names two places of the key: keep one of {' and '.join(_PLACES)}")
    file = given.get("api_key_file")
    return Profile(given["url"], given.get("api_key_env"), None if file is None else Path(file).expanduser())


def _key_in(path: Path) -> str:
    """The key in a file that nobody but its owner may read."""
    try:
        with path.open(encoding="utf-8") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise ProfileFault(f"{path} holds a key and others may use it (mode {mode:04o}): chmod 600 {path}")
            key = file.read().strip()
    except OSError as error:
        raise ProfileFault(f"{path}: {error.strerror}: put the key there") from None
    except UnicodeDecodeError:
        raise ProfileFault(f"{path} holds no key: it is not text") from None
    if not key:
        raise ProfileFault(f"{path} is empty: put the key there")
    return key
