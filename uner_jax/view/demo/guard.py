"""Which requests come from the demo's own page, and which a foreign page has a browser send.

A server on localhost can be reached by every page that is open in the same browser. Such a page can
send requests across (then the browser names it in Origin), or give its own domain this machine's
address (then the domain stands in Host). Programs that are no browser send no Origin, and are welcome.
"""

import ipaddress
import socket
from email.message import Message
from urllib.parse import urlsplit


def known_names(host: str) -> frozenset[str]:
    """The names under which a server that is bound to `host` may be called, besides any numeric address."""
    names = {"localhost", host}
    if not _is_loopback(host):
        names.add(socket.gethostname())
    return frozenset(name.lower() for name in names)


def fault(headers: Message, names: frozenset[str]) -> str | None:
    """Why a request must be refused, or None: by its Host, and by what a browser says of the page that sends it."""
    hosts, origins = headers.get_all("Host", []), headers.get_all("Origin", [])
    if len(hosts) != 1 or not _is_ours(hosts[0], names):
        return "this server does not go by that name; open it as localhost or by its address"
    # compared with the port: another server of the same machine is foreign too.
    if len(origins) > 1 or any(_netloc(origin) != hosts[0].lower() for origin in origins):
        return "a page of another site may not ask here"
    if headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
        return "a page of another site may not ask here"
    return None


def _netloc(origin: str) -> str:
    """The name and port of an origin; nothing of "null", which a page without an address of its own sends."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _is_ours(host: str, names: frozenset[str]) -> bool:
    try:
        # any port: a tunnel may lead here from another one.
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    # whoever lures a browser here under a name of his own needs a name: a numeric address is no lure.
    return name in names or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)
