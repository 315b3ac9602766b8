"""`Stream`: anyio's byte stream on a socket of poolkit's own, which knows what has gone over it.

A stream is fit for its next user only if nothing is under way, nothing was cut off, and nothing is
unread. Streams of anyio cannot tell: they read ahead, and forget that a send was cancelled.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import TYPE_CHECKING, Any, Literal

import anyio
from anyio.abc import ByteStream, SocketAttribute
from anyio.lowlevel import checkpoint
from anyio.streams.tls import TLSAttribute

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_CHUNK = 65536


class Stream(ByteStream):
    """A byte stream over TCP, TLS or a Unix socket: `anyio.abc.ByteStream`, on asyncio and trio.

    `send` and `receive` raise `anyio.BrokenResourceError` if the connection was lost, and
    `receive` raises `anyio.EndOfStream` if the server has closed it. The stream does not offer its
    socket (`anyio.abc.SocketAttribute.raw_socket`), which would outlive the lease.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._tls: ssl.SSLObject | None = None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        #: Set when the flush under way has ended. No `anyio.Lock`: that of 4.11 wakes nobody if
        #: those who wait are cancelled just when it is released.
        self._flushing: anyio.Event | None = None
        self._unsent = b""
        self._ahead = b""  # decrypted, and not received yet
        self._sends = anyio.ResourceGuard("sending to")
        self._receives = anyio.ResourceGuard("receiving from")
        self._under_way = 0
        self._ended = self._was_cut = self._sent_eof = False
        self._unanswered = False
        self._between = False

    # -- what users call -------------------------------------------------------------------------

    async def send(self, item: bytes) -> None:
        """Send all of it. A send that was cancelled may have sent a part."""
        with self._sends, self._operation():
            await checkpoint()
            self._begin()
            self._unanswered = True
            if self._tls is None:
                await self._send_raw(memoryview(item))
            elif item:
                await self._call_tls(self._tls.write, item)

    async def receive(self, max_bytes: int = _CHUNK) -> bytes:
        """Return at least one byte, and at most ``max_bytes``."""
        with self._receives, self._operation():
            await checkpoint()
            self._begin()
            if self._ahead:
                data, self._ahead = self._ahead[:max_bytes], self._ahead[max_bytes:]
            elif self._tls is None:
                data = await self._receive_raw(max_bytes)
            else:
                data = await self._call_tls(self._tls.read, max_bytes)
            if not data:
                self._ended = True
                raise anyio.EndOfStream
            self._unanswered = False
            return data

    async def send_eof(self) -> None:
        """End the sending half; the connection has no further user then. TLS has no such half."""
        if self._tls is not None:
            raise NotImplementedError("TLS cannot end one half of a connection")
        with self._sends, self._operation():
            await checkpoint()
            self._begin()
            self._sent_eof = True
            self._sock.shutdown(socket.SHUT_WR)

    async def aclose(self) -> None:
        """Close, over TLS with a farewell."""
        try:
            if self._tls is not None and not self._is_over and not self._was_cut:
                with contextlib.suppress(ssl.SSLError):
                    self._tls.unwrap()  # does not wait for the server's farewell
                with contextlib.suppress(OSError, anyio.ClosedResourceError):
                    await self._flush()
        finally:
            self.terminate()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """The addresses, and what TLS has agreed on."""
        sock, tls = self._sock, self._tls
        attributes: dict[Any, Callable[[], Any]] = {
            SocketAttribute.family: lambda: sock.family,
            SocketAttribute.local_address: lambda: _address(sock.getsockname()),
            SocketAttribute.remote_address: lambda: _address(sock.getpeername()),
        }
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            attributes[SocketAttribute.local_port] = lambda: sock.getsockname()[1]
            attributes[SocketAttribute.remote_port] = lambda: sock.getpeername()[1]
        if tls is not None:
            theirs: dict[Any, Callable[[], Any]] = {
                TLSAttribute.alpn_protocol: tls.selected_alpn_protocol,
                TLSAttribute.cipher: tls.cipher,
                TLSAttribute.peer_certificate: tls.getpeercert,  # pyright: ignore[reportUnhashable]
                TLSAttribute.peer_certificate_binary: lambda: tls.getpeercert(binary_form=True),
                TLSAttribute.server_side: lambda: False,
                TLSAttribute.standard_compatible: lambda: True,
                TLSAttribute.tls_version: tls.version,
            }
            attributes.update(theirs)
        return attributes

    # -- what the driver calls -------------------------------------------------------------------

    async def start_tls(self, context: ssl.SSLContext, server_name: str) -> None:
        """Begin TLS. Raises `ssl.SSLError` if the server or its certificate will not do."""
        tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)
        await self._call_tls(tls.do_handshake)
        self._tls = tls

    def terminate(self) -> None:
        """Close at once; an operation under way raises `anyio.ClosedResourceError`."""
        if self._sock.fileno() != -1:
            with contextlib.suppress(Exception):  # it is collected without its event loop
                anyio.notify_closing(self._sock)
            self._sock.close()

    def end_lease(self) -> None:
        """Take what arrives from now on, before the next operation, for a former user's."""
        self._between = True

    def state(self) -> Literal["quiet", "unread", "ended"]:
        """Tell without waiting whether there is something to receive, or the end has come."""
        if self._is_over:
            return "ended"
        if self._ahead:
            return "unread"
        if self._tls is None:
            try:
                found = self._sock.recv(1, socket.MSG_PEEK)
            except (BlockingIOError, InterruptedError):
                return "quiet"
            except OSError:
                found = b""
        elif self._under_way:  # to read now would take it from who waits for it
            return "quiet"
        else:
            try:
                found = self._ahead = self._read_tls(self._tls)
            except (BlockingIOError, InterruptedError):
                return "quiet"
            except OSError:
                found = b""
        self._ended = not found
        return "unread" if found else "ended"

    def is_dead(self) -> bool:
        """Tell whether the end has come; or bytes for which nobody of this lease has asked."""
        state = self.state()
        return state == "ended" or (state == "unread" and self._between)

    def why_unfit(self, *, one_way: bool) -> str:  # noqa: PLR0911  # one for each reason
        """Return why no other user may have this stream; "" if nothing is known against it."""
        state = self.state()
        if state == "ended":
            return "the connection has ended"
        if self._under_way:
            return "an operation is under way"
        if self._was_cut:
            return "an operation was cancelled, or has failed"
        if self._sent_eof:
            return "the sending half was ended"
        if state == "unread":
            return "there are unread bytes"
        if self._unanswered and not one_way:
            return "nothing was received after the last send"
        return ""

    # -- how it is done --------------------------------------------------------------------------

    @property
    def _is_over(self) -> bool:
        return self._ended or self._sock.fileno() == -1

    @contextlib.contextmanager
    def _operation(self) -> Iterator[None]:
        if self._sock.fileno() == -1:
            raise anyio.ClosedResourceError
        self._under_way += 1
        try:
            yield
        except OSError as error:
            self._ended = True
            raise anyio.BrokenResourceError from error
        except BaseException:
            self._was_cut = True
            raise
        finally:
            self._under_way -= 1

    def _begin(self) -> None:
        """Refuse the first operation of a lease if an answer to a former user has come."""
        if self._between:
            self._under_way -= 1  # or nothing would be looked at
            is_late = self.state() == "unread"
            self._under_way += 1
            self._between = False
            if is_late:
                raise ConnectionAbortedError("bytes have come that were for a former user")
        if self._sock.fileno() == -1:
            raise anyio.ClosedResourceError

    async def _send_raw(self, data: memoryview) -> None:
        while data:
            try:
                data = data[self._sock.send(data) :]
            except (BlockingIOError, InterruptedError):
                await anyio.wait_writable(self._sock)

    async def _receive_raw(self, max_bytes: int) -> bytes:
        while True:
            try:
                return self._sock.recv(max_bytes)
            except (BlockingIOError, InterruptedError):
                await anyio.wait_readable(self._sock)

    async def _call_tls(self, call: Callable[..., Any], *args: Any) -> Any:
        while True:
            try:
                result = call(*args)
            except ssl.SSLWantReadError:
                await self._flush()
                self._feed(await self._receive_raw(_CHUNK))
            except ssl.SSLZeroReturnError:
                return b""
            else:
                await self._flush()
                return result

    async def _flush(self) -> None:
        """Send what TLS has made; what a cancelled flush has left, the next one sends."""
        while self._flushing is not None:
            await self._flushing.wait()
        self._flushing = ended = anyio.Event()
        try:
            self._unsent += self._outgoing.read()
            while self._unsent:
                try:
                    self._unsent = self._unsent[self._sock.send(self._unsent) :]
                except (BlockingIOError, InterruptedError):
                    await anyio.wait_writable(self._sock)
                self._unsent += self._outgoing.read()
        finally:
            self._flushing = None
            ended.set()

    def _read_tls(self, tls: ssl.SSLObject) -> bytes:
        """Return what has been decrypted; tickets for sessions, for example, are no data."""
        while True:
            try:
                return tls.read(_CHUNK)
            except ssl.SSLWantReadError:
                self._feed(self._sock.recv(_CHUNK))
            except ssl.SSLZeroReturnError:
                return b""

    def _feed(self, data: bytes) -> None:
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()


def _address(name: Any) -> Any:
    """Return an address as anyio does: host and port, or a path."""
    return name[:2] if isinstance(name, tuple) else name
