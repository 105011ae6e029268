"""What is wrong on purpose, so that it shows whether the battery would notice."""

import socket
import threading

from moai_fabric.vllm import MoaiConnector


class ZeroedConnector(MoaiConnector):
    """A decoder whose cache is zeroed behind every pull."""

    def register_kv_caches(self, kv_caches) -> None:
        super().register_kv_caches(kv_caches)
        self._zeroed = list(kv_caches.values())

    def get_transfer_results(self, finished_req_ids):
        results = super().get_transfer_results(finished_req_ids)
        if results.finished_recving:
            for cache in self._zeroed:
                cache.zero_()
        return results


class FlippingProxy:
    """Carries bytes between a decoder and a prefill worker, and inverts one bit of the payload when told to.

    What is flipped is one bit in the middle of the first piece of at least `LEAST` bytes from the prefill worker: of a page, since
    nothing else is that long.
    """

    LEAST = 16 << 10

    def __init__(self, port: int):
        self._target: tuple[str, int] | None = None
        self._flip = threading.Event()
        self.flipped = 0
        self._listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, daemon=True).start()

    def carry_to(self, port: int) -> None:
        self._target = ("127.0.0.1", port)

    def flip_next(self) -> None:
        self._flip.set()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
            except OSError:
                return
            for source, target, flips in ((near, far, False), (far, near, True)):
                threading.Thread(target=self._carry, args=(source, target, flips), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, flips: bool) -> None:
        try:
            while piece := source.recv(1 << 20):
                if flips and len(piece) >= self.LEAST and self._flip.is_set():
                    self._flip.clear()
                    piece = bytearray(piece)
                    piece[len(piece) // 2] ^= 0x10
                    self.flipped += 1
                target.sendall(piece)
        except OSError:
            pass
        finally:
            for end in (source, target):
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def close(self) -> None:
        self._listener.close()
