"""Of the SGLang backend, what needs no SGLang: settings, messages, descriptions, and the probe, which needs torch."""

import unittest

from moai_fabric.sglang import messages, settings
from moai_fabric.sglang.messages import Done, Offer, Want

try:
    import torch
except ImportError:
    torch = None


class Settings(unittest.TestCase):
    def test_loopback_is_all_that_is_allowed_by_itself(self) -> None:
        given = settings.read({})
        self.assertTrue(given.allows("127.0.0.1"))
        self.assertTrue(given.allows("::1"))
        self.assertFalse(given.allows("192.0.2.1"))

    def test_networks_and_names_are_allowed_that_are_listed(self) -> None:
        given = settings.read({"SGLANG_MOAI_PEERS": "192.0.2.0/24, prefill-3"})
        self.assertTrue(given.allows("192.0.2.77"))
        self.assertTrue(given.allows("prefill-3"))
        self.assertFalse(given.allows("198.51.100.1"))
        self.assertFalse(given.allows("127.0.0.1"))
        self.assertFalse(given.allows("no such host"))

    def test_what_is_not_known_or_cannot_be_is_named(self) -> None:
        with self.assertRaisesRegex(settings.SettingsError, "SGLANG_MOAI_PEER is not known"):
            settings.read({"SGLANG_MOAI_PEER": "a"})
        for wrong in ("soon", "0", "-1", "nan", "1e9"):
            with self.assertRaisesRegex(settings.SettingsError, f"SGLANG_MOAI_DEADLINE: '{wrong}'"):
                settings.read({"SGLANG_MOAI_DEADLINE": wrong})


class Messages(unittest.TestCase):
    def test_what_is_written_is_read(self) -> None:
        for message in (
            Want(4711, "127.0.0.1", 9, 2),
            Offer(4711, 1, "sglang-prefill", 1 << 62, "handle", 70, (b"\0\xff", b"")),
            Done(4711, "digest: Schicht 3 — ungleich", "::1", 9),
        ):
            self.assertEqual(messages.read(message.frames()), message)

    def test_what_cannot_be_read_is_dropped(self) -> None:
        good = Offer(1, 0, "a", 1, "handle", 3, ()).frames()
        for frames in (
            [],
            [messages.WANT],
            [messages.WANT, b"9", b"1", b"h", b"1", b"1"],
            [messages.WANT, b"1", b"room", b"h", b"1", b"1"],
            [messages.WANT, b"1", b"1", b"\xff", b"1", b"1"],
            [messages.WANT, b"1", b"1", b"h", b"65536", b"1"],
            [messages.WANT, b"1", b"-1", b"h", b"1", b"1"],
            [messages.WANT, b"1", b"1" * 5000, b"h", b"1", b"1"],
            [messages.DONE, b"1", b"1"],
            [b"MOAI_ELSE", b"1"],
            good[:-1],
            [*good[:6], b"h" * 5000, *good[7:]],
        ):
            self.assertIsNone(messages.read(frames), frames)


@unittest.skipIf(torch is None, "needs torch")
class Probe(unittest.TestCase):
    """Tensors whose layout is known, as a pool would keep them."""

    PAGES, SLOTS, HEADS, DIM = 3, 8, 2, 16

    def probe(self, tensor, place):
        from moai_fabric.sglang import probe

        def store(page, rows):
            place(tensor, page, rows.to(torch.float32))

        kept = tensor.clone()
        try:
            return probe.probe("key", tensor, self.PAGES, (self.SLOTS, self.HEADS, self.DIM), store)
        finally:
            self.assertTrue(torch.equal(kept, tensor), "what was there is there again")

    def test_slots_outside_heads(self) -> None:
        tensor = torch.randn(self.PAGES * self.SLOTS, self.HEADS, self.DIM).to(torch.bfloat16)

        def place(tensor, page, rows):
            tensor[page * self.SLOTS : (page + 1) * self.SLOTS] = rows.to(tensor.dtype)

        part = self.probe(tensor, place)
        self.assertEqual((part.element, part.page_stride, part.offset), ("bf16", 512, 0))
        self.assertEqual(part.words, (("slot", 64), ("head", 32), ("dim", 2)))
        layout = {"text": "[layer] [part] page slot head dim", "offset_bytes": 0}
        strides = {"page": 512, "slot": 64, "head": 32, "dim": 2}
        self.assertEqual(part.layout("[layer] [part]"), {**layout, "strides_bytes": strides})

    def test_rows_that_are_split_and_turned(self) -> None:
        # As vectorized pools keep keys: page, head, dim/8, slot, dim%8.
        tensor = torch.randn(self.PAGES, self.HEADS, self.DIM // 8, self.SLOTS, 8)

        def place(tensor, page, rows):
            tensor[page] = rows.reshape(self.SLOTS, self.HEADS, self.DIM // 8, 8).permute(1, 2, 0, 3)

        part = self.probe(tensor, place)
        self.assertEqual(part.element, "f32")
        self.assertEqual(part.words, (("head", 512), ("dim/8", 256), ("slot", 32), ("dim%8", 4)))

    def test_what_is_stored_elsewhere_is_not_explained(self) -> None:
        from moai_fabric.sglang.probe import Unexplained

        tensor = torch.zeros(self.PAGES * self.SLOTS, self.HEADS, self.DIM)

        def beside(tensor, page, rows):
            tensor[page * self.SLOTS + 1 : (page + 1) * self.SLOTS + 1][: self.SLOTS - 1] = rows[: self.SLOTS - 1]

        with self.assertRaisesRegex(Unexplained, "256 elements were stored in page 1; 224 are there"):
            self.probe(tensor, beside)

    def test_slots_that_depend_on_heads_are_not_explained(self) -> None:
        from moai_fabric.sglang.probe import Unexplained

        tensor = torch.zeros(self.PAGES * self.SLOTS, self.HEADS, self.DIM)

        def turned(tensor, page, rows):
            rows = torch.stack([rows[:, 0], rows[:, 1].flip(0)], dim=1)
            tensor[page * self.SLOTS : (page + 1) * self.SLOTS] = rows

        with self.assertRaisesRegex(Unexplained, "not independent"):
            self.probe(tensor, turned)

    def test_latents_are_one_head_that_all_ranks_have(self) -> None:
        from moai_fabric.sglang import probe
        from moai_fabric.sglang.describe import Model, Piece, description

        tensor = torch.zeros(self.PAGES * self.SLOTS, 1, self.DIM, dtype=torch.bfloat16)

        def store(page, rows):
            tensor[page * self.SLOTS : (page + 1) * self.SLOTS] = rows.to(tensor.dtype)

        part = probe.probe("latent", tensor, self.PAGES, (self.SLOTS, 1, self.DIM), store)
        self.assertEqual(part.words, (("slot", 32), ("dim", 2)))
        model = Model("m", None, "sglang", tp=2, pp=1, heads=1)
        document = description(model, [Piece(rank, 0, (0, 1), self.SLOTS, self.PAGES, (part,), {}) for rank in range(2)])
        self.assertEqual([rank["heads"] for rank in document["ranks"]], [[0, 1], [0, 1]])
        self.assertEqual(document["components"][0]["layout"]["text"], "[layer] page slot dim")

    def test_descriptions(self) -> None:
        from moai_fabric.sglang.describe import Model, Piece, Undescribed, description
        from moai_fabric.sglang.probe import Part

        part = Part("key", 2, 8, 16, "bf16", 512, 0, (("slot", 64), ("head", 32), ("dim", 2)))
        model = Model("m", None, "sglang", tp=2, pp=1, heads=4)
        pieces = [Piece(rank, 0, (0, 1), 8, 3, (part,), {}) for rank in (1, 0)]
        document = description(model, pieces)
        self.assertEqual([rank["heads"] for rank in document["ranks"]], [[0, 2], [2, 4]])
        self.assertEqual(document["page_slots"], 8)
        # Fewer heads than ranks: two ranks have the same one.
        few = Model("m", None, "sglang", tp=4, pp=1, heads=2)
        one = Part("key", 1, 8, 16, "e4m3fn", 128, 0, (("slot", 16), ("dim", 1)))
        document = description(few, [Piece(rank, 0, (0, 1), 8, 3, (one,), {"key": (0.5, 2.0)}) for rank in range(4)])
        self.assertEqual([rank["heads"] for rank in document["ranks"]], [[0, 1], [0, 1], [1, 2], [1, 2]])
        self.assertEqual(document["components"][0]["format"]["scale"]["values"], [0.5, 2.0])
        with self.assertRaisesRegex(Undescribed, "holds 2 heads; 6 over"):
            description(Model("m", None, "sglang", 2, 1, 6), pieces)


if __name__ == "__main__":
    unittest.main()
