"""The parts of the vLLM connector that need no vLLM."""

import json
import sys

import pytest

from moai_fabric.vllm import describe, handles, model, paging, params, probe, settings
from moai_fabric.vllm.handles import Handle

KEY = bytes(range(32))
HANDLE = Handle("prefill-0", 7, 3, 69, 1_790_000_000_000)


def sealed(key: bytes = KEY, handle: Handle = HANDLE) -> str:
    return handles.seal(handle, handles.page_set([[1, 2, 3]]), key)


def test_vllm_is_not_imported():
    assert not any(name == "vllm" or name.startswith("vllm.") for name in sys.modules)


# Handles


def test_a_handle_reads_as_it_was_sealed():
    text = sealed()
    assert handles.read(text) == HANDLE
    assert handles.is_sealed_by(text, KEY)
    assert not handles.is_sealed_by(text, bytes(32))


def test_every_changed_character_breaks_the_seal_or_the_handle():
    text = sealed()
    for at, character in enumerate(text):
        other = "A" if character != "A" else "B"
        changed = text[:at] + other + text[at + 1 :]
        try:
            handles.read(changed)
        except handles.HandleError:
            continue
        assert not handles.is_sealed_by(changed, KEY) or at == len(text) - 1, at


@pytest.mark.parametrize("text", [None, 7, "", "AA", "é" * 40, "A" * 500, sealed()[:-8], sealed() + "AAAA", "!" * 40])
def test_what_is_no_handle_is_refused(text):
    with pytest.raises(handles.HandleError):
        handles.read(text)


@pytest.mark.parametrize("name", ["", "a b", "-a", "ä", "a" * 97, "a/b", "a\n"])
def test_names_that_cannot_be_an_engines_are_refused(name):
    with pytest.raises(handles.HandleError):
        handles.check_engine_name(name)


# Parameters of requests


def answered(**changes) -> dict:
    said = params.answer(
        engine="prefill-0",
        request="r",
        pages=[[1, 2, 3]],
        host="10.0.0.7",
        port=5600,
        tp_size=2,
        pp_size=1,
        tokens=70,
        handle=sealed(),
    )
    return {**said, **changes}


def test_an_answer_names_the_side_channel_and_keeps_the_keys_that_routers_know():
    said = json.loads(json.dumps(answered()))
    assert params.wants_prefill(said) and not params.wants_decode(said)
    remote = params.remote(said)
    assert (remote.handle, remote.channel) == (HANDLE, "10.0.0.7:5600")
    known = "do_remote_prefill do_remote_decode remote_block_ids remote_engine_id remote_request_id remote_host remote_port"
    known += " tp_size pp_size dcp_size remote_num_tokens remote_blocks_expiry_time transfer_mode"
    assert set(said) - {"moai_handle"} == set(known.split())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"moai_handle": "nonsense"}, "moai_handle"),
        ({"moai_handle": 2**70}, "moai_handle"),
        ({"remote_host": None}, "remote_host"),
        ({"remote_host": "a b"}, "remote_host"),
        ({"remote_host": "x" * 300}, "remote_host"),
        ({"remote_port": 0}, "remote_port"),
        ({"remote_port": True}, "remote_port"),
        ({"remote_port": "5600"}, "remote_port"),
        ({"remote_engine_id": "other"}, "remote_engine_id"),
    ],
)
def test_parameters_that_cannot_be_used_are_refused_by_name(changes, named):
    with pytest.raises(params.ParamsError, match=named):
        params.remote(answered(**changes))


def test_only_peers_that_are_allowed_are_asked():
    params.remote(answered(), ("10.0.0.7:5600",))
    with pytest.raises(params.ParamsError, match="not among the peers"):
        params.remote(answered(), ("10.0.0.8:5600",))


def test_sizes_of_a_request_are_not_believed():
    assert params.remote(answered(tp_size=2**62, remote_block_ids="all")).handle == HANDLE


# Settings


def test_the_side_channel_is_where_operators_expect_it():
    environment = {"VLLM_NIXL_SIDE_CHANNEL_HOST": "10.0.0.7", "VLLM_NIXL_SIDE_CHANNEL_PORT": "5700"}
    found = settings.parse({}, 3, environment)
    assert (found.side_channel_host, found.side_channel_port) == ("10.0.0.7", 5703)
    assert settings.parse({}, 0, {}).side_channel_port == 5600
    assert settings.parse({"kv_lease_duration": 60}, 0, {}).heartbeat_interval == 10


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"kv_lease": 3}, "kv_lease is not known"),
        ({"backends": ["UCX"]}, "transports are chosen"),
        ({"kv_lease_duration": "30"}, "seconds"),
        ({"kv_lease_duration": True}, "seconds"),
        ({"pull_deadline": 0}, "seconds"),
        ({"side_channel_host": "0.0.0.0"}, "no wildcard"),
        ({"side_channel_host": "::"}, "no wildcard"),
        ({"side_channel_port": 65536}, "a port"),
        ({"staging": "sometimes"}, "auto or always or never"),
        ({"digest": "off"}, "sample or wire or full"),
        ({"insecure": "yes"}, "true or false"),
        ({"transports": ["tcp"]}, "a text"),
        ({"peers": "10.0.0.7:5600"}, "list of host:port"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(extra, named):
    with pytest.raises(settings.SettingsError, match=named) as error:
        settings.parse(extra, 0, {})
    assert next(iter(extra)) in str(error.value)


def test_settings_of_the_fabric_are_its_variables():
    found = settings.parse({"transports": "tcp", "insecure": True}, 0, {})
    assert found.fabric() == {"MOAI_TRANSPORTS": "tcp", "MOAI_INSECURE": "1"}


# Pages


def test_blocks_that_a_backend_splits_are_its_pages():
    group = paging.Group("0", (0, 1), block_slots=128, page_slots=32)
    assert group.pages([5, 2], 200) == [20, 21, 22, 23, 8, 9, 10]
    assert group.blocks([5, 2], 200) == range(0, 2)
    with pytest.raises(ValueError, match="the request has 257"):
        group.pages([5, 2], 257)


def test_of_a_window_only_its_pages_are_listed():
    group = paging.Group("1", (0,), block_slots=32, page_slots=32, window=63)
    # The last 63 of 94 tokens begin with token 31, which is in the first page; of 95 with token 32.
    assert group.pages([7, 8, 9], 94) == [7, 8, 9]
    assert group.pages([0, 8, 9], 95) == [8, 9]
    assert group.blocks([0, 8, 9], 95) == range(1, 3)


@pytest.mark.parametrize("window", [None, 1, 20, 63])
@pytest.mark.parametrize("split", [1, 2, 4])
def test_pages_are_those_of_every_token_that_is_held(window, split):
    group = paging.Group("0", (0,), block_slots=8 * split, page_slots=8, window=window)
    table = [11, 3, 7, 20, 4, 9, 1, 30]
    for tokens in range(1, 8 * split * len(table) + 1):
        first = 0 if window is None else max(0, tokens - window)
        wanted = []
        for token in range(first // 8 * 8, tokens):
            page = table[token // group.block_slots] * split + token % group.block_slots // 8
            if page not in wanted:
                wanted.append(page)
        assert group.pages(table, tokens) == wanted


# The probe


def fitted(extents, at):
    part = probe.fit(at, extents)
    for head in range(extents[0]):
        for slot in range(extents[1]):
            for dim in range(extents[2]):
                assert part.at(head, slot, dim) == at(head, slot, dim)
    return part


def test_layouts_that_engines_have_are_found():
    heads, slots, dims = extents = (2, 16, 64)
    nhd = fitted(extents, lambda h, s, d: 2 * ((s * heads + h) * 2 * dims + d))
    assert [word for word, _ in nhd.words] == ["slot", "head", "dim"]
    cpu = fitted(extents, lambda h, s, d: 2 * (h * 2 * slots * dims + d * slots + s))
    assert [word for word, _ in cpu.words] == ["head", "dim", "slot"]
    rocm = fitted(extents, lambda h, s, d: 2 * (h * slots * dims + d // 8 * slots * 8 + s * 8 + d % 8))
    assert rocm.words == (("head", 2048), ("dim/8", 256), ("slot", 16), ("dim%8", 2))
    amx = fitted(extents, lambda h, s, d: 2 * (h * slots * dims + d // 2 * slots * 2 + s * 2 + d % 2))
    assert [word for word, _ in amx.words] == ["head", "dim/2", "slot", "dim%2"]


def test_an_axis_of_one_is_left_out():
    assert fitted((1, 4, 8), lambda h, s, d: 16 + s * 8 + d).layout(64) == {
        "text": "[layer] page slot dim",
        "offset_bytes": 16,
        "strides_bytes": {"page": 64, "slot": 8, "dim": 1},
    }


@pytest.mark.parametrize(
    "at",
    [
        lambda h, s, d: s * 8 + (d ^ 3),
        lambda h, s, d: s * 8 + 7 - d,
        lambda h, s, d: s * 8 + d + (d > 2) + (d > 4),
        lambda h, s, d: s * s * 8 + d,
    ],
)
def test_what_no_notation_says_is_refused(at):
    with pytest.raises(probe.Unexplained, match="along"):
        probe.fit(at, (1, 6, 8))


def test_formats_of_a_width_are_told_apart_by_their_codes():
    assert probe.element(0x3F80, 0x3FC0) == "bf16"
    assert probe.element(0x38, 0x3C) == "e4m3fn"
    assert probe.element(0x40, 0x44) == "e4m3fnuz"
    with pytest.raises(probe.Unexplained, match="0x7f"):
        probe.element(0x7F, 0x7F)


# Descriptions


def piece(rank: int, heads: tuple[int, int], **changes) -> describe.Piece:
    part = probe.fit(lambda h, s, d: (h * 32 + s) * 128 + 2 * d, (2, 32, 64))
    said = dict(
        rank=rank,
        layers=(0, 1),
        heads={"key": heads},
        pages=8,
        parts={"key": part},
        element="e4m3fn",
        page_stride=8192,
        scales={"key": {0: 0.5, 1: 0.25}},
        groups=(paging.Group("0", (0, 1), 32, 32),),
    )
    return describe.Piece(**{**said, **changes})


MODEL = describe.Model("m", "sha256:0", "vllm", 2, 1, {"key": 4})


def test_workers_make_one_description():
    said = describe.description(MODEL, [piece(1, (2, 4)), piece(0, (0, 2))])
    assert [rank["heads"] for rank in said["ranks"]] == [[0, 2], [2, 4]]
    assert said["components"][0]["format"]["scale"]["values"] == [0.5, 0.25]
    assert said["page_slots"] == 32 and "groups" not in said


def test_layers_without_a_cache_are_not_counted():
    groups = (paging.Group("0", (3, 7), 32, 32, 63),)
    said = describe.description(
        MODEL, [piece(rank, (0, 2), layers=(3, 7), groups=groups, scales={"key": {3: 1.0, 7: 2.0}}) for rank in (0, 1)]
    )
    assert said["model"]["layers"] == 2
    assert said["groups"] == [{"name": "0", "layers_list": [0, 1], "page_slots": 32, "window": 63}]


def test_a_stage_may_have_no_layer_of_a_group():
    """Of a pipeline of two stages the first has only windows here: vLLM gives it the group of the others, without a layer."""
    window, full = paging.Group("0", (0, 1), 32, 32, 63), paging.Group("1", (3,), 32, 32)
    more = (paging.Group("0", (2,), 32, 32, 63), full)
    stages = [
        piece(0, (0, 4), groups=(window, None)),
        piece(1, (0, 4), layers=(2, 3), groups=more, scales={"key": {2: 1.0, 3: 1.0}}),
    ]
    said = describe.description(describe.Model("m", "sha256:0", "vllm", 1, 2, {"key": 4}), stages)
    assert [group["layers_list"] for group in said["groups"]] == [[0, 1, 2], [3]]
    assert [rank["layers_list"] for rank in said["ranks"]] == [[0, 1], [2, 3]]
    assert describe.merged(stages) == describe.merged(stages[::-1]) == [paging.Group("0", (0, 1, 2), 32, 32, 63), full]
    with pytest.raises(describe.Undescribed, match=r"pipeline_parallel_size: the stage of rank 0 has no layer of cache groups \[1\]"):
        describe.check_offers(stages[::-1])
    describe.check_offers([piece(0, (0, 2)), piece(1, (2, 4))])
    with pytest.raises(describe.Undescribed, match=r"groups \[1\]: no worker has a layer"):
        describe.merged(stages[:1])
    with pytest.raises(describe.Undescribed, match="group 0: rank 1 has .*, rank 0 has"):
        describe.merged([stages[1], piece(0, (0, 4), groups=(paging.Group("0", (0, 1), 64, 64, 63), None))])


def test_workers_that_are_unlike_are_refused_by_name():
    with pytest.raises(describe.Undescribed, match="element: rank 0 has e4m3fn, rank 1 has bf16"):
        describe.description(MODEL, [piece(0, (0, 2)), piece(1, (2, 4), element="bf16")])
    with pytest.raises(describe.Undescribed, match="tp 2"):
        describe.description(MODEL, [piece(0, (0, 2))])


def test_heads_are_shared_out_or_replicated():
    assert [describe.head_interval(4, 2, rank) for rank in range(2)] == [(0, 2), (2, 4)]
    assert [describe.head_interval(2, 4, rank) for rank in range(4)] == [(0, 1), (0, 1), (1, 2), (1, 2)]


# The model's digest


def test_a_digest_is_of_the_weights_and_not_of_their_place(tmp_path):
    def saved(name: str, config: dict, data: bytes) -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        header = json.dumps({"w": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}).encode()
        (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
        return str(folder)

    data = bytes(range(256)) * 100
    one = model.digest(saved("a", {"layers": 2, "_name_or_path": "a"}, data))
    assert one == model.digest(saved("b", {"_name_or_path": "b", "layers": 2, "dtype": "float32"}, data))
    assert one != model.digest(saved("c", {"layers": 3}, data))
    assert one != model.digest(saved("d", {"layers": 2}, data[:-1] + b"\0"))
    assert model.digest(str(tmp_path / "nowhere")) is None
