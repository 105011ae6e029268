//! The codings that engines use: one entry each.
//!
//! | source | read or run at |
//! |---|---|
//! | ggml, llama.cpp | `ggml-quants.c` at `d99724f2`; gguf-py 0.19 |
//! | OCP MX | specification 1.0; torchao 0.18, microxcaling `7bc41952` |
//! | vLLM | 0.32: `triton_reshape_and_cache_flash.py`, `concat_and_cache_ds_mla`, `turboquant`, `ultraquant` |
//! | FlashMLA | `tests/quant.py` at `9241ae3e` |
//! | SGLang | 0.5.23: `kvfp4_tensor.py`, `dsa_k_cache_reference.py`, `dsv41_kv_quant_reference.py` |
//! | LMDeploy, TurboMind | `fill_kv_cache.py` and `src/turbomind` at `1263d5cd` |
//! | KIVI | `quant/new_pack.py` at `876b4d2d` |

use crate::{
    codec::{e8m0, turboquant},
    number::Number,
    rotation::Rotation,
    scheme::{
        Block, Code, Coding, Form, Least, MxMode, Packing, Place, Rule, ScaleTo, Scales, Scheme,
        Segment, Store,
    },
};

/// Every entry, in the order in which they are listed to users.
pub static ALL: &[&Scheme] = &[
    &F32,
    &F16,
    &BF16,
    &E4M3FN,
    &E4M3FNUZ,
    &E5M2,
    &E5M2FNUZ,
    &E2M3,
    &E3M2,
    &E2M1,
    &E8M0,
    &INT8,
    &UINT8,
    &INT4,
    &UINT4,
    &Q8_0,
    &Q4_0,
    &Q4_1,
    &Q5_0,
    &Q5_1,
    &IQ4_NL,
    &GGML_MXFP4,
    &GGML_NVFP4,
    &MXFP8_E4M3,
    &MXFP8_E5M2,
    &MXFP4,
    &MXINT8,
    &NVFP4,
    &SGLANG_FP4,
    &INT4_PER_TOKEN_HEAD,
    &LMDEPLOY_INT8,
    &LMDEPLOY_INT8_BF16,
    &LMDEPLOY_INT4,
    &LMDEPLOY_INT4_BF16,
    &TURBOMIND_INT8,
    &TURBOMIND_INT8_BF16,
    &TURBOMIND_INT4,
    &TURBOMIND_INT4_BF16,
    &KIVI_4BIT,
    &KIVI_2BIT,
    &FP8_DS_MLA,
    &DSV4_FP8,
    &DSV41_FP8,
    &DSV41_FP4,
    &NVFP4_DS_MLA,
    &DSV32_INDEXER,
    &ULTRAQUANT,
    &TURBOQUANT_K4,
    &TURBOQUANT_K3,
    &TURBOQUANT_V4,
    &TURBOQUANT_V3,
];

pub(crate) static F32: Scheme =
    Scheme::number("f32", Number::F32, Packing::Bytes, "IEEE 754 binary32");
pub(crate) static F16: Scheme = Scheme::number(
    "f16",
    Number::F16,
    Packing::Bytes,
    "IEEE 754 binary16, up to 65504",
);
pub(crate) static BF16: Scheme = Scheme::number(
    "bf16",
    Number::Bf16,
    Packing::Bytes,
    "the high half of an f32",
);
pub(crate) static E4M3FN: Scheme = Scheme::number(
    "e4m3fn",
    Number::E4m3fn,
    Packing::Bytes,
    "OCP float8 of NVIDIA and gfx950: bias 7, up to 448, no Inf, NaN 0x7F and 0xFF",
);
pub(crate) static E4M3FNUZ: Scheme = Scheme::number(
    "e4m3fnuz",
    Number::E4m3fnuz,
    Packing::Bytes,
    "float8 of gfx94x: bias 8, up to 240, no Inf, no negative zero, NaN 0x80",
);
pub(crate) static E5M2: Scheme = Scheme::number(
    "e5m2",
    Number::E5m2,
    Packing::Bytes,
    "OCP float8: bias 15, up to 57344, Inf and NaN as IEEE",
);
pub(crate) static E5M2FNUZ: Scheme = Scheme::number(
    "e5m2fnuz",
    Number::E5m2fnuz,
    Packing::Bytes,
    "float8 of gfx94x: bias 16, up to 57344, no Inf, no negative zero, NaN 0x80",
);
pub(crate) static E2M3: Scheme = Scheme::number(
    "e2m3",
    Number::E2m3,
    Packing::Bytes,
    "OCP float6, one code a byte: up to 7.5, no Inf, no NaN",
);
pub(crate) static E3M2: Scheme = Scheme::number(
    "e3m2",
    Number::E3m2,
    Packing::Bytes,
    "OCP float6, one code a byte: up to 28, no Inf, no NaN",
);
pub(crate) static E2M1: Scheme = Scheme::number(
    "e2m1",
    Number::E2m1,
    Packing::Dense,
    "OCP float4, even element in the low nibble: up to 6",
);
pub(crate) static E8M0: Scheme = Scheme {
    name: "e8m0",
    what: "OCP power of two, for scales: 2⁻¹²⁷ to 2¹²⁷, NaN 0xFF, no sign, no zero",
    coding: Coding::Custom(&e8m0::E8m0),
    ..Scheme::DEFAULT
};
pub(crate) static INT8: Scheme =
    Scheme::number("int8", Number::Int8, Packing::Bytes, "two's complement");
pub(crate) static UINT8: Scheme =
    Scheme::number("uint8", Number::Uint8, Packing::Bytes, "0 to 255");
pub(crate) static INT4: Scheme = Scheme::number(
    "int4",
    Number::Int4,
    Packing::Dense,
    "two's complement nibbles, even element low: −8 to 7",
);
pub(crate) static UINT4: Scheme = Scheme::number(
    "uint4",
    Number::Uint4,
    Packing::Dense,
    "nibbles, even element low: 0 to 15",
);

const fn segment(elements: u32, number: Number, packing: Packing, at: u32) -> Segment {
    Segment {
        elements,
        code: Code::Number(number),
        packing,
        at,
        scales: None,
    }
}

const fn scaled(segment: Segment, scales: Scales) -> Segment {
    Segment {
        scales: Some(scales),
        ..segment
    }
}

const fn scheme(name: &'static str, what: &'static str, block: Block) -> Scheme {
    Scheme {
        name,
        what,
        coding: Coding::Block(block),
        ..Scheme::DEFAULT
    }
}

// ---------------------------------------------------------------- ggml

const fn ggml(form: Form, rules: &'static [(&'static str, Rule)]) -> Scales {
    Scales {
        store: Store::F16,
        place: Place::Block(0),
        form,
        rules,
        ..Scales::DEFAULT
    }
}

const fn ggml_block(bytes: u32, segments: &'static [Segment]) -> Block {
    Block {
        elements: 32,
        bytes,
        segments,
        ..Block::DEFAULT
    }
}

pub(crate) static Q8_0: Scheme = scheme(
    "q8_0",
    "ggml's block of 32: f16 scale, int8",
    ggml_block(
        34,
        &[scaled(
            segment(32, Number::Int8, Packing::Bytes, 2),
            ggml(Form::Scaled, &[("ggml", Rule::GgmlAmax)]),
        )],
    ),
);
pub(crate) static Q4_0: Scheme = scheme(
    "q4_0",
    "ggml's block of 32: f16 scale, 4 bits less 8",
    ggml_block(
        18,
        &[Segment {
            code: Code::Less(Number::Uint4, 8.0),
            scales: Some(ggml(Form::Scaled, &[("ggml", Rule::GgmlSigned { n: 8.0 })])),
            ..segment(32, Number::Uint4, Packing::Halves, 2)
        }],
    ),
);
pub(crate) static Q4_1: Scheme = scheme(
    "q4_1",
    "ggml's block of 32: f16 scale and minimum, 4 bits",
    ggml_block(
        20,
        &[scaled(
            segment(32, Number::Uint4, Packing::Halves, 4),
            ggml(Form::Offset, &[("ggml", Rule::GgmlRange { n: 15.0 })]),
        )],
    ),
);
pub(crate) static Q5_0: Scheme = scheme(
    "q5_0",
    "ggml's block of 32: f16 scale, 5 bits less 16",
    ggml_block(
        22,
        &[Segment {
            code: Code::Less(Number::Uint5, 16.0),
            scales: Some(ggml(
                Form::Scaled,
                &[("ggml", Rule::GgmlSigned { n: 16.0 })],
            )),
            ..segment(32, Number::Uint5, Packing::FifthBits, 2)
        }],
    ),
);
pub(crate) static Q5_1: Scheme = scheme(
    "q5_1",
    "ggml's block of 32: f16 scale and minimum, 5 bits",
    ggml_block(
        24,
        &[scaled(
            segment(32, Number::Uint5, Packing::FifthBits, 4),
            ggml(Form::Offset, &[("ggml", Rule::GgmlRange { n: 31.0 })]),
        )],
    ),
);
pub(crate) static IQ4_NL: Scheme = scheme(
    "iq4_nl",
    "ggml's block of 32: f16 scale, 4 bits that pick from a list; read only",
    ggml_block(
        18,
        &[Segment {
            code: Code::Table(&[
                -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0,
                53.0, 69.0, 89.0, 113.0,
            ]),
            scales: Some(ggml(Form::Scaled, &[])),
            ..segment(32, Number::Uint4, Packing::Halves, 2)
        }],
    ),
);

/// ggml speaks of twice the number under half the scale.
static DOUBLED_E2M1: [f32; 16] = [
    0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0,
];
/// e2m1 without its negative zero.
static GGML_E2M1: [f32; 16] = [
    0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0,
];

pub(crate) static GGML_MXFP4: Scheme = scheme(
    "ggml_mxfp4",
    "ggml's block of 32: e8m0 scale, e2m1",
    ggml_block(
        17,
        &[Segment {
            code: Code::Table(&DOUBLED_E2M1),
            scales: Some(Scales {
                store: Store::E8m0Half,
                place: Place::Block(0),
                rules: &[("ggml", Rule::GgmlMx)],
                ..Scales::DEFAULT
            }),
            ..segment(32, Number::Uint4, Packing::Halves, 1)
        }],
    ),
);

const fn ggml_nvfp4(nth: u32) -> Segment {
    Segment {
        code: Code::Table(&GGML_E2M1),
        scales: Some(Scales {
            store: Store::E4m3fn,
            place: Place::Block(nth),
            rules: &[("ggml", Rule::GgmlNvfp4)],
            ..Scales::DEFAULT
        }),
        ..segment(16, Number::Uint4, Packing::Halves, 4 + 8 * nth)
    }
}

pub(crate) static GGML_NVFP4: Scheme = scheme(
    "ggml_nvfp4",
    "ggml's block of 64: four e4m3fn scales, e2m1 in four times 16",
    Block {
        elements: 64,
        bytes: 36,
        segments: &[ggml_nvfp4(0), ggml_nvfp4(1), ggml_nvfp4(2), ggml_nvfp4(3)],
        ..Block::DEFAULT
    },
);

// ---------------------------------------------------------------- scales in a plane of their own

/// Blocks of `elements` with a scale of `bytes` in the plane of params.
const fn apart(elements: u32, bytes: u32, segments: &'static [Segment]) -> Block {
    Block {
        elements,
        param_bytes: bytes,
        param_unit: bytes,
        segments,
        ..Block::DEFAULT
    }
}

/// Blocks of `elements` with a scale and a zero of two bytes each in the plane of params.
const fn pairs(elements: u32, segments: &'static [Segment]) -> Block {
    Block {
        param_unit: 2,
        ..apart(elements, 4, segments)
    }
}

const MX: Scales = Scales {
    store: Store::E8m0,
    rules: &[
        ("rceil", Rule::Mx(MxMode::Rceil)),
        ("floor", Rule::Mx(MxMode::Floor)),
        ("even", Rule::Mx(MxMode::Even)),
    ],
    ..Scales::DEFAULT
};

pub(crate) static MXFP8_E4M3: Scheme = scheme(
    "mxfp8_e4m3",
    "OCP microscaling: e4m3fn, an e8m0 scale for each 32",
    apart(
        32,
        1,
        &[scaled(segment(32, Number::E4m3fn, Packing::Bytes, 0), MX)],
    ),
);
pub(crate) static MXFP8_E5M2: Scheme = scheme(
    "mxfp8_e5m2",
    "OCP microscaling: e5m2, an e8m0 scale for each 32",
    apart(
        32,
        1,
        &[scaled(segment(32, Number::E5m2, Packing::Bytes, 0), MX)],
    ),
);
pub(crate) static MXFP4: Scheme = scheme(
    "mxfp4",
    "OCP microscaling: e2m1, an e8m0 scale for each 32",
    apart(
        32,
        1,
        &[scaled(segment(32, Number::E2m1, Packing::Dense, 0), MX)],
    ),
);
pub(crate) static MXINT8: Scheme = scheme(
    "mxint8",
    "OCP microscaling: int8 × 2⁻⁶, an e8m0 scale for each 32",
    apart(
        32,
        1,
        &[Segment {
            code: Code::Times(Number::Int8, 0.015625),
            scales: Some(Scales {
                rules: &[("floor", Rule::Mx(MxMode::Floor))],
                ..MX
            }),
            ..segment(32, Number::Int8, Packing::Bytes, 0)
        }],
    ),
);
pub(crate) static NVFP4: Scheme = Scheme {
    takes_constant: true,
    ..scheme(
        "nvfp4",
        "e2m1, an e4m3fn scale for each 16, a constant on top",
        apart(
            16,
            1,
            &[scaled(
                segment(16, Number::E2m1, Packing::Dense, 0),
                Scales {
                    store: Store::E4m3fn,
                    // torchao keeps scales normal; the formula alone lets them become subnormal and zero.
                    rules: &[
                        ("normal", Rule::Nvfp4 { least: 0.015625 }),
                        ("unclamped", Rule::Nvfp4 { least: 0.0 }),
                    ],
                    ..Scales::DEFAULT
                },
            )],
        ),
    )
};
pub(crate) static SGLANG_FP4: Scheme = scheme(
    "sglang_fp4_mx_block16",
    "SGLang's fp4: e2m1, an e8m0 scale for each 16",
    apart(
        16,
        1,
        &[scaled(
            segment(16, Number::E2m1, Packing::Dense, 0),
            Scales {
                store: Store::E8m0,
                rules: &[("ceil", Rule::SglangFp4)],
                ..Scales::DEFAULT
            },
        )],
    ),
);
pub(crate) static INT4_PER_TOKEN_HEAD: Scheme = Scheme {
    rotation: Rotation::Signed,
    ..scheme(
        "int4_per_token_head",
        "vLLM's rotated 4 bits: an f32 scale for each row, whose lowest bits are the zero",
        apart(
            0,
            4,
            &[scaled(
                segment(0, Number::Uint4, Packing::Dense, 0),
                Scales {
                    store: Store::F32Nibble,
                    form: Form::Point,
                    rules: &[("vllm", Rule::VllmInt4)],
                    ..Scales::DEFAULT
                },
            )],
        ),
    )
};

/// Rows with scale and zero.
const fn pair(store: Store, form: Form, rules: &'static [(&'static str, Rule)]) -> Scales {
    Scales {
        store,
        form,
        rules,
        ..Scales::DEFAULT
    }
}

const LMDEPLOY8: &[(&str, Rule)] = &[("lmdeploy", Rule::LmDeploy { n: 255.0 })];
const LMDEPLOY4: &[(&str, Rule)] = &[("lmdeploy", Rule::LmDeploy { n: 15.0 })];
const TURBOMIND8: &[(&str, Rule)] = &[("turbomind", Rule::TurboMind { n: 255.0 })];
const TURBOMIND4: &[(&str, Rule)] = &[("turbomind", Rule::TurboMind { n: 15.0 })];

pub(crate) static LMDEPLOY_INT8: Scheme = scheme(
    "lmdeploy_int8",
    "LMDeploy's PyTorch engine: 8 bits, f16 scale and zero for each row",
    pairs(
        0,
        &[scaled(
            segment(0, Number::Uint8, Packing::Bytes, 0),
            pair(Store::F16, Form::Point, LMDEPLOY8),
        )],
    ),
);
pub(crate) static LMDEPLOY_INT8_BF16: Scheme = scheme(
    "lmdeploy_int8_bf16",
    "the same with bf16 scale and zero",
    pairs(
        0,
        &[scaled(
            segment(0, Number::Uint8, Packing::Bytes, 0),
            pair(Store::Bf16, Form::Point, LMDEPLOY8),
        )],
    ),
);
pub(crate) static LMDEPLOY_INT4: Scheme = scheme(
    "lmdeploy_int4",
    "LMDeploy's PyTorch engine: 4 bits, halves of the row in the two nibbles, f16 scale and zero for each row",
    pairs(
        0,
        &[scaled(
            segment(0, Number::Uint4, Packing::Halves, 0),
            pair(Store::F16, Form::Point, LMDEPLOY4),
        )],
    ),
);
pub(crate) static LMDEPLOY_INT4_BF16: Scheme = scheme(
    "lmdeploy_int4_bf16",
    "the same with bf16 scale and zero",
    pairs(
        0,
        &[scaled(
            segment(0, Number::Uint4, Packing::Halves, 0),
            pair(Store::Bf16, Form::Point, LMDEPLOY4),
        )],
    ),
);
pub(crate) static TURBOMIND_INT8: Scheme = scheme(
    "turbomind_int8",
    "TurboMind: 8 bits, f16 scale and minimum for each row",
    pairs(
        0,
        &[scaled(
            segment(0, Number::Uint8, Packing::Bytes, 0),
            pair(Store::F16, Form::Offset, TURBOMIND8),
        )],
    ),
);
pub(crate) static TURBOMIND_INT8_BF16: Scheme = scheme(
    "turbomind_int8_bf16",
    "the same with bf16 scale and minimum",
    pairs(
        0,
        &[scaled(
            segment(0, Number::Uint8, Packing::Bytes, 0),
            pair(Store::Bf16, Form::Offset, TURBOMIND8),
        )],
    ),
);
pub(crate) static TURBOMIND_INT4: Scheme = scheme(
    "turbomind_int4",
    "TurboMind: 4 bits in the order 0 2 4 6 1 3 5 7, f16 scale and minimum for each row",
    pairs(
        0,
        &[scaled(
            segment(0, Number::Uint4, Packing::Octets, 0),
            pair(Store::F16, Form::Offset, TURBOMIND4),
        )],
    ),
);
pub(crate) static TURBOMIND_INT4_BF16: Scheme = scheme(
    "turbomind_int4_bf16",
    "the same with bf16 scale and minimum",
    pairs(
        0,
        &[scaled(
            segment(0, Number::Uint4, Packing::Octets, 0),
            pair(Store::Bf16, Form::Offset, TURBOMIND4),
        )],
    ),
);
pub(crate) static KIVI_4BIT: Scheme = scheme(
    "kivi_4bit",
    "KIVI: 4 bits, f16 scale and minimum for each 32; rows run along tokens for keys",
    pairs(
        32,
        &[scaled(
            segment(32, Number::Uint4, Packing::Dense, 0),
            pair(
                Store::F16,
                Form::OffsetF16,
                &[("kivi", Rule::Kivi { n: 15.0 })],
            ),
        )],
    ),
);
pub(crate) static KIVI_2BIT: Scheme = scheme(
    "kivi_2bit",
    "KIVI: 2 bits, f16 scale and minimum for each 32; rows run along tokens for keys",
    pairs(
        32,
        &[scaled(
            segment(32, Number::Uint2, Packing::Dense, 0),
            pair(
                Store::F16,
                Form::OffsetF16,
                &[("kivi", Rule::Kivi { n: 3.0 })],
            ),
        )],
    ),
);

// ---------------------------------------------------------------- DeepSeek

const fn tile(max: f32, least: Least, to: ScaleTo) -> Rule {
    Rule::Tile { max, least, to }
}

pub(crate) static FP8_DS_MLA: Scheme = scheme(
    "fp8_ds_mla",
    "DeepSeek V3.2's record of 576: 512 e4m3fn, 4 f32 scales of 128 each, 64 bf16",
    Block {
        elements: 576,
        bytes: 656,
        segments: &[
            scaled(
                segment(512, Number::E4m3fn, Packing::Bytes, 0),
                Scales {
                    tile: 128,
                    place: Place::Block(512),
                    rules: &[
                        (
                            "raw",
                            tile(448.0, Least::Scale(f32::MIN_POSITIVE), ScaleTo::F32),
                        ),
                        ("pow2", tile(448.0, Least::Scale(1e-4), ScaleTo::Power)),
                        (
                            "bf16",
                            tile(448.0, Least::Scale(f32::MIN_POSITIVE), ScaleTo::Bf16),
                        ),
                    ],
                    ..Scales::DEFAULT
                },
            ),
            segment(64, Number::Bf16, Packing::Bytes, 528),
        ],
        ..Block::DEFAULT
    },
);
pub(crate) static DSV4_FP8: Scheme = scheme(
    "dsv4_fp8",
    "DeepSeek V4's record of 512: 448 e4m3fn, 64 bf16; 7 e8m0 scales of 64 each and a zero byte apart",
    Block {
        elements: 512,
        bytes: 576,
        param_bytes: 8,
        param_unit: 1,
        segments: &[
            scaled(
                segment(448, Number::E4m3fn, Packing::Bytes, 0),
                Scales {
                    tile: 64,
                    store: Store::E8m0,
                    rules: &[
                        ("pow2", tile(448.0, Least::Scale(1e-4), ScaleTo::Power)),
                        ("vllm", tile(448.0, Least::Amax(1e-4), ScaleTo::Power)),
                        ("sglang", tile(448.0, Least::Amax(1e-8), ScaleTo::Power)),
                    ],
                    ..Scales::DEFAULT
                },
            ),
            segment(64, Number::Bf16, Packing::Bytes, 448),
        ],
    },
);
pub(crate) static DSV41_FP8: Scheme = scheme(
    "dsv41_fp8",
    "DeepSeek V4.1: e4m3fn, an e8m0 scale for each 32 apart",
    apart(
        32,
        1,
        &[scaled(
            segment(32, Number::E4m3fn, Packing::Bytes, 0),
            Scales {
                store: Store::E8m0,
                rules: &[
                    ("sglang", tile(448.0, Least::Scale(1e-4), ScaleTo::Power)),
                    ("vllm", tile(448.0, Least::Amax(1e-4), ScaleTo::Power)),
                ],
                ..Scales::DEFAULT
            },
        )],
    ),
);
pub(crate) static DSV41_FP4: Scheme = scheme(
    "dsv41_fp4",
    "DeepSeek V4.1: e2m1, an e4m3fn scale for each 16 apart",
    apart(
        16,
        1,
        &[scaled(
            segment(16, Number::E2m1, Packing::Dense, 0),
            Scales {
                store: Store::E4m3fn,
                rules: &[(
                    "sglang",
                    tile(6.0, Least::Scale(0.001_953_125), ScaleTo::E4m3fn),
                )],
                ..Scales::DEFAULT
            },
        )],
    ),
);
pub(crate) static NVFP4_DS_MLA: Scheme = scheme(
    "nvfp4_ds_mla",
    "vLLM's record of 576 on SM100: 512 e2m1, 64 e4m3fn, 32 e4m3fn scales of 16 each in 8 × 4 order",
    Block {
        elements: 576,
        bytes: 352,
        segments: &[
            scaled(
                segment(512, Number::E2m1, Packing::Dense, 0),
                Scales {
                    tile: 16,
                    store: Store::E4m3fn,
                    place: Place::Block(320),
                    order: 4,
                    rules: &[
                        ("normal", Rule::Nvfp4 { least: 0.015625 }),
                        ("unclamped", Rule::Nvfp4 { least: 0.0 }),
                    ],
                    ..Scales::DEFAULT
                },
            ),
            segment(64, Number::E4m3fn, Packing::Bytes, 256),
        ],
        ..Block::DEFAULT
    },
);
pub(crate) static DSV32_INDEXER: Scheme = scheme(
    "dsv32_indexer",
    "DeepSeek V3.2's indexer keys: e4m3fn, an f32 scale for each row apart",
    apart(
        0,
        4,
        &[scaled(
            segment(0, Number::E4m3fn, Packing::Bytes, 0),
            Scales {
                rules: &[
                    ("raw", tile(448.0, Least::Amax(1e-4), ScaleTo::F32)),
                    ("pow2", tile(448.0, Least::Amax(1e-4), ScaleTo::Power)),
                ],
                ..Scales::DEFAULT
            },
        )],
    ),
);

// ---------------------------------------------------------------- vLLM's rotated 4 and 3 bits

pub(crate) static ULTRAQUANT: Scheme = scheme(
    "ultraquant_4bit",
    "vLLM's UltraQuant: e2m1, an e8m0 scale for each 32 whose 0 is zero; keys are rotated, which the description says",
    apart(
        32,
        1,
        &[scaled(
            segment(32, Number::E2m1, Packing::Dense, 0),
            Scales {
                store: Store::E8m0Zero,
                rules: &[("vllm", Rule::Ultraquant)],
                ..Scales::DEFAULT
            },
        )],
    ),
);
pub(crate) static TURBOQUANT_K4: Scheme = Scheme {
    name: "turboquant_k4_nc",
    what: "vLLM's TurboQuant keys: rotated, 4 bits that pick from a list, f16 norm for each row",
    coding: Coding::Custom(&turboquant::Keys { bits: 4 }),
    rotation: Rotation::Hadamard(0),
    takes_constant: false,
};
pub(crate) static TURBOQUANT_K3: Scheme = Scheme {
    name: "turboquant_k3_nc",
    what: "the same with 3 bits",
    coding: Coding::Custom(&turboquant::Keys { bits: 3 }),
    rotation: Rotation::Hadamard(0),
    takes_constant: false,
};
pub(crate) static TURBOQUANT_V4: Scheme = scheme(
    "turboquant_v4",
    "vLLM's TurboQuant values: 4 bits, f16 scale and minimum for each row",
    pairs(
        0,
        &[scaled(
            segment(0, Number::Uint4, Packing::Dense, 0),
            pair(
                Store::F16,
                Form::Offset,
                &[("vllm", Rule::Turboquant { n: 15.0 })],
            ),
        )],
    ),
);
pub(crate) static TURBOQUANT_V3: Scheme = scheme(
    "turboquant_v3",
    "the same with 3 bits",
    pairs(
        0,
        &[scaled(
            segment(0, Number::Uint3, Packing::Dense, 0),
            pair(
                Store::F16,
                Form::Offset,
                &[("vllm", Rule::Turboquant { n: 7.0 })],
            ),
        )],
    ),
);
