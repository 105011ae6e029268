"""A request on the decode side."""

from __future__ import annotations

from sglang.srt.disaggregation.base.conn import KVPoll, KVTransferDestination
from sglang.srt.disaggregation.common.conn import CommonKVReceiver

from .manager import Target


class MoaiKVReceiver(CommonKVReceiver):
    """Gives pages, waits for the offer, and ends when what was pulled into them is right, or nothing is written to them any more."""

    def __init__(self, mgr, bootstrap_addr: str, bootstrap_room: int | None = None):
        super().__init__(mgr, bootstrap_addr, bootstrap_room)
        problem = mgr.why_not(bootstrap_addr)
        if problem is not None:
            self._fail(problem)

    def send_metadata(
        self,
        kv_indices,
        aux_index: int | None = None,
        state_indices: list | None = None,
        decode_prefix_len: int | None = None,
        destination: KVTransferDestination = KVTransferDestination.DEVICE,
        device_kv_indices=None,
    ) -> None:
        if decode_prefix_len:
            self._fail(f"{decode_prefix_len} tokens of the request are cached here; the backend moai moves whole requests")
            return
        if self.bootstrap_infos is not None and aux_index is not None:
            pages = [int(page) for page in kv_indices]
            self.kv_mgr.open_target(Target(self.bootstrap_room, self.bootstrap_addr, pages, aux_index, self.bootstrap_infos))
        super().send_metadata(kv_indices, aux_index, state_indices, decode_prefix_len, destination, device_kv_indices)

    def _fail(self, problem: str) -> None:
        self.kv_mgr.record_failure(self.bootstrap_room, problem)
        self.kv_mgr.update_status(self.bootstrap_room, KVPoll.Failed)

    def _poll(self) -> KVPoll:
        target = self.kv_mgr.targets.get(self.bootstrap_room)
        if target is None or not target.is_held:
            return super()._poll()
        # Whatever was decided about the request, its pages are the node's until the pull has ended, which it does by its deadline.
        if self.kv_mgr.check_status(self.bootstrap_room) == KVPoll.Failed:
            self.kv_mgr.cancel(self.bootstrap_room)
        return KVPoll.Transferring

    def abort(self) -> None:
        if not self.kv_mgr.cancel(self.bootstrap_room):
            super().abort()
            return
        self._fail("Aborted by AbortReq.")
        self.ensure_abort_notified()

    def clear(self) -> None:
        super().clear()
        self.kv_mgr.close_target(self.bootstrap_room)
