#!/usr/bin/env python3
"""The cases of `moai-perf translate` done with numpy and ml_dtypes, and with torch, on one thread.

Every case is described by moai-perf (--list). Each peer does it as one writes it by hand: per layer, pages are
gathered by fancy indexing, converted as a whole, and scattered by fancy indexing. Where there are several
usual ways, all are tried in the warm-up and the fastest counts; JSON lines name it.

First a small working set is dumped by moai-perf, done by each peer, and compared byte for byte. Then rounds are
timed: moai-perf and the peers take turns, medians count. GB/s are 10^9 bytes read and written a second.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import ml_dtypes
import numpy as np

# Elements that stand alone: numpy's type, greatest magnitude where a writer clamps.
SINGLE = {
    "f32": (np.float32, None),
    "f16": (np.float16, None),
    "bf16": (ml_dtypes.bfloat16, None),
    "e4m3fn": (ml_dtypes.float8_e4m3fn, 448.0),
    "e4m3fnuz": (ml_dtypes.float8_e4m3fnuz, 240.0),
    "e5m2": (ml_dtypes.float8_e5m2, 57344.0),
    "e5m2fnuz": (ml_dtypes.float8_e5m2fnuz, 57344.0),
    "e2m3": (ml_dtypes.float6_e2m3fn, 7.5),
    "e3m2": (ml_dtypes.float6_e3m2fn, 28.0),
    "int8": (np.int8, 127.0),
}
# What amax is mapped to where each row has a scale.
ROW_MAX = {"int8": 127.0, "e4m3fn": 448.0, "e4m3fnuz": 224.0}


# Groups: how many elements share a scale, and what the greatest of them is mapped to. Their units are bytes here.
GROUPS = {
    "q8_0": (32, None),
    "q4_0": (32, None),
    "q4_1": (32, None),
    "e2m1": (None, 6.0),
    "mxfp8_e4m3": (32, 448.0),
    "mxfp8_e5m2": (32, 57344.0),
    "mxfp4": (32, 6.0),
    "nvfp4": (16, 6.0),
    "dsv41_fp8": (32, 448.0),
    "dsv32_indexer": (None, 448.0),
    "lmdeploy_int8": (None, 255.0),
    "fp8_ds_mla": (128, 448.0),
}
FLOAT8 = {"mxfp8_e4m3": ml_dtypes.float8_e4m3fn, "mxfp8_e5m2": ml_dtypes.float8_e5m2}
# What each code of e2m1 is, and the exponent of the greatest number where OCP's floor asks for it.
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
EMAX = {"mxfp8_e4m3": 8, "mxfp8_e5m2": 15, "mxfp4": 2}


def widens(source, target):
    """Whether the numbers of the target hold those of the source under the same scales."""
    return source["element"] == "mxfp4" and target["element"] in FLOAT8


def can(source, target, singles):
    """Whether there is anything below for such rows."""
    known = all(side["element"] in singles or side["element"] in GROUPS for side in (source, target))
    return known and source["rotation"] == target["rotation"]


class Word:
    """One word of a layout notation: an axis, one half of a split axis, or an axis that picks a region."""

    def __init__(self, text):
        self.region = text.startswith("[")
        text = text.strip("[]").split("{")[0]
        self.axis, self.split, self.n = text, None, None
        for sign in "/%":
            if sign in text:
                self.axis, n = text.split(sign)
                self.split, self.n = sign, int(n)


class Place:
    """Where one component of one side lies, as named axes."""

    def __init__(self, case, side, component, params=False):
        told = case[side]
        self.told = told
        units, self.unit_bytes = case["dim"] // told["unit_elements"], told["unit_bytes"]
        if params:
            # Row scales are numbers, all others are bytes.
            self.unit_bytes = 4 if told["row_scales"] else 1
            units = told["params"]["units"] * told["params"]["unit_bytes"] // self.unit_bytes
        self.extents = {
            "layer": case["layers"],
            "part": case["components"],
            "page": case["tokens"] // told["page"],
            "head": case["heads"],
            "slot": told["page"],
            "dim": units,
        }
        text = told["params"]["notation"] if params else told["notations"][component]
        self.words = [Word(word) for word in text.split()]
        self.component = component
        self.first = told.get("first_params", 0) if params else told.get("first_regions", [0, 0])[component]

    def extent(self, word):
        whole = self.extents[word.axis]
        return {"/": lambda: whole // word.n, "%": lambda: word.n}.get(word.split, lambda: whole)()

    def regions(self):
        count = 1
        for word in self.words:
            if word.region:
                count *= self.extent(word)
        return count

    def names_part(self):
        return any(word.axis == "part" for word in self.words)

    def region_bytes(self):
        size = self.unit_bytes
        for word in self.words:
            if not word.region:
                size *= self.extent(word)
        return size

    def view(self, regions, layer, typed):
        """The pages of one layer: an array with the page first, and the names of the axes behind it."""
        at = {"layer": layer, "part": self.component}
        number, step = 0, 1
        for word in reversed(self.words):
            if word.region:
                number += at[word.axis] * step
                step *= self.extent(word)
        shape = [self.extent(word) for word in self.words if not word.region]
        array = typed(regions[self.first + number], shape)
        names = [(word.axis, word.split) for word in self.words if not word.region]
        for axis in ("layer", "part"):
            if (axis, None) in names:
                where = names.index((axis, None))
                array = array[(slice(None),) * where + (at[axis],)]
                names.pop(where)
        where = names.index(("page", None))
        assert where == 0, "pages lie outermost within a layer"
        return array, names[1:]


class Numpy:
    name = "numpy"

    def typed(self, element):
        kind = SINGLE[element][0] if element in SINGLE else None

        def make(region, shape):
            # Groups stay bytes, as a last axis of their own.
            return region.view(kind).reshape(shape) if kind else region.reshape(shape + [-1])

        return make

    def region(self, size, random):
        return random(size)

    def params(self, row_scales):
        return lambda region, shape: (region.view(np.float32) if row_scales else region).reshape(shape)

    def ids(self, pages):
        return np.asarray(pages)

    def permute(self, x, order):
        return x.transpose(order)

    # Moves

    def index(self, src, isrc, permute, dst, idst, kept):
        dst[idst] = permute(src[isrc])

    def take(self, src, isrc, permute, dst, idst, kept):
        shape = isrc.shape + src.shape[1:]
        if shape not in kept:
            kept[shape] = np.empty(shape, src.dtype)
        np.take(src, isrc, axis=0, out=kept[shape], mode="clip")
        dst[idst] = permute(kept[shape])

    def pages(self, src, isrc, permute, dst, idst, kept):
        if isrc.shape != idst.shape:
            raise NotImplementedError
        moved = permute(src)
        for i, j in zip(isrc.tolist(), idst.tolist()):
            dst[j] = moved[i]

    moves = ("index", "take", "pages")

    # Conversions of rows with dim last

    def convert(self, source, target, kept):
        """Ways to turn gathered rows (and their params) into rows of the target (and their params)."""
        a, b = source["element"], target["element"]
        ways = {}
        if not can(source, target, SINGLE):
            return None
        singles = a in SINGLE and b in SINGLE and not source["row_scales"] and not target["row_scales"]
        if singles and source["scale"] is None and target["scale"] is None and "int8" not in (a, b):
            ways["astype"] = lambda x, s: (x.astype(SINGLE[b][0]), None)
        else:
            if widens(source, target):
                # The scales are kept, and two codes make two bytes.
                wide = E2M1.astype(FLOAT8[b]).view(np.uint8)
                both = np.stack([np.tile(wide, 16), np.repeat(wide, 16)], axis=-1).view(np.uint16)[:, 0]

                def widen(x, s):
                    codes = both[x.reshape(x.shape[:-2] + (-1,))].view(np.uint8)
                    return codes[..., None], s

                return {"widen": widen}
            ways["eager"] = lambda x, s: self.encode(target, self.decode(source, x, s))
            ways["buffers"] = lambda x, s: self.encode(target, self.decode(source, x, s, kept), True)
        size = np.dtype(SINGLE[a][0]).itemsize if a in SINGLE else 0
        if singles and size <= 2:
            # One answer for each code.
            codes = np.arange(256**size, dtype=np.uint8 if size == 1 else np.uint16)
            with np.errstate(all="ignore"):
                answers, _ = self.encode(target, self.decode(source, codes.view(SINGLE[a][0]), None))
            answers = answers.view(f"u{answers.itemsize}")
            ways["table"] = lambda x, s: (answers[x.view(codes.dtype)].view(SINGLE[b][0]), None)
        return ways

    def decode(self, side, x, params, kept=None):
        element = side["element"]
        if element == "q8_0":
            d = x[..., :2].copy().view(np.float16).astype(np.float32)
            values = x[..., 2:].view(np.int8).astype(np.float32) * d
            return values.reshape(values.shape[:-2] + (-1,))
        if element == "fp8_ds_mla":
            x = x.reshape(x.shape[:-2] + (656,))
            codes = x[..., :512].view(ml_dtypes.float8_e4m3fn).astype(np.float32)
            tiles = codes.reshape(x.shape[:-1] + (4, 128)) * x[..., 512:528].copy().view(np.float32)[..., None]
            rope = x[..., 528:].copy().view(ml_dtypes.bfloat16).astype(np.float32)
            return np.concatenate([tiles.reshape(codes.shape), rope], axis=-1)
        if element in ("q4_0", "q4_1"):
            d = x[..., :2].copy().view(np.float16).astype(np.float32)
            codes = x[..., 4:] if element == "q4_1" else x[..., 2:]
            values = np.concatenate([codes & 15, codes >> 4], axis=-1).astype(np.float32)
            if element == "q4_1":
                values = values * d + x[..., 2:4].copy().view(np.float16).astype(np.float32)
            else:
                values = (values - np.float32(8)) * d
            return values.reshape(values.shape[:-2] + (-1,))
        if element in GROUPS:
            x = x.reshape(x.shape[:-2] + (-1,))
            if element in ("e2m1", "mxfp4", "nvfp4"):
                values = E2M1[np.stack([x & 15, x >> 4], axis=-1)].reshape(x.shape[:-1] + (-1,))
            elif element == "lmdeploy_int8":
                s, zero = np.split(params.copy().view(np.float16).astype(np.float32), 2, axis=-1)
                return (x.astype(np.float32) - zero) * s
            else:
                kind = ml_dtypes.float8_e5m2 if element.endswith("e5m2") else ml_dtypes.float8_e4m3fn
                values = x.view(kind).astype(np.float32)
            if element == "dsv32_indexer":
                return values * params.copy().view(np.float32)
            if element != "e2m1":
                if element == "nvfp4":
                    s = params.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
                else:
                    s = (params.astype(np.uint32) << 23).view(np.float32)
                values = (values.reshape(s.shape + (-1,)) * s[..., None]).reshape(values.shape)
            if side["scale"] is not None:
                values *= np.float32(side["scale"])
            return values
        if kept is None:
            values = x.astype(np.float32)
        else:
            if "values" not in kept:
                kept["values"] = np.empty(x.shape, np.float32)
            values = kept["values"]
            np.copyto(values, x, casting="unsafe")
        if params is not None:
            values *= params
        elif side["scale"] is not None:
            values *= np.float32(side["scale"])
        return values

    def encode(self, side, x, overwrite=False):
        element = side["element"]
        out = x if overwrite else None
        if element == "q8_0":
            # As gguf-py's Q8_0.quantize_blocks.
            blocks = x.reshape(x.shape[:-1] + (-1, 32))
            d = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
            with np.errstate(divide="ignore"):
                inverse = np.where(d == 0, np.float32(0), np.float32(1) / d)
            codes = away(blocks * inverse).astype(np.int8)
            return np.concatenate([d.astype(np.float16).view(np.uint8), codes.view(np.uint8)], axis=-1), None
        if element == "fp8_ds_mla":
            tiles = x[..., :512].reshape(x.shape[:-1] + (4, 128))
            amax = np.abs(tiles).max(axis=-1, keepdims=True) / np.float32(448)
            pow2_wanted = side["rule"] == "pow2"
            s = np.maximum(amax, np.float32(1e-4 if pow2_wanted else 2.0**-126))
            s = pow2(s) if pow2_wanted else s
            codes = np.clip(tiles / s, -448, 448).astype(ml_dtypes.float8_e4m3fn)
            rope = np.ascontiguousarray(x[..., 512:].astype(ml_dtypes.bfloat16)).view(np.uint8)
            parts = [codes.view(np.uint8).reshape(x.shape[:-1] + (512,)), s[..., 0].view(np.uint8), rope]
            return np.concatenate(parts, axis=-1)[..., None, :], None
        if element in ("q4_0", "q4_1"):
            # As gguf-py's quantize_blocks, in f32.
            blocks = x.reshape(x.shape[:-1] + (-1, 32))
            if element == "q4_0":
                peak = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1)[..., None], axis=-1)
                d, least, plus = peak / np.float32(-8), [], np.float32(8.5)
            else:
                least = [blocks.min(axis=-1, keepdims=True)]
                d, plus = (blocks.max(axis=-1, keepdims=True) - least[0]) / np.float32(15), np.float32(0.5)
                blocks = blocks - least[0]
            with np.errstate(divide="ignore"):
                inverse = np.where(d == 0, np.float32(0), np.float32(1) / d)
            codes = np.trunc(blocks * inverse + plus).astype(np.uint8).clip(0, 15)
            heads = [part.astype(np.float16).view(np.uint8) for part in [d, *least]]
            return np.concatenate([*heads, codes[..., :16] | codes[..., 16:] << 4], axis=-1), None
        if element in GROUPS:
            made, params = self.encode_group(side, x)
            return made[..., None], params
        kind, greatest = SINGLE[element]
        if side["row_scales"]:
            most = np.float32(ROW_MAX[element])
            s = np.maximum(np.abs(x).max(axis=-1) / most, np.float32(1e-6))
            y = np.multiply(x, (np.float32(1) / s)[..., None], out=out)
            if element == "int8":
                return np.clip(away(y), -128, 127).astype(np.int8), s[..., None]
            return np.clip(y, -most, most, out=out).astype(kind), s[..., None]
        if side["scale"] is not None:
            x = np.divide(x, np.float32(side["scale"]), out=out)
        if element == "int8":
            x = np.rint(x, out=out)
        if greatest is not None:
            x = np.clip(x, -greatest, greatest, out=out)
        return x.astype(kind), None


    def encode_group(self, side, x):
        element = side["element"]
        size, most = GROUPS[element]
        if element == "lmdeploy_int8":
            least = x.min(axis=-1, keepdims=True)
            s = (x.max(axis=-1, keepdims=True) - least) / np.float32(most)
            zero = -least / s
            codes = np.clip(np.trunc(x / s + zero + np.float32(0.5)), 0, most).astype(np.uint8)
            return codes, np.concatenate([s, zero], axis=-1).astype(np.float16).view(np.uint8)
        constant = np.float32(1 if side["scale"] is None else side["scale"])
        if element == "e2m1":
            return nibbles(x / constant), None
        groups = x.reshape(x.shape[:-1] + (-1, size or x.shape[-1]))
        amax = np.abs(groups).max(axis=-1, keepdims=True)
        if element == "dsv32_indexer":
            s = np.maximum(amax, np.float32(1e-4)) / np.float32(most)
            params = s[..., 0].view(np.uint8)
        elif element == "nvfp4":
            s = np.clip(amax / np.float32(6) / constant, np.float32(0.015625), 448).astype(ml_dtypes.float8_e4m3fn)
            params = s[..., 0].view(np.uint8)
            s = s.astype(np.float32) * constant
        else:
            if side["rule"] == "floor":
                bits = (amax.view(np.uint32) >> 23) - EMAX[element]
            else:
                over = amax / np.float32(most)
                bits = (np.maximum(over, np.float32(1e-4)) if element == "dsv41_fp8" else over).view(np.uint32)
                bits = (bits + 0x7FFFFF) >> 23
            params = bits[..., 0].astype(np.uint8)
            s = (bits << 23).view(np.float32)
        y = np.clip(groups / s, -most, most).reshape(x.shape)
        if most == 6:
            return nibbles(y), params
        kind = ml_dtypes.float8_e5m2 if element.endswith("e5m2") else ml_dtypes.float8_e4m3fn
        return y.astype(kind).view(np.uint8), params


def nibbles(y):
    """e2m1, two a byte."""
    codes = np.clip(y, -6, 6).astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
    return codes[..., ::2] | codes[..., 1::2] << 4


def away(x):
    """Half away from zero."""
    return np.trunc(x + np.copysign(np.float32(0.5), x))


def pow2(amax):
    """The power of two at or above."""
    mantissa, exponent = np.frexp(amax)
    return np.ldexp(np.float32(1), np.where(mantissa == 0.5, exponent - 1, exponent)).astype(np.float32)


class Torch:
    name = "torch"

    def __init__(self):
        import torch

        self.t = torch
        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        self.kinds = {
            "f32": torch.float32,
            "f16": torch.float16,
            "bf16": torch.bfloat16,
            "e4m3fn": torch.float8_e4m3fn,
            "e4m3fnuz": torch.float8_e4m3fnuz,
            "e5m2": torch.float8_e5m2,
            "e5m2fnuz": torch.float8_e5m2fnuz,
            "int8": torch.int8,
        }
        self.e2m1 = torch.from_numpy(E2M1)

    def typed(self, element):
        kind = self.kinds.get(element)

        def make(region, shape):
            return region.view(kind).view(shape) if kind else region.view(shape + [-1])

        return make

    def region(self, size, random):
        return self.t.from_numpy(random(size))

    def params(self, row_scales):
        return lambda region, shape: (region.view(self.t.float32) if row_scales else region).view(shape)

    def ids(self, pages):
        return self.t.tensor(pages)

    def permute(self, x, order):
        return x.permute(order)

    def index(self, src, isrc, permute, dst, idst, kept):
        dst[idst] = permute(src[isrc])

    def select(self, src, isrc, permute, dst, idst, kept):
        if isrc.dim() > 1 or idst.dim() > 1:
            raise NotImplementedError
        shape = (len(isrc),) + tuple(src.shape[1:])
        if shape not in kept:
            kept[shape] = self.t.empty(shape, dtype=src.dtype)
        self.t.index_select(src, 0, isrc, out=kept[shape])
        dst.index_copy_(0, idst, permute(kept[shape]))

    def pages(self, src, isrc, permute, dst, idst, kept):
        if isrc.shape != idst.shape:
            raise NotImplementedError
        moved = permute(src)
        for i, j in zip(isrc.tolist(), idst.tolist()):
            dst[j].copy_(moved[i])

    moves = ("index", "select", "pages")

    def convert(self, source, target, kept):
        a, b = source["element"], target["element"]
        if not can(source, target, self.kinds):
            return None
        plain = source["scale"] is None and target["scale"] is None
        rows = source["row_scales"] or target["row_scales"]
        ways = {}
        if a in self.kinds and b in self.kinds and plain and not rows and "int8" not in (a, b):
            ways["to"] = lambda x, s: (x.to(self.kinds[b]), None)
        else:
            if widens(source, target):
                kind = self.t.float8_e5m2 if b.endswith("e5m2") else self.t.float8_e4m3fn
                wide = self.e2m1.to(kind).view(self.t.uint8)
                both = self.t.stack([wide.repeat(16), wide.repeat_interleave(16)], dim=-1).view(self.t.int16)[:, 0]

                def widen(x, s):
                    codes = both[x.flatten(-2).int()].view(self.t.uint8)
                    return codes[..., None], s

                return {"widen": widen}
            ways["eager"] = lambda x, s: self.encode(target, self.decode(source, x, s))
        if (a, b) == ("e4m3fn", "e4m3fnuz") and not rows and target["scale"] == 2 * source["scale"]:
            # As vLLM's normalize_e4m3fn_to_e4m3fnuz: codes are kept, -0 becomes 0.
            def normalize(x, s):
                bits = x.view(self.t.int8)
                bits[bits == -128] = 0
                return bits.view(self.t.float8_e4m3fnuz), None

            ways["bits"] = normalize
        return ways

    def decode(self, side, x, params):
        t, element = self.t, side["element"]
        if element == "q8_0":
            d = x[..., :2].contiguous().view(t.float16).float()
            return (x[..., 2:].view(t.int8).float() * d).flatten(-2)
        if element == "fp8_ds_mla":
            x = x.flatten(-2)
            codes = x[..., :512].view(t.float8_e4m3fn).float().unflatten(-1, (4, 128))
            tiles = codes * x[..., 512:528].contiguous().view(t.float32)[..., None]
            return t.cat([tiles.flatten(-2), x[..., 528:].contiguous().view(t.bfloat16).float()], dim=-1)
        if element in ("q4_0", "q4_1"):
            d = x[..., :2].contiguous().view(t.float16).float()
            codes = x[..., 4:] if element == "q4_1" else x[..., 2:]
            values = t.cat([codes & 15, codes >> 4], dim=-1).float()
            if element == "q4_1":
                return (values * d + x[..., 2:4].contiguous().view(t.float16).float()).flatten(-2)
            return ((values - 8) * d).flatten(-2)
        if element in GROUPS:
            x = x.flatten(-2)
            if element in ("e2m1", "mxfp4", "nvfp4"):
                values = self.e2m1[t.stack([x & 15, x >> 4], dim=-1).flatten(-2).int()]
            elif element == "lmdeploy_int8":
                s, zero = params.contiguous().view(t.float16).float().chunk(2, dim=-1)
                return (x.float() - zero) * s
            else:
                values = x.view(t.float8_e5m2 if element.endswith("e5m2") else t.float8_e4m3fn).float()
            if element == "dsv32_indexer":
                return values * params.contiguous().view(t.float32)
            if element != "e2m1":
                kind = t.float8_e4m3fn if element == "nvfp4" else t.float8_e8m0fnu
                s = params.contiguous().view(kind).float()[..., None]
                values = (values.unflatten(-1, (s.shape[-2], -1)) * s).flatten(-2)
            return values if side["scale"] is None else values.mul_(side["scale"])
        values = x.float()
        if params is not None:
            return values.mul_(params)
        # `float` of an f32 is the same tensor.
        if side["scale"] is not None:
            return values.mul_(side["scale"]) if element != "f32" else values * side["scale"]
        return values

    def encode(self, side, x):
        t, element = self.t, side["element"]
        if element == "q8_0":
            blocks = x.unflatten(-1, (-1, 32))
            d = blocks.abs().amax(dim=-1, keepdim=True) / 127
            inverse = t.where(d == 0, 0.0, 1 / d)
            codes = self.away(blocks * inverse).to(t.int8)
            return t.cat([d.to(t.float16).view(t.uint8), codes.view(t.uint8)], dim=-1), None
        if element == "fp8_ds_mla":
            tiles = x[..., :512].unflatten(-1, (4, 128))
            amax = tiles.abs().amax(dim=-1, keepdim=True) / 448
            if side["rule"] == "pow2":
                mantissa, exponent = t.frexp(amax.clamp(min=1e-4))
                s = t.ldexp(t.ones_like(amax), t.where(mantissa == 0.5, exponent - 1, exponent))
            else:
                s = amax.clamp(min=2.0**-126)
            codes = (tiles / s).clamp_(-448, 448).to(t.float8_e4m3fn)
            rope = x[..., 512:].to(t.bfloat16).contiguous().view(t.uint8)
            parts = [codes.view(t.uint8).flatten(-2), s[..., 0].contiguous().view(t.uint8), rope]
            return t.cat(parts, dim=-1)[..., None, :], None
        if element in ("q4_0", "q4_1"):
            blocks = x.unflatten(-1, (-1, 32))
            if element == "q4_0":
                d = blocks.gather(-1, blocks.abs().argmax(dim=-1, keepdim=True)) / -8
                least, plus = [], 8.5
            else:
                least = [blocks.amin(dim=-1, keepdim=True)]
                d, plus = (blocks.amax(dim=-1, keepdim=True) - least[0]) / 15, 0.5
                blocks = blocks - least[0]
            inverse = t.where(d == 0, 0.0, 1 / d)
            codes = (blocks * inverse).add_(plus).to(t.uint8).clamp_(0, 15)
            heads = [part.to(t.float16).view(t.uint8) for part in [d, *least]]
            return t.cat([*heads, codes[..., :16] | codes[..., 16:] << 4], dim=-1), None
        if element in GROUPS:
            made, params = self.encode_group(side, x)
            return made[..., None], params
        kind = self.kinds[element]
        greatest = SINGLE[element][1]
        if side["row_scales"]:
            most = ROW_MAX[element]
            s = (x.abs().amax(dim=-1) / most).clamp_(min=1e-6)
            y = x * (1 / s)[..., None]
            if element == "int8":
                return self.away(y).clamp_(-128, 127).to(t.int8), s[..., None]
            return y.clamp_(-most, most).to(kind), s[..., None]
        if side["scale"] is not None:
            x = x / side["scale"]
        if element == "int8":
            x = x.round()
        if greatest is not None:
            x = x.clamp(-greatest, greatest)
        return x.to(kind), None

    def encode_group(self, side, x):
        t, element = self.t, side["element"]
        size, most = GROUPS[element]
        if element == "lmdeploy_int8":
            least = x.amin(dim=-1, keepdim=True)
            s = (x.amax(dim=-1, keepdim=True) - least) / most
            zero = -least / s
            codes = (x / s).add_(zero).add_(0.5).trunc_().clamp_(0, most).to(t.uint8)
            return codes, t.cat([s, zero], dim=-1).to(t.float16).view(t.uint8)
        constant = 1.0 if side["scale"] is None else side["scale"]
        if element == "e2m1":
            return self.nibbles(x / constant), None
        groups = x.unflatten(-1, (-1, size or x.shape[-1]))
        amax = groups.abs().amax(dim=-1, keepdim=True)
        if element == "dsv32_indexer":
            s = amax.clamp_(min=1e-4) / most
            params = s[..., 0].contiguous().view(t.uint8)
        elif element == "nvfp4":
            s = (amax / 6 / constant).clamp_(0.015625, 448).to(t.float8_e4m3fn)
            params = s[..., 0].contiguous().view(t.uint8)
            s = s.float() * constant
        else:
            if side["rule"] == "floor":
                bits = (amax.view(t.int32) >> 23) - EMAX[element]
            else:
                over = amax / most
                bits = (over.clamp_(min=1e-4) if element == "dsv41_fp8" else over).view(t.int32)
                bits = (bits + 0x7FFFFF) >> 23
            params = bits[..., 0].to(t.uint8)
            s = (bits << 23).view(t.float32)
        y = (groups / s).clamp_(-most, most).flatten(-2)
        if most == 6:
            return self.nibbles(y), params
        kind = t.float8_e5m2 if element.endswith("e5m2") else t.float8_e4m3fn
        return y.to(kind).view(t.uint8), params

    def nibbles(self, y):
        """e2m1, two a byte, by its midpoints."""
        t, a = self.t, y.abs()
        codes = (a > 0.25).to(t.uint8)
        for over in ((a >= 0.75), (a > 1.25), (a >= 1.75), (a > 2.5), (a >= 3.5), (a > 5)):
            codes += over
        codes |= t.signbit(y).to(t.uint8) << 3
        return codes[..., ::2] | codes[..., 1::2] << 4

    def away(self, x):
        return x.add(self.t.copysign(self.t.tensor(0.5), x)).trunc_()


class Job:
    """A case as one peer does it."""

    def __init__(self, peer, case, source, target):
        self.peer, self.case = peer, case
        self.sources, self.targets = source, target
        self.steps, self.kept = [], {}
        a, b = case["source"], case["target"]
        self.move = all(a[key] == b[key] for key in ("element", "scale", "row_scales", "rotation"))
        self.ways = peer.moves if self.move else peer.convert(a, b, self.kept)
        if self.ways is None:
            return
        # The side of smaller pages is indexed in two dimensions: of a larger page, and within it.
        small = min(a["page"], b["page"])
        ids = {}
        for side in ("source", "target"):
            pages = peer.ids(case[side]["pages"])
            ratio = max(a["page"], b["page"]) // case[side]["page"]
            ids[side] = pages.reshape(-1, ratio) if ratio > 1 else pages
        same = a["page"] == b["page"]
        for layer in range(case["layers"]):
            for component in range(case["components"]):
                for params in [False, True] if a["params"] and self.move else [False]:
                    sides = [
                        self.fine(side, component, layer, small, same, params) for side in ("source", "target")
                    ]
                    step = {"ids": ids, "src": sides[0], "dst": sides[1]}
                    if not self.move:
                        for side, key in ((a, "src_params"), (b, "dst_params")):
                            name = "source" if key == "src_params" else "target"
                            if side["params"]:
                                step[key] = self.fine(name, component, layer, small, same, True)
                    self.steps.append(step)

    def fine(self, side, component, layer, small, same, params=False):
        """A side's pages with axes cut where either side cuts them, and the names of what indexing gives."""
        case, told = self.case, self.case[side]
        place = Place(case, side, component, params)
        regions = self.sources if side == "source" else self.targets
        typed = self.peer.params(told["row_scales"]) if params else self.peer.typed(told["element"])
        array, names = place.view(regions, layer, typed)
        group = [] if params or told["element"] in SINGLE else ["bytes"]
        # Splits of dim on either side; conversions take rows whole, so theirs is put together behind.
        splits = set()
        for other in ("source", "target"):
            for word in Place(case, other, component).words:
                if word.axis == "dim" and word.split and case[other]["unit_elements"] == 1:
                    splits.add(word.n)
        splits = sorted(splits, reverse=True) if not params else []
        bounds = [place.extents["dim"], *splits, 1] if not group else None
        shape, fine = [array.shape[0]], []
        for (axis, split), size in zip(names, array.shape[1:]):
            if axis == "slot" and size > small:
                shape += [size // small, small]
                fine += ["of page", "slot"]
            elif axis == "dim" and bounds and len(bounds) > 2:
                word = next(w for w in place.words if w.axis == "dim" and w.split == split)
                low = {None: 1, "/": word.n, "%": 1}[split]
                high = {None: bounds[0], "/": bounds[0], "%": word.n}[split]
                for k in range(len(bounds) - 1):
                    if high >= bounds[k] > bounds[k + 1] >= low:
                        shape.append(bounds[k] // bounds[k + 1])
                        fine.append(f"dim {k}")
            else:
                shape.append(size)
                fine.append("dim 0" if axis == "dim" else axis)
        # What has one of an axis need not name it.
        for axis in ("head", "slot"):
            if axis not in fine:
                shape, fine = [*shape, 1], [*fine, axis]
        array = array.reshape(shape + list(array.shape[len(names) + 1 :]))
        # A side indexed in two dimensions has the place within the larger page second.
        head = ["page"] if same or told["page"] > small else ["page", "of page"]
        return array, head + fine + group

    def run(self, way):
        peer = self.peer
        for step in self.steps:
            (src, given), (dst, wanted) = step["src"], step["dst"]
            isrc, idst = step["ids"]["source"], step["ids"]["target"]
            if self.move:
                order = [given.index(name) for name in wanted]
                getattr(peer, way)(
                    src, isrc, lambda x: peer.permute(x, order) if order != sorted(order) else x, dst, idst, self.kept
                )
                continue
            # Rows whole and last: axes other than dim first, in the order of the source.
            x = src[isrc]
            dims = sorted(name for name in given if name.startswith("dim"))
            tail = ["bytes"] if "bytes" in given else []
            rest = [name for name in given if not name.startswith("dim") and name != "bytes"]
            order = [given.index(name) for name in rest + dims + tail]
            if order != sorted(order):
                x = peer.permute(x, order)
            sizes = list(x.shape[: len(rest)])
            fine = list(x.shape[len(rest) : len(rest) + len(dims)])
            x = x.reshape(sizes + [-1] + list(x.shape[len(rest) + len(dims) :]))
            params = None
            if "src_params" in step:
                array, names = step["src_params"]
                params = peer.permute(array[isrc], [names.index(name) for name in rest + ["dim 0"]])
            made, made_params = self.ways[way](x, params)
            out = ["bytes"] if "bytes" in wanted else []
            cut = [made.shape[len(rest)]] if out or tail else fine
            made = made.reshape(sizes + cut + list(made.shape[len(rest) + 1 :]))
            names = rest + sorted(name for name in wanted if name.startswith("dim")) + out
            dst[idst] = peer.permute(made, [names.index(name) for name in wanted])
            if "dst_params" in step:
                array, wanted = step["dst_params"]
                array[idst] = peer.permute(made_params, [(rest + ["dim 0"]).index(name) for name in wanted])


def pools(case, peer, random):
    """Regions of both sides, filled by `random`, when no dump has them."""
    made = []
    for side in ("source", "target"):
        told = case[side]
        regions, firsts = [], []
        for component in range(case["components"]):
            place = Place(case, side, component)
            if component == 0 or not place.names_part():
                firsts.append(len(regions))
                regions += [peer.region(place.region_bytes(), random(told, 0)) for _ in range(place.regions())]
            else:
                firsts.append(0)
        told["first_regions"], told["first_params"] = firsts, len(regions)
        if told["params"]:
            place = Place(case, side, 0, params=True)
            regions += [peer.region(place.region_bytes(), random(told, 1)) for _ in range(place.regions())]
        made.append(regions)
    return made


def filler(generator):
    """Bytes as they occur: values of deviation 1 in the element of the side, codes (0) or params (1)."""

    def random(told, which):
        def make(size):
            values = generator.standard_normal(1 << 20, dtype=np.float32)
            rows = values[: len(values) // told["dim"] * told["dim"]].reshape(-1, told["dim"])
            made = Numpy().encode(told, rows)[which]
            return np.resize(np.ascontiguousarray(made).view(np.uint8).reshape(-1), size)

        return make

    return random


def fastest(job):
    """Tries every way once to warm up and once more: the name of the fastest, and the time of each."""
    tried = {}
    for way in job.ways:
        try:
            job.run(way)
        except NotImplementedError:
            continue
        start = time.perf_counter()
        job.run(way)
        tried[way] = time.perf_counter() - start
    return min(tried, key=tried.get), tried


class Moai:
    """moai-perf, asked for one case at a time."""

    def __init__(self, program, folder):
        self.program, self.folder = program, pathlib.Path(folder)

    def ask(self, *options):
        out = self.folder / "lines"
        done = subprocess.run(
            [self.program, "translate", "--threads", "1", "--json", out, *map(str, options)],
            stdout=subprocess.DEVNULL,
        )
        if done.returncode:
            # It has said why.
            sys.exit(done.returncode)
        return [json.loads(line) for line in out.read_text().splitlines()]


def name(case):
    return ["--layout", ":".join(case["layout"]), "--format", ":".join(case["format"])]


def complete(case):
    for side in ("source", "target"):
        case[side]["dim"] = case["dim"]
        # The scale is an f32; both sides of its own division use that number.
        if case[side]["scale"] is not None:
            case[side]["scale"] = float(np.float32(case[side]["scale"]))
    return case


def compare(moai, case, peers, mib):
    """Every way of every peer on a dumped case: bytes of the target that differ from moai's, by peer."""
    with tempfile.TemporaryDirectory() as folder:
        moai.ask(*name(case), "--size", mib, "--rounds", 1, "--dump", folder)
        place = pathlib.Path(folder) / "0"
        told = complete(json.loads((place / "case.json").read_text()))
        read = lambda side: [
            np.fromfile(place / f"{side}.{n}", np.uint8) for n in range(len(list(place.glob(f"{side}.*"))))
        ]
        expected = read("target")
        found = {}
        for peer in peers:
            for way in ways(peer, told):
                source = [peer.region(len(r), lambda _, r=r: r.copy()) for r in read("source")]
                target = [peer.region(len(r), lambda size: np.full(size, 0xA5, np.uint8)) for r in expected]
                job = Job(peer, told, source, target)
                try:
                    job.run(way)
                except NotImplementedError:
                    continue
                wrong = sum(int((np.asarray(got) != want).sum()) for got, want in zip(target, expected))
                found.setdefault(peer.name, {})[way] = wrong
        return found, sum(len(r) for r in expected)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moai", required=True, help="the program moai-perf")
    parser.add_argument("--without-torch", action="store_true", help="numpy and ml_dtypes only")
    parser.add_argument("--layout", action="append", default=[], metavar="FROM:TO", help="as moai-perf's")
    parser.add_argument("--format", action="append", default=[], metavar="FROM:TO", help="as moai-perf's")
    parser.add_argument("--only", metavar="PART", help="as moai-perf's")
    parser.add_argument("--size", type=int, default=256, metavar="MIB", help="working set of each case")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds of each turn")
    parser.add_argument("--turns", type=int, default=2, help="turns that moai-perf and each peer have")
    parser.add_argument("--compare-size", type=int, default=4, metavar="MIB", help="working set compared")
    parser.add_argument("--json", metavar="FILE", help="write every row as JSON lines")
    options = parser.parse_args()
    peers = [Numpy()] if options.without_torch else [Numpy(), Torch()]
    lines = open(options.json, "w") if options.json else None
    differ = 0
    with tempfile.TemporaryDirectory() as folder:
        moai = Moai(options.moai, folder)
        asked = [word for key in ("layout", "format") for text in getattr(options, key) for word in (f"--{key}", text)]
        asked += ["--only", options.only] if options.only else []
        cases = [case for case in moai.ask(*asked, "--size", options.size, "--list") if case["layout"][1] != "wire"]
        machine = moai.ask("--layout", "nhd:nhd", "--size", 1, "--rounds", 1)[0]
        versions = [f"numpy {np.__version__}, ml_dtypes {ml_dtypes.__version__}"]
        versions += [f"torch {peer.t.__version__}" for peer in peers if peer.name == "torch"]
        print(f"machine  {machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}")
        print(f"build    moai-perf {machine['version']}, {machine['build']}, commit {machine['commit']}")
        print(f"peers    {', '.join(versions)}; one thread each")
        rounds = options.turns * options.rounds
        print(f"cases    {len(cases)}, {options.size} MiB read and written in each, median of {rounds} rounds\n")
        columns = "".join(f"  {peer.name:>6}  {'ours/it':>7}" for peer in peers)
        print(f"{'layout':28}  {'format':33}  {'memcpy':>6}  {'ours':>6}{columns}  codes", flush=True)
        if lines:
            print(json.dumps({**machine, "peers": versions}), file=lines)
        for case in map(complete, cases):
            found, size = compare(moai, case, peers, options.compare_size)
            generator = np.random.default_rng(1)
            for side in ("source", "target"):
                pages = case["tokens"] // case[side]["page"]
                case[side]["pages"] = generator.permutation(pages).tolist()
            jobs = {}
            for peer in peers:
                if ways(peer, case):
                    job = Job(peer, case, *pools(case, peer, filler(generator)))
                    jobs[peer.name] = (job, *fastest(job), [])
            ours, copies = [], []
            for _ in range(options.turns):
                row = moai.ask(*name(case), "--size", options.size, "--rounds", options.rounds)[1]
                ours.append(row["rate"]["gb_s"])
                copies.append(row["memcpy"]["gb_s"])
                for job, way, _, times in jobs.values():
                    job.run(way)
                    for _ in range(options.rounds):
                        start = time.perf_counter()
                        job.run(way)
                        times.append(time.perf_counter() - start)
            row = {
                "kind": "peers",
                "layout": case["layout"],
                "format": case["format"],
                "threads": 1,
                "bytes": case["bytes"],
                "memcpy_gb_s": statistics.median(copies),
                "ours_gb_s": statistics.median(ours),
            }
            cells, codes = "", []
            for peer in peers:
                if peer.name not in jobs:
                    cells += f"  {'–':>6}  {'–':>7}"
                    continue
                _, way, tried, times = jobs[peer.name]
                rate = case["bytes"] / statistics.median(times) / 1e9
                ratio = row["ours_gb_s"] / rate
                wrong = found[peer.name][way]
                differ += wrong > 0
                row[peer.name] = {
                    "gb_s": rate,
                    "least_gb_s": case["bytes"] / max(times) / 1e9,
                    "most_gb_s": case["bytes"] / min(times) / 1e9,
                    "way": way,
                    "tried_gb_s": {name: case["bytes"] / took / 1e9 for name, took in tried.items()},
                    "ours_over_it": ratio,
                    "bytes_that_differ": wrong,
                    "bytes_compared": size,
                }
                cells += f"  {rate:6.2f}  {ratio:6.1f}×"
                codes.append(f"{way} equal" if wrong == 0 else f"{way} {wrong} of {size} differ")
            del jobs
            print(
                f"{' → '.join(case['layout']):28}  {' → '.join(case['format']):33}"
                f"  {row['memcpy_gb_s']:6.2f}  {row['ours_gb_s']:6.2f}{cells}  {'; '.join(codes)}",
                flush=True,
            )
            if lines:
                print(json.dumps(row), file=lines, flush=True)
    return 1 if differ else 0


def ways(peer, case):
    """Names of the ways in which a peer can do a case."""
    a, b = case["source"], case["target"]
    if all(a[key] == b[key] for key in ("element", "scale", "row_scales", "rotation")):
        return list(peer.moves)
    return list(peer.convert(a, b, {}) or ())


if __name__ == "__main__":
    sys.exit(main())
