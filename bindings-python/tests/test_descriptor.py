"""Descriptions, layouts of tensors, and whether sides fit."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
from caches import DECODE, PREFILL

import moai_fabric as moai


def test_a_description_is_read_from_text_or_a_dict() -> None:
    side = moai.Descriptor(PREFILL)
    assert moai.Descriptor(json.dumps(PREFILL)).digest == side.digest
    assert side.to_dict() == PREFILL
    assert (side.layers, side.ranks, side.groups) == (2, 1, ("",))
    # Two parts of 12 pages of 16 slots of 4 heads of 64 in bf16.
    assert side.regions(0) == (moai.RegionSpec("kv.0", 2 * 12 * 16 * 4 * 64 * 2), moai.RegionSpec("kv.1", 2 * 12 * 16 * 4 * 64 * 2))
    assert side.pages_needed(0, 100) == 7
    with pytest.raises(moai.Error):
        side.regions(1)
    with pytest.raises(moai.ArgumentError) as error:
        side.pages_needed(0, 100, "window")
    assert error.value.field == "group"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"page_slots": 0}, "page_slots"),
        ({"ranks": []}, "ranks"),
        ({"engnie": "x"}, "engnie"),
        ({"model": {"layers": -1}}, "line"),
    ],
)
def test_a_description_that_cannot_be_names_the_place(change: dict[str, Any], field: str) -> None:
    with pytest.raises(moai.DescriptorError) as error:
        moai.Descriptor({**PREFILL, **change})
    assert field in f"{error.value.field} {error.value}"
    assert error.value.status_name == "MOAI_DESCRIPTOR"


def test_a_layout_that_is_none_names_its_component() -> None:
    wrong = copy.deepcopy(PREFILL)
    wrong["components"][1]["layout"] = "page haed"
    with pytest.raises(moai.DescriptorError) as error:
        moai.Descriptor(wrong)
    assert "components[1].layout" in str(error.value) and "haed" in str(error.value)


@pytest.mark.parametrize("what", [5, None, b"{}", "{", {"x": {1, 2}}, "{}\0", {"x": float("nan")}])
def test_what_is_no_description_is_refused(what: Any) -> None:
    with pytest.raises(moai.DescriptorError):
        moai.Descriptor(what)


def test_layouts_come_from_shapes_and_strides() -> None:
    cache = np.zeros((2, 8, 16, 4, 64), np.float16)  # part, page, slot, head, dim
    layout = moai.layout_of_tensor(
        ["part", "page", "slot", "head", "dim"], cache.shape, cache.strides, element_bytes=2, in_bytes=True, regions=["layer"]
    )
    builder = moai.DescriptorBuilder(layers=2, page_slots=16, engine="mine 1.0", model_digest="sha256:00")
    for name in ("key", "value"):
        builder.component(name, heads=4, dim=64, pool="kv", format="f16", layout=layout)
    side = builder.rank(0, pages=8).build()
    assert side.regions(0)[0] == moai.RegionSpec("kv.0", cache.nbytes)
    # As torch counts: in elements.
    strides = [stride // 2 for stride in cache.strides]
    assert moai.layout_of_tensor(["part", "page", "slot", "head", "dim"], cache.shape, strides, element_bytes=2, regions=["layer"]) == layout


def test_one_component_is_cut_out_of_a_tensor() -> None:
    whole = np.zeros((8, 16, 4, 128), np.float16)  # keys and values side by side in each head
    layout = moai.layout_of_tensor(
        ["page", "slot", "head", "dim"],
        whole.shape,
        whole.strides,
        element_bytes=2,
        in_bytes=True,
        cuts=[moai.Cut("dim", 64, 128)],
        regions=["layer"],
    )
    assert layout["offset_bytes"] == 128


@pytest.mark.parametrize(
    ("labels", "shape", "strides", "field"),
    [
        (["page", "slot"], [2], [2, 1], "labels"),
        (["page", "slto"], [2, 2], [2, 1], "slto"),
        (["page", 5], [2, 2], [2, 1], "labels[1]"),
        (["page", "slot"], [2, -2], [2, 1], "shape[1]"),
        (["page", "slot"], [2, 2], [2, "1"], "strides[1]"),
        (["page", "slot"], [2, 2], [2, 1 << 64], "strides[1]"),
        (["page", "page"], [2, 2], [2, 1], "page"),
    ],
)
def test_dimensions_that_are_none_of_a_layout_are_refused(labels: list[Any], shape: list[int], strides: list[Any], field: str) -> None:
    with pytest.raises(moai.DescriptorError) as error:
        moai.layout_of_tensor(labels, shape, strides, element_bytes=2)
    assert field in f"{error.value.field} {error.value}"


def test_two_sides_that_fit_have_a_plan() -> None:
    its, own = moai.Descriptor(PREFILL), moai.Descriptor(DECODE)
    assert moai.check(its, own) == ()
    agreement = moai.negotiate(its, own)
    assert "key" in agreement.plan and "bf16" in agreement.plan
    assert len(agreement.digest) == 32 and agreement.digest == moai.negotiate(its, own).digest
    assert [carriage["component"] for carriage in agreement.details["carriages"]] == ["key", "value"]
    assert [(pair["producer"], pair["consumer"]) for pair in agreement.details["pairs"]] == [(0, 0)]


def test_two_sides_that_do_not_fit_have_every_obstacle_with_both_values() -> None:
    other = copy.deepcopy(DECODE)
    other["model"]["layers"] = 3
    for component in other["components"]:
        component["dim"] = 32
    its, own = moai.Descriptor(PREFILL), moai.Descriptor(other)
    with pytest.raises(moai.RefusedError) as error:
        moai.negotiate(its, own)
    obstacles = error.value.obstacles
    assert len(obstacles) >= 3 and obstacles == moai.check(its, own)
    by_field = {obstacle.field: obstacle for obstacle in obstacles}
    key = next(obstacle for field, obstacle in by_field.items() if "key" in field)
    assert ("64" in key.producer, "32" in key.consumer) == (True, True)
    assert all(obstacle.resolve for obstacle in obstacles)
    first = obstacles[0]
    assert (error.value.field, error.value.ours, error.value.theirs) == (first.field, first.producer, first.consumer)
    with pytest.raises(moai.ArgumentError) as wrong:
        moai.negotiate(its, DECODE)  # type: ignore[arg-type]
    assert wrong.value.field == "consumer"
