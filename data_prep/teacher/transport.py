"""A limit on replies: a server that sends without end must not fill the memory."""

from collections.abc import AsyncIterator

import httpx2

# A chat completion has kilobytes, a batch's file some hundred megabytes.
MOST_BYTES = 32 * 2**20
MOST_BYTES_OF_A_FILE = 2**30
# Compressed bytes may become a thousand times as many; those of JSON become ten times as many.
MOST_EXPANSION = 32


async def bound_reply(response: httpx2.Response) -> None:
    """A response hook that breaks the body off at its limit with ReadError, as if the connection had failed there."""
    most = MOST_BYTES_OF_A_FILE if response.request.url.path.endswith("/content") else MOST_BYTES
    if "content-encoding" in response.headers:
        most //= MOST_EXPANSION
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    response.stream = _BoundedStream(response.stream, most)


class _BoundedStream(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, most: int):
        self._stream, self._most = stream, most

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = self._most
        async for part in self._stream:
            left -= len(part)
            if left < 0:
                raise httpx2.ReadError(f"the reply has more than {self._most:,} bytes")
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()
