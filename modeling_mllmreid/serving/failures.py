"""Wrong passwords: after some of them, an address has to wait."""

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable

# Wrong passwords of one address within this many seconds.
MOST_FAILURES, SECONDS = 10, 60
# Addresses that are remembered.
MOST_ADDRESSES = 10_000


class Failures:
    """The wrong passwords of each address. An address that waits does not slow down others, and holds no thread.

    Args:
        clock (`Callable`): Returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock = clock
        # Number and time of the last failures, by address, oldest first.
        self._known: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def wait(self, address: str) -> int:
        """Returns the seconds that an address has to wait before it may try again, 0 if it may now."""
        count, last = self._known.get(_network(address), (0, 0.0))
        left = last + SECONDS - self.clock()
        return math.ceil(left) if count >= MOST_FAILURES and left > 0 else 0

    def add(self, address: str) -> None:
        """Counts a wrong password."""
        key, now = _network(address), self.clock()
        count, last = self._known.pop(key, (0, now))
        self._known[key] = (count + 1 if now - last < SECONDS else 1), now
        while len(self._known) > MOST_ADDRESSES:
            self._known.popitem(last=False)


def _network(address: str) -> str:
    """Returns what one client owns: an IPv4 address, or the 2**64 addresses of an IPv6 network."""
    try:
        known = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(known, ipaddress.IPv6Address):
        mapped = known.ipv4_mapped
        return str(mapped) if mapped else str(ipaddress.ip_network((known, 64), strict=False))
    return address
