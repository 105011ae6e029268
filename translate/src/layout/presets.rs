//! Named layouts: what a serving engine calls its cache, as text in the notation.

/// One named layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Preset {
    /// Name, `engine/backend`.
    pub name: &'static str,
    /// Layout of each component, by component name.
    pub components: &'static [(&'static str, &'static str)],
    /// Where it was read.
    pub source: &'static str,
}

const fn preset(
    name: &'static str,
    components: &'static [(&'static str, &'static str)],
    source: &'static str,
) -> Preset {
    Preset {
        name,
        components,
        source,
    }
}

/// All presets, in alphabetical order of their names.
///
/// `x` of the packed layouts is 16 bytes worth of elements, so presets exist for one-byte and
/// two-byte elements.
pub const ALL: &[Preset] = &[
    preset(
        "llama.cpp",
        &[
            ("key", "[layer] page head dim"),
            ("value", "[layer] page head dim"),
        ],
        "llama.cpp with flash attention: cells are pages of one token, K and V are tensors of their own",
    ),
    preset(
        "llama.cpp/transposed_v",
        &[
            ("key", "[layer] page head dim"),
            ("value", "[layer] head dim page"),
        ],
        "llama.cpp without flash attention: V transposed over all cells",
    ),
    preset(
        "mla",
        &[("latent", "[layer] page slot dim")],
        "vLLM, SGLang and FlashMLA: 512 latent and 64 rope elements a token, one head",
    ),
    preset(
        "sglang/mha",
        &[
            ("key", "[layer] [part] page slot head dim"),
            ("value", "[layer] [part] page slot head dim"),
        ],
        "SGLang 0.5 mem_cache/memory_pool.py: k_buffer and v_buffer of each layer",
    ),
    preset(
        "trtllm",
        &[
            ("key", "page layer part head slot dim"),
            ("value", "page layer part head slot dim"),
        ],
        "TensorRT-LLM docs features/kvcache: one pool, all layers packed in a block",
    ),
    preset(
        "vllm/cpu_attn",
        &[
            ("key", "[layer] page head part dim slot"),
            ("value", "[layer] page head part slot dim"),
        ],
        "vLLM 0.32 CPU attention, vec and vec16 ISAs: K transposed within each page",
    ),
    preset(
        "vllm/flash_attn",
        &[
            ("key", "[layer] page slot head part dim"),
            ("value", "[layer] page slot head part dim"),
        ],
        "vLLM 0.32 LBNHC (NHD): K and V of one token and head lie side by side",
    ),
    preset(
        "vllm/flash_attn_0.20",
        &[
            ("key", "[layer] part page slot head dim"),
            ("value", "[layer] part page slot head dim"),
        ],
        "vLLM 0.20 FlashAttention: (2, B, N, H, D)",
    ),
    preset(
        "vllm/flash_attn_hnd",
        &[
            ("key", "[layer] page head slot part dim"),
            ("value", "[layer] page head slot part dim"),
        ],
        "vLLM 0.32 LBHNC (HND)",
    ),
    preset(
        "vllm/flashinfer_0.20",
        &[
            ("key", "[layer] page part slot head dim"),
            ("value", "[layer] page part slot head dim"),
        ],
        "vLLM 0.20 FlashInfer: (B, 2, N, H, D)",
    ),
    preset(
        "vllm/rocm_paged",
        &[
            ("key", "[layer] part page head dim/8 slot dim%8"),
            ("value", "[layer] part page head dim slot"),
        ],
        "vLLM ops/paged_attn.py: K packed by x = 8 two-byte elements, V transposed",
    ),
    preset(
        "vllm/rocm_paged_8bit",
        &[
            ("key", "[layer] part page head dim/16 slot dim%16"),
            ("value", "[layer] part page head dim slot"),
        ],
        "vLLM ops/paged_attn.py: K packed by x = 16 one-byte elements, V transposed",
    ),
];

/// The preset called `name`.
#[must_use]
pub fn find(name: &str) -> Option<&'static Preset> {
    ALL.iter().find(|preset| preset.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Notation;

    #[test]
    fn presets_are_sorted_and_parse() {
        assert!(ALL.is_sorted_by_key(|preset| preset.name));
        for preset in ALL {
            for (component, text) in preset.components {
                let parsed: Notation = text.parse().unwrap();
                assert_eq!(&parsed.to_string(), text, "{} {component}", preset.name);
            }
        }
    }
}
