"""Where a page is served: what to type for it, and which names are not ours."""

import contextlib
import ipaddress
import socket
from urllib.parse import urlsplit

PUBLIC = ("0.0.0.0", "::")  # noqa: S104 (compared): all that this machine has


def family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def url(host: str, port: int) -> str:
    host = socket.gethostname() if host in PUBLIC else host
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def is_ours(asked: str, host: str) -> bool:
    """Whether a browser that asks for `asked` can mean what is served on `host`: any other name may be an attacker's, made to lead here.

    Raises:
        ValueError: `asked` is the name of nothing.
    """
    name = urlsplit(f"//{asked}").hostname or ""
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(name))
    return name in {"localhost", host.lower(), socket.gethostname().lower()}
