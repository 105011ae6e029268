"""A request on the prefill side."""

from __future__ import annotations

from sglang.srt.disaggregation.base.conn import KVPoll
from sglang.srt.disaggregation.common.conn import CommonKVSender


class MoaiKVSender(CommonKVSender):
    """Collects a request's pages, offers them, and ends when they are free."""

    def __init__(self, mgr, bootstrap_addr: str, bootstrap_room: int, req_has_disagg_prefill_dp_rank: bool = False):
        # First, whatever becomes of it: ranks count their senders alike.
        mgr.open_outgoing(bootstrap_room)
        super().__init__(mgr, bootstrap_addr, bootstrap_room, req_has_disagg_prefill_dp_rank)
        if mgr.is_wanted(bootstrap_room):
            mgr.update_status(bootstrap_room, KVPoll.WaitingForInput)

    def pop_decode_prefix_len(self) -> int:
        return 0

    def abort(self) -> None:
        if not self.kv_mgr.withdraw(self.bootstrap_room, "Aborted by AbortReq."):
            super().abort()

    def clear(self) -> None:
        self.kv_mgr.close_outgoing(self.bootstrap_room)
        super().clear()
