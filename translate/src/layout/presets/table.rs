//! The presets themselves.

use super::{Component, Preset};

const fn preset(
    name: &'static str,
    components: &'static [Component],
    source: &'static str,
) -> Preset {
    Preset {
        name,
        components,
        source,
    }
}

const fn at(name: &'static str, text: &'static str) -> Component {
    Component {
        name,
        text,
        offset: "0",
        strides: &[],
        pool: "kv",
        row: "",
    }
}

impl Component {
    const fn from(self, offset: &'static str) -> Self {
        Self { offset, ..self }
    }

    const fn by(self, strides: &'static [(&'static str, &'static str)]) -> Self {
        Self { strides, ..self }
    }

    const fn of(self, pool: &'static str) -> Self {
        Self { pool, ..self }
    }

    const fn holds(self, row: &'static str) -> Self {
        Self { row, ..self }
    }
}

/// Key and value in the same layout.
macro_rules! both {
    ($text:literal) => {
        &[at("key", $text), at("value", $text)]
    };
}

/// Key and value, each with a layout of its own.
macro_rules! each {
    ($key:literal, $value:literal) => {
        &[at("key", $key), at("value", $value)]
    };
}

/// Key and value in tensors of their own.
macro_rules! apart {
    ($key:literal, $value:literal) => {
        &[at("key", $key).of("k"), at("value", $value).of("v")]
    };
}

/// Cells that hold K, K's scales, V and V's scales; the first word is the one that steps over cells.
macro_rules! cells {
    ($text:literal, $word:literal, $cell:literal, $scale:literal) => {
        &[
            at("key", $text).by(&[($word, $cell)]),
            at("key.scale", $text)
                .from("key")
                .by(&[($word, $cell)])
                .holds($scale),
            at("value", $text)
                .from("key + key.scale")
                .by(&[($word, $cell)]),
            at("value.scale", $text)
                .from("key + key.scale + value")
                .by(&[($word, $cell)])
                .holds($scale),
        ]
    };
}

/// Rows with their scale behind them, K and V apart by `part` bytes.
macro_rules! padded {
    ($text:literal, $page:literal, $part:literal) => {
        &[
            at("key", $text).by(&[("head", "key + key.scale"), ("page", $page)]),
            at("key.scale", $text)
                .from("key")
                .by(&[("head", "key + key.scale"), ("page", $page)])
                .holds("one f32"),
            at("value", $text)
                .from($part)
                .by(&[("head", "value + value.scale"), ("page", $page)]),
            at("value.scale", $text)
                .from(concat!($part, " + value"))
                .by(&[("head", "value + value.scale"), ("page", $page)])
                .holds("one f32"),
        ]
    };
}

/// Pages that hold all K data, all K scales, all V data and all V scales.
macro_rules! planes {
    ($text:literal, $v_scale:literal) => {
        &[
            at("key", $text).by(PLANES).holds("e2m1, two a byte"),
            at("key.scale", $text)
                .from("heads*slots*key")
                .by(PLANES)
                .holds("one e4m3fn for each 16"),
            at("value", $text)
                .from("heads*slots*(key + key.scale)")
                .by(PLANES)
                .holds("e2m1, two a byte"),
            at("value.scale", $v_scale)
                .from("heads*slots*(key + key.scale + value)")
                .by(PLANES)
                .holds("one e4m3fn for each 16"),
        ]
    };
}

const PLANES: &[(&str, &str)] = &[(
    "page",
    "heads*slots*(key + key.scale + value + value.scale)",
)];

/// An indexer's page: values, then scales.
macro_rules! indexer {
    ($text:literal) => {
        &[
            at("indexer", $text)
                .by(&[("page", "slots*(indexer + indexer.scale)")])
                .holds("128 e4m3fn"),
            at("indexer.scale", "[layer] page slot dim")
                .from("slots*indexer")
                .by(&[("page", "slots*(indexer + indexer.scale)")])
                .holds("one f32"),
        ]
    };
}

/// A page of latents, then their scales, rounded up.
macro_rules! latents {
    ($page:literal, $row:literal, $scale:literal) => {
        &[
            at("latent", "[layer] page slot dim")
                .by(&[("page", $page)])
                .holds($row),
            at("latent.scale", "[layer] page slot dim")
                .from("slots*latent")
                .by(&[("page", $page)])
                .holds($scale),
        ]
    };
}

/// All presets, in alphabetical order of their names.
///
/// `x` of the packed layouts is 16 bytes worth of elements, so presets exist for one-byte and
/// two-byte elements.
pub const ALL: &[Preset] = &[
    preset(
        "llama.cpp",
        apart!("[layer] page head dim", "[layer] page head dim"),
        "llama.cpp with flash attention: cells are pages of one token, K and V are tensors of their own",
    ),
    preset(
        "llama.cpp/streams",
        apart!("[layer] page slot head dim", "[layer] page slot head dim"),
        "llama.cpp with flash attention and a cache split by sequence: a page is a stream, a slot a cell",
    ),
    preset(
        "llama.cpp/streams_transposed_v",
        apart!("[layer] page slot head dim", "[layer] page head dim slot"),
        "llama.cpp without flash attention, cache split by sequence: V transposed over a stream's cells",
    ),
    preset(
        "llama.cpp/transposed_v",
        apart!("[layer] page head dim", "[layer] head dim page"),
        "llama.cpp without flash attention: V transposed over all cells",
    ),
    preset(
        "lmdeploy/pytorch",
        apart!("[layer] page slot head dim", "[layer] page slot head dim"),
        "LMDeploy PyTorch engine: K and V tensors (blocks, tokens, heads, dim) of each layer",
    ),
    preset(
        "lmdeploy/pytorch_quantized",
        &[
            at("key", "[layer] page slot head dim").of("k"),
            at("key.scale", "[layer] page slot head dim")
                .of("k.scale")
                .holds("scale, zero point"),
            at("value", "[layer] page slot head dim").of("v"),
            at("value.scale", "[layer] page slot head dim")
                .of("v.scale")
                .holds("scale, zero point"),
        ],
        "LMDeploy PyTorch engine, int8 and int4: scales in tensors (blocks, tokens, heads, 2)",
    ),
    preset(
        "lmdeploy/turbomind",
        both!("page layer head part slot dim"),
        "LMDeploy turbomind/kernels/attention/block.h, without quantization",
    ),
    preset(
        "lmdeploy/turbomind_quantized",
        &[
            at("key", "page layer head part slot dim").by(TURBOMIND),
            at("key.scale", "page layer head slot dim")
                .from("heads*slots*(key + value)")
                .by(TURBOMIND_SCALES)
                .holds("scale, least value"),
            at("value", "page layer head part slot dim").by(TURBOMIND),
            at("value.scale", "page layer head slot dim")
                .from("heads*slots*(key + value) + slots*key.scale")
                .by(TURBOMIND_SCALES)
                .holds("scale, least value"),
        ],
        "LMDeploy turbomind/kernels/attention/block.h, int8 and int4: all data of a layer, then its parameters",
    ),
    preset(
        "mla",
        &[at("latent", "[layer] page slot dim").holds("512 latent, 64 rope")],
        "vLLM, SGLang and FlashMLA: 512 latent and 64 rope elements a token, one head",
    ),
    preset(
        "sglang/dsv32_indexer",
        indexer!("[layer] page slot dim"),
        "SGLang mem_cache/memory_pool.py: index buffer (pages, page_size * (128 + 4)) of each layer",
    ),
    preset(
        "sglang/dsv41_fp4",
        latents!(
            "up(slots*(latent + latent.scale), 256)",
            "512 e2m1, two a byte",
            "32 e4m3fn, one for each 16"
        ),
        "SGLang, DeepSeek V4.1 in fp4: 256 bytes of data a token, then 32 of scales, pages of whole 256 bytes",
    ),
    preset(
        "sglang/hicache_layer_first",
        both!("part layer page slot head dim"),
        "SGLang mem_cache/memory_pool_host.py, layer_first: (2, layers, tokens, heads, dim)",
    ),
    preset(
        "sglang/hicache_page_first",
        both!("part page slot layer head dim"),
        "SGLang mem_cache/memory_pool_host.py, page_first: (2, tokens, layers, heads, dim)",
    ),
    preset(
        "sglang/hicache_page_first_direct",
        both!("part page layer slot head dim"),
        "SGLang mem_cache/memory_pool_host.py, page_first_direct: (2, pages, layers, page_size, heads, dim)",
    ),
    preset(
        "sglang/hicache_page_head",
        both!("part page head slot layer dim"),
        "SGLang mem_cache/memory_pool_host.py, page_head: (2, pages, heads, page_size, layers, dim)",
    ),
    preset(
        "sglang/mha",
        both!("[layer] [part] page slot head dim"),
        "SGLang 0.5 mem_cache/memory_pool.py: k_buffer and v_buffer of each layer",
    ),
    preset(
        "trtllm",
        both!("page layer part head slot dim"),
        "TensorRT-LLM docs features/kvcache: one pool, all layers packed in a block",
    ),
    preset(
        "trtllm-edge",
        both!("[layer] part page slot head dim"),
        "TensorRT-Edge-LLM: (2, pages, tokens, heads, dim) of each layer",
    ),
    preset(
        "trtllm/nvfp4",
        &[
            at("key", "page layer part head slot dim").holds("e2m1, two a byte"),
            at("key.scale", "page layer part head slot dim")
                .of("scale")
                .holds("one e4m3fn for each 16"),
            at("value", "page layer part head slot dim").holds("e2m1, two a byte"),
            at("value.scale", "page layer part head slot dim")
                .of("scale")
                .holds("one e4m3fn for each 16"),
        ],
        "TensorRT-LLM, nvfp4 before V scales were interleaved: scales in a pool of their own",
    ),
    preset(
        "trtllm/nvfp4_v_interleaved",
        &[
            at("key", "page layer part head slot dim").holds("e2m1, two a byte"),
            at("key.scale", "page layer part head slot dim")
                .of("scale")
                .holds("one e4m3fn for each 16"),
            at("value", "page layer part head slot dim").holds("e2m1, two a byte"),
            at("value.scale", "page layer part head slot/4 dim slot%4")
                .of("scale")
                .holds("one e4m3fn for each 16"),
        ],
        "TensorRT-LLM, nvfp4 for trtllm-gen kernels: V scales of four tokens side by side",
    ),
    preset(
        "vllm-gaudi",
        both!("[layer] [part] page slot head dim"),
        "vllm-gaudi: K and V tensors (blocks * tokens, heads, dim) of each layer",
    ),
    preset(
        "vllm-gaudi/host",
        both!("[layer] [part] page head slot dim"),
        "vllm-gaudi PR 421: the host buffer for transfers, permuted to HND",
    ),
    preset(
        "vllm-neuron",
        both!("[layer] [part] page head slot dim"),
        "vllm-neuron PR 27: (batch, heads, sequence, dim); a page is a sequence",
    ),
    preset(
        "vllm-xpu/flash_attn",
        both!("[layer] part page slot head dim"),
        "vLLM PR 40826: on XPU, K and V are halves of the tensor",
    ),
    preset(
        "vllm/aiter_shuffle",
        each!(
            "[layer] part page head dim/8 slot dim%8",
            "[layer] part page head slot/8 dim slot%8"
        ),
        "vLLM 0.32 ROCM_AITER_FA, shuffle mode (LHBNC), two-byte elements",
    ),
    preset(
        "vllm/aiter_shuffle_0.24",
        each!(
            "[layer] page part head dim/8 slot dim%8",
            "[layer] page part head slot/8 dim slot%8"
        ),
        "vLLM 0.24 ROCM_AITER_FA, shuffle mode in (B, 2, N, H, D), two-byte elements",
    ),
    preset(
        "vllm/aiter_shuffle_0.24_8bit",
        each!(
            "[layer] page part head dim/16 slot dim%16",
            "[layer] page part head slot/16 dim slot%16"
        ),
        "vLLM 0.24 ROCM_AITER_FA, shuffle mode in (B, 2, N, H, D), one-byte elements",
    ),
    preset(
        "vllm/aiter_shuffle_8bit",
        each!(
            "[layer] part page head dim/16 slot dim%16",
            "[layer] part page head slot/16 dim slot%16"
        ),
        "vLLM 0.32 ROCM_AITER_FA, shuffle mode (LHBNC), one-byte elements",
    ),
    preset(
        "vllm/bhlnc",
        both!("page head layer slot part dim"),
        "vLLM 0.32 v1/kv_cache_layout.py BHLNC, one allocation: a head of a block is one run over all layers",
    ),
    preset(
        "vllm/blhnc",
        both!("page layer head slot part dim"),
        "vLLM 0.32 v1/kv_cache_layout.py BLHNC, one allocation: a block holds all layers, HND inside",
    ),
    preset(
        "vllm/blnhc",
        both!("page layer slot head part dim"),
        "vLLM 0.32 v1/kv_cache_layout.py BLNHC, one allocation: a block holds all layers, NHD inside",
    ),
    preset(
        "vllm/cpu_attn",
        each!(
            "[layer] page head part dim slot",
            "[layer] page head part slot dim"
        ),
        "vLLM 0.32 CPU attention, vec and vec16 ISAs: K transposed within each page",
    ),
    preset(
        "vllm/cpu_attn_0.20",
        each!(
            "[layer] part page head dim slot",
            "[layer] part page head slot dim"
        ),
        "vLLM 0.20 CPU attention, (2, B, H, N, D), vec ISA as in csrc/cpu/cpu_attn_vec.hpp",
    ),
    preset(
        "vllm/cpu_attn_amx",
        each!(
            "[layer] page head part slot/16 dim/2 slot%16 dim%2",
            "[layer] page head part dim/16 slot/2 dim%16 slot%2"
        ),
        "vLLM csrc/cpu/cpu_attn_amx.hpp, two-byte elements: tiles for AMX; read, not measured",
    ),
    preset(
        "vllm/dsv32_indexer",
        indexer!("[layer] page slot dim"),
        "vLLM 0.32 v1/attention/backends/mla/indexer.py: a page's values, then its scales",
    ),
    preset(
        "vllm/dsv32_indexer_rocm",
        indexer!("[layer] page slot/16 dim/16 slot%16 dim%16"),
        "vLLM 0.32 on ROCm with uses_shuffled_layout: values in tiles of 16 tokens by 16 bytes",
    ),
    preset(
        "vllm/dsv4",
        &[
            at("latent", "[layer] page slot dim")
                .by(DSV4)
                .holds("448 e4m3fn"),
            at("latent.scale", "[layer] page slot dim")
                .from("slots*(latent + rope)")
                .by(&[("page", DSV4_PAGE), ("slot", "8")])
                .holds("7 e8m0, one for each 64, and a byte of padding"),
            at("rope", "[layer] page slot dim")
                .from("latent")
                .by(DSV4)
                .holds("64 bf16"),
        ],
        "vLLM 0.32, DeepSeek V4 fp8_ds_mla: rows of 576 bytes, then scales of 8, pages of whole 576 bytes",
    ),
    preset(
        "vllm/dsv41",
        latents!(
            "up(slots*(latent + latent.scale), 512)",
            "512 e4m3fn, rope included",
            "16 e8m0, one for each 32"
        ),
        "vLLM 0.32, DeepSeek V4.1: 512 bytes of data a token, then 16 of scales, pages of whole 512 bytes",
    ),
    preset(
        "vllm/flash_attn",
        both!("[layer] page slot head part dim"),
        "vLLM 0.32 LBNHC (NHD): K and V of one token and head lie side by side",
    ),
    preset(
        "vllm/flash_attn_0.20",
        both!("[layer] part page slot head dim"),
        "vLLM 0.20 FlashAttention: (2, B, N, H, D)",
    ),
    preset(
        "vllm/flash_attn_0.20_cross_layer",
        both!("page layer part slot head dim"),
        "vLLM 0.20 FlashAttention with cross-layer blocks, NHD: stride order (2, 0, 1, 3, 4, 5)",
    ),
    preset(
        "vllm/flash_attn_0.20_cross_layer_hnd",
        both!("page head layer part slot dim"),
        "vLLM 0.20 FlashAttention with cross-layer blocks, HND: stride order (2, 4, 0, 1, 3, 5)",
    ),
    preset(
        "vllm/flash_attn_0.20_hnd",
        both!("[layer] part page head slot dim"),
        "vLLM 0.20 FlashAttention, HND: (2, B, N, H, D) with stride order (0, 1, 3, 2, 4)",
    ),
    preset(
        "vllm/flash_attn_0.24",
        both!("[layer] page part slot head dim"),
        "vLLM 0.24 FlashAttention, Triton, Flex, AITER: (B, 2, N, H, D)",
    ),
    preset(
        "vllm/flash_attn_0.24_hnd",
        both!("[layer] page part head slot dim"),
        "vLLM 0.24 FlashAttention, HND: (B, 2, N, H, D) with stride order (0, 1, 3, 2, 4)",
    ),
    preset(
        "vllm/flash_attn_hnd",
        both!("[layer] page head slot part dim"),
        "vLLM 0.32 LBHNC (HND)",
    ),
    preset(
        "vllm/flash_attn_unequal",
        &[
            at("key", "[layer] page slot head dim").by(&[("head", "key + value")]),
            at("value", "[layer] page slot head dim")
                .from("key")
                .by(&[("head", "key + value")]),
        ],
        "vLLM 0.32 LBNHC with head_size_v: K and V of one token and head side by side, of unequal size",
    ),
    preset(
        "vllm/flash_attn_unequal_hnd",
        &[
            at("key", "[layer] page head slot dim").by(&[("slot", "key + value")]),
            at("value", "[layer] page head slot dim")
                .from("key")
                .by(&[("slot", "key + value")]),
        ],
        "vLLM 0.32 LBHNC with head_size_v",
    ),
    preset(
        "vllm/flashinfer_0.20",
        both!("[layer] page part slot head dim"),
        "vLLM 0.20 FlashInfer: (B, 2, N, H, D)",
    ),
    preset(
        "vllm/flashinfer_0.20_cross_layer",
        both!("page layer part slot head dim"),
        "vLLM 0.20 FlashInfer with cross-layer blocks, NHD: stride order (1, 0, 2, 3, 4, 5)",
    ),
    preset(
        "vllm/flashinfer_0.20_cross_layer_hnd",
        both!("page part head layer slot dim"),
        "vLLM 0.20 FlashInfer with cross-layer blocks, HND: stride order (1, 2, 4, 0, 3, 5)",
    ),
    preset(
        "vllm/flashinfer_0.20_hnd",
        both!("[layer] page part head slot dim"),
        "vLLM 0.20 FlashInfer, HND: (B, 2, N, H, D) with stride order (0, 1, 3, 2, 4)",
    ),
    preset(
        "vllm/fp8_ds_mla",
        &[
            at("latent", "[layer] page slot dim")
                .by(&[("slot", "latent + latent.scale + rope")])
                .holds("512 e4m3fn"),
            at("latent.scale", "[layer] page slot dim")
                .from("latent")
                .by(&[("slot", "latent + latent.scale + rope")])
                .holds("4 f32, one for each 128"),
            at("rope", "[layer] page slot dim")
                .from("latent + latent.scale")
                .by(&[("slot", "latent + latent.scale + rope")])
                .holds("64 bf16"),
        ],
        "vLLM 0.32 mla/flashmla_sparse.py, DeepSeek V3.2: the parts of a record of 656 bytes",
    ),
    preset(
        "vllm/lbhnc",
        both!("layer page head slot part dim"),
        "vLLM 0.32 v1/kv_cache_layout.py LBHNC, one allocation for all layers",
    ),
    preset(
        "vllm/lbnhc",
        both!("layer page slot head part dim"),
        "vLLM 0.32 v1/kv_cache_layout.py LBNHC, one allocation for all layers",
    ),
    preset(
        "vllm/lhbnc",
        both!("layer head page slot part dim"),
        "vLLM 0.32 v1/kv_cache_layout.py LHBNC, one allocation: a block is in pieces, one for each head",
    ),
    preset(
        "vllm/nvfp4",
        planes!("[layer] page slot head dim", "[layer] page slot head dim"),
        "vLLM 0.32 FlashInfer nvfp4, NHD: pages of K data, K scales, V data, V scales",
    ),
    preset(
        "vllm/nvfp4_ds_mla",
        &[
            at("latent", "[layer] page slot dim")
                .by(&[("slot", "latent + rope + latent.scale")])
                .holds("512 e2m1, two a byte"),
            at("latent.scale", "[layer] page slot dim%4 dim/4")
                .from("latent + rope")
                .by(&[("slot", "latent + rope + latent.scale")])
                .holds("32 e4m3fn, one for each 16"),
            at("rope", "[layer] page slot dim")
                .from("latent")
                .by(&[("slot", "latent + rope + latent.scale")])
                .holds("64 e4m3fn"),
        ],
        "vLLM 0.32 mla/flashmla_sparse.py, nvfp4_ds_mla on SM100: records of 352 bytes, scales 8x4 to 4x8",
    ),
    preset(
        "vllm/nvfp4_hnd",
        planes!("[layer] page head slot dim", "[layer] page head slot dim"),
        "vLLM 0.32 FlashInfer nvfp4, HND, V scales in the order of tokens (fa2)",
    ),
    preset(
        "vllm/nvfp4_hnd_v_interleaved",
        planes!(
            "[layer] page head slot dim",
            "[layer] page head slot/4 dim slot%4"
        ),
        "vLLM 0.32 FlashInfer nvfp4, HND, V scales of four tokens side by side (trtllm-gen)",
    ),
    preset(
        "vllm/rocm_paged",
        each!(
            "[layer] part page head dim/8 slot dim%8",
            "[layer] part page head dim slot"
        ),
        "vLLM ops/paged_attn.py: K packed by x = 8 two-byte elements, V transposed",
    ),
    preset(
        "vllm/rocm_paged_8bit",
        each!(
            "[layer] part page head dim/16 slot dim%16",
            "[layer] part page head dim slot"
        ),
        "vLLM ops/paged_attn.py: K packed by x = 16 one-byte elements, V transposed",
    ),
    preset(
        "vllm/rocm_paged_lbhnc",
        each!(
            "[layer] page part head dim/8 slot dim%8",
            "[layer] page part head dim slot"
        ),
        "vLLM 0.32 ROCM_ATTN in LBHNC, whose two heads are K and V; two-byte elements",
    ),
    preset(
        "vllm/rocm_paged_lbhnc_8bit",
        each!(
            "[layer] page part head dim/16 slot dim%16",
            "[layer] page part head dim slot"
        ),
        "vLLM 0.32 ROCM_ATTN in LBHNC, whose two heads are K and V; one-byte elements",
    ),
    preset(
        "vllm/token_head",
        cells!(
            "[layer] page slot head dim",
            "head",
            "key + key.scale + value + value.scale",
            "one f32"
        ),
        "vLLM 0.32 Triton, int8, int4 and fp8 per token and head, LBNHC: scales behind each row",
    ),
    preset(
        "vllm/token_head_0.20",
        padded!(
            "[layer] page slot head dim",
            "slots*heads*(key + key.scale)",
            "pages*slots*heads*(key + key.scale)"
        ),
        "vLLM 0.20 Triton, (2, B, N, H, D + pad): a scale behind each row",
    ),
    preset(
        "vllm/token_head_0.24",
        padded!(
            "[layer] page slot head dim",
            "slots*heads*(key + key.scale + value + value.scale)",
            "slots*heads*(key + key.scale)"
        ),
        "vLLM 0.24 Triton, (B, 2, N, H, D + pad): a scale behind each row",
    ),
    preset(
        "vllm/token_head_hnd",
        cells!(
            "[layer] page head slot dim",
            "slot",
            "key + key.scale + value + value.scale",
            "one f32"
        ),
        "vLLM 0.32 Triton, int8, int4 and fp8 per token and head, LBHNC: scales behind each row",
    ),
    preset(
        "vllm/turboquant",
        cells!(
            "[layer] page slot head dim",
            "head",
            "up(key + key.scale + value + value.scale, 2)",
            "f16: norm of K; scale and least value of V"
        ),
        "vLLM 0.32 TurboQuant, LBNHC: packed codes and their numbers, cells of an even number of bytes",
    ),
    preset(
        "vllm/ultraquant",
        cells!(
            "[layer] page slot head dim",
            "head",
            "key + key.scale + value + value.scale",
            "one e8m0 for each 32"
        ),
        "vLLM 0.32 UltraQuant: codes of two a byte, then their scales, K before V",
    ),
];

const TURBOMIND: &[(&str, &str)] = &[(
    "layer",
    "heads*slots*(key + key.scale + value + value.scale)",
)];

const TURBOMIND_SCALES: &[(&str, &str)] = &[
    (
        "layer",
        "heads*slots*(key + key.scale + value + value.scale)",
    ),
    ("head", "slots*(key.scale + value.scale)"),
];

const DSV4_PAGE: &str = "up(slots*(latent + rope + 8), 576)";

const DSV4: &[(&str, &str)] = &[("page", DSV4_PAGE), ("slot", "latent + rope")];
