//! `moai info`: what this build and this machine can do, and what they cannot.
//!
//! What cannot be found out is said to be unknown; nothing here fails.

use std::{borrow::Cow, collections::BTreeMap, fs, thread};

use moai_fabric::{
    collectives::limits as collectives,
    config::Config,
    providers,
    translate::{element::Element, layout::presets},
    transport::limits as transport,
};
use serde::Serialize;

use crate::picture::{bytes, plain, wrap};

/// What this build and this machine can do.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Info {
    /// Version of this program.
    pub(crate) version: &'static str,
    /// Kinds of memory that caches may lie in.
    pub(crate) memory: Vec<Part>,
    /// Ways of moving bytes.
    pub(crate) transports: Vec<Part>,
    /// The processor.
    pub(crate) cpu: Cpu,
    /// What the system allows this process.
    pub(crate) system: Vec<Setting>,
    /// Constants of the protocol.
    pub(crate) limits: Vec<Limit>,
    /// Environment variables and what they come to.
    pub(crate) variables: Vec<Variable>,
    /// Element codes and named layouts, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) layouts: Option<Layouts>,
}

/// A piece of the stack that is there, or is not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Part {
    /// Its name.
    pub(crate) name: Cow<'static, str>,
    /// Whether this build has it, and this machine can open it.
    pub(crate) present: bool,
    /// What it is, or what adding it would bring.
    pub(crate) what: Cow<'static, str>,
}

/// The processor.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Cpu {
    /// Model name; `unknown` where the system does not tell.
    pub(crate) model: String,
    /// Processors that this process may run on.
    pub(crate) cores: Option<usize>,
    /// Instruction sets that conversions look for.
    pub(crate) features: Vec<Feature>,
}

/// An instruction set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Feature {
    /// Its name.
    pub(crate) name: &'static str,
    /// Whether this processor has it.
    pub(crate) present: bool,
}

/// Something that the system allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Setting {
    /// Where it is set.
    pub(crate) name: &'static str,
    /// Its value; `unknown` where it cannot be read.
    pub(crate) value: String,
    /// Why it matters.
    pub(crate) what: &'static str,
}

/// A constant of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Limit {
    /// Its name.
    pub(crate) name: &'static str,
    /// Its value.
    pub(crate) value: u64,
    /// What it counts.
    pub(crate) unit: &'static str,
    /// What it bounds.
    pub(crate) what: &'static str,
}

/// An environment variable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Variable {
    /// Its name.
    pub(crate) name: String,
    /// The value in effect.
    pub(crate) value: String,
    /// What it does.
    pub(crate) what: String,
}

/// What descriptions may name.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Layouts {
    /// Element codes.
    pub(crate) elements: Vec<ElementInfo>,
    /// Named layouts.
    pub(crate) presets: Vec<PresetInfo>,
}

/// An element code.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ElementInfo {
    /// Exact name.
    pub(crate) name: &'static str,
    /// What it is.
    pub(crate) what: &'static str,
    /// Elements in a group that is placed whole; 0 where it is the row.
    pub(crate) group_elements: u32,
    /// Bytes of a group.
    pub(crate) group_bytes: u32,
    /// Bytes that a row of 4608 elements keeps apart from its codes.
    pub(crate) kept_apart_of_4608: u32,
    /// By what rules a writer may pick scales; the first is what it does unless told.
    pub(crate) rules: Vec<&'static str>,
    /// Whether it can be written.
    pub(crate) writable: bool,
}

/// A named layout.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PresetInfo {
    /// Its name.
    pub(crate) name: &'static str,
    /// What the cache consists of.
    pub(crate) components: Vec<ComponentInfo>,
    /// Where it was read.
    pub(crate) source: &'static str,
}

/// A component of a named layout.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ComponentInfo {
    /// Its name.
    pub(crate) name: &'static str,
    /// The axes.
    pub(crate) layout: &'static str,
    /// Bytes from the start of the region; a formula.
    pub(crate) offset: &'static str,
    /// Strides by word, where they are not dense; formulas.
    pub(crate) strides: BTreeMap<&'static str, &'static str>,
    /// The set of regions that holds it.
    pub(crate) pool: &'static str,
    /// What a row holds, where the layout says so.
    pub(crate) row: &'static str,
}

impl ComponentInfo {
    /// What the text leaves open, in words.
    fn more(&self) -> Vec<String> {
        let mut more: Vec<String> = Vec::new();
        if self.offset != "0" {
            more.push(format!("from {}", self.offset));
        }
        let strides = self.strides.iter();
        more.extend(strides.map(|(word, formula)| format!("{word} by {formula}")));
        if self.pool != "kv" {
            more.push(format!("in pool {}", self.pool));
        }
        if !self.row.is_empty() {
            more.push(format!("a row: {}", self.row));
        }
        more
    }
}

/// What this build and this machine can do.
///
/// `variables` are the environment variables that the caller reads: name, value in effect, meaning.
/// Element codes and named layouts come with `layouts` only.
pub(crate) fn collect(layouts: bool, variables: &[(&str, String, &str)]) -> Info {
    let variable = |(name, value, what): &(&str, String, &str)| Variable {
        name: (*name).to_owned(),
        value: value.clone(),
        what: (*what).to_owned(),
    };
    Info {
        version: env!("CARGO_PKG_VERSION"),
        memory: memory(),
        transports: transports(),
        cpu: cpu(),
        system: system(),
        limits: limits(),
        variables: variables.iter().map(variable).collect(),
        layouts: layouts.then(list_layouts),
    }
}

/// The same, for people. At most 80 characters wide, unless a name is longer.
pub(crate) fn print(info: &Info) -> String {
    let mut out = format!("moai {}\n", info.version);
    let mut section = |title: &str, rows: Vec<[String; 3]>| {
        out += &format!("\n{title}\n");
        let wide = |at: usize| {
            let long = rows.iter().map(|row| row[at].chars().count());
            long.max().unwrap_or(0).min(26)
        };
        let (first, second) = (wide(0), wide(1));
        for [name, value, what] in rows.iter().map(|row| row.each_ref().map(|s| plain(s))) {
            let line = format!("{name:first$}  {value:second$}  {what}");
            for line in wrap(&line, 78, first + second + 4) {
                out += &format!("  {line}\n");
            }
        }
    };
    let parts = |parts: &[Part]| {
        let row = |part: &Part| {
            let there = if part.present {
                "present"
            } else {
                "not built yet"
            };
            [part.name.to_string(), there.into(), part.what.to_string()]
        };
        parts.iter().map(row).collect::<Vec<_>>()
    };
    section("memory", parts(&info.memory));
    section("transports", parts(&info.transports));
    let cores = info
        .cpu
        .cores
        .map_or_else(|| UNKNOWN.into(), |n| n.to_string());
    let has = |present: bool| {
        let names: Vec<&str> = info
            .cpu
            .features
            .iter()
            .filter(|feature| feature.present == present)
            .map(|feature| feature.name)
            .collect();
        if names.is_empty() {
            "none".into()
        } else {
            names.join(" ")
        }
    };
    let rows = [
        ("model", info.cpu.model.clone()),
        ("cores", cores),
        ("has", has(true)),
        ("lacks", has(false)),
    ];
    section(
        "cpu",
        rows.into_iter()
            .map(|(name, value)| [name.into(), String::new(), value])
            .collect(),
    );
    let row = |s: &Setting| [s.name.into(), s.value.clone(), s.what.into()];
    section("system", info.system.iter().map(row).collect());
    let row = |limit: &Limit| {
        let value = match limit.unit {
            "bytes" => bytes(limit.value),
            unit => format!("{} {unit}", limit.value),
        };
        [limit.name.into(), value, limit.what.into()]
    };
    section("protocol limits", info.limits.iter().map(row).collect());
    if !info.variables.is_empty() {
        let row = |v: &Variable| {
            let value = if v.value.is_empty() { "–" } else { &v.value };
            [v.name.clone(), value.to_owned(), v.what.clone()]
        };
        section("environment", info.variables.iter().map(row).collect());
    }
    if let Some(layouts) = &info.layouts {
        let row = |e: &ElementInfo| {
            // One rule is no choice.
            let rules = match &e.rules[..] {
                [] | [_] => String::new(),
                rules => format!("; .{}", rules.join(" .")),
            };
            let what = format!("{}{rules}", e.what);
            [e.name.into(), String::new(), what]
        };
        section("elements", layouts.elements.iter().map(row).collect());
        out += "\nlayouts\n";
        for preset in &layouts.presets {
            out += &format!("  {}\n", preset.name);
            for one in &preset.components {
                let mut lines = vec![format!("{:15}{}", one.name, one.layout)];
                let more = one.more();
                lines.extend(more.iter().map(|text| format!("{:15}{text}", "")));
                for line in lines.iter().flat_map(|line| wrap(line, 74, 17)) {
                    out += &format!("    {line}\n");
                }
            }
            for line in wrap(preset.source, 74, 0) {
                out += &format!("    {line}\n");
            }
        }
    }
    out
}

const UNKNOWN: &str = "unknown";

const fn part(name: &'static str, present: bool, what: &'static str) -> Part {
    Part {
        name: Cow::Borrowed(name),
        present,
        what: Cow::Borrowed(what),
    }
}

/// Kinds of memory of this build, and devices of plug-ins.
fn memory() -> Vec<Part> {
    let config = Config::from_env().unwrap_or_default();
    let devices = providers::devices(&config)
        .into_iter()
        .map(|(name, origin, device)| Part {
            name: Cow::Owned(name),
            present: true,
            what: Cow::Owned(format!("{} memory of {origin}", device.kind())),
        });
    MEMORY.iter().cloned().chain(devices).collect()
}

/// Providers of this build, as this machine lets them be opened, and those to come.
fn transports() -> Vec<Part> {
    let config = Config::from_env().unwrap_or_default();
    let open = providers::probe(&config)
        .into_iter()
        .map(|(name, probed)| Part {
            name: Cow::Borrowed(name),
            present: probed.is_ok(),
            what: Cow::Owned(probed.unwrap_or_else(|why| format!("cannot be opened: {why}"))),
        });
    open.chain(TO_COME.iter().cloned()).collect()
}

const MEMORY: &[Part] = &[
    part("host", true, "ordinary memory of this process"),
    part("pinned", true, "locked into memory, for devices"),
    part(
        "shared",
        true,
        "of which other processes of this host can map the pages",
    ),
    part(
        "sim",
        true,
        "a device of our own, for trying what devices do on machines without one",
    ),
    part(
        "cuda",
        false,
        "not in this release; would read and write caches in NVIDIA GPUs without a copy to the host",
    ),
    part(
        "rocm",
        false,
        "not in this release; would read and write caches in AMD GPUs without a copy to the host",
    ),
];

const TO_COME: &[Part] = &[
    part(
        "verbs",
        false,
        "not in this release; would move by RDMA over InfiniBand and RoCE",
    ),
    part(
        "libfabric",
        false,
        "not in this release; would move over EFA and other fabrics with a libfabric provider",
    ),
    part(
        "ucx",
        false,
        "not in this release; would move over whatever an installed UCX supports",
    ),
];

fn cpu() -> Cpu {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    Cpu {
        model: model_name(&text).unwrap_or(UNKNOWN).to_owned(),
        cores: thread::available_parallelism().ok().map(Into::into),
        features: features(),
    }
}

/// The processor's name. Arm kernels give numbers only, which say more than nothing.
fn model_name(cpuinfo: &str) -> Option<&str> {
    let field = |name: &str| {
        let fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        let mut values = fields.filter(|(key, _)| key.trim() == name);
        values
            .next()
            .map(|(_, value)| value.trim())
            .filter(|value| !value.is_empty())
    };
    field("model name")
        .or_else(|| field("Model"))
        .or_else(|| field("CPU part"))
}

/// The instruction sets of this architecture that matter here.
fn features() -> Vec<Feature> {
    #[cfg(target_arch = "x86_64")]
    let found = [
        ("sse4.2", std::arch::is_x86_feature_detected!("sse4.2")),
        ("f16c", std::arch::is_x86_feature_detected!("f16c")),
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
        ("avx512bw", std::arch::is_x86_feature_detected!("avx512bw")),
    ];
    #[cfg(target_arch = "aarch64")]
    let found = [("neon", std::arch::is_aarch64_feature_detected!("neon"))];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let found: [(&'static str, bool); 0] = [];
    let feature = |(name, present)| Feature { name, present };
    found.into_iter().map(feature).collect()
}

fn system() -> Vec<Setting> {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let buffer = |path: &str| match fs::read_to_string(path) {
        Ok(text) => text
            .trim()
            .parse()
            .map_or_else(|_| UNKNOWN.to_owned(), bytes),
        Err(_) => UNKNOWN.to_owned(),
    };
    let setting = |name, value: Option<String>, what| Setting {
        name,
        value: value.unwrap_or_else(|| UNKNOWN.to_owned()),
        what,
    };
    vec![
        setting(
            "RLIMIT_NOFILE",
            soft_limit(&limits, "Max open files").map(ToOwned::to_owned),
            "one descriptor for each connected peer, and a few more",
        ),
        setting(
            "RLIMIT_MEMLOCK",
            soft_limit(&limits, "Max locked memory")
                .map(|v| v.parse().map_or_else(|_| v.into(), bytes)),
            "what RDMA could register; TCP needs none",
        ),
        setting(
            "net.core.rmem_max",
            Some(buffer("/proc/sys/net/core/rmem_max")),
            "largest receive buffer a socket may ask for",
        ),
        setting(
            "net.core.wmem_max",
            Some(buffer("/proc/sys/net/core/wmem_max")),
            "largest send buffer a socket may ask for",
        ),
        setting(
            "hugepages",
            hugepages(&meminfo),
            "reserved ones; larger pages cost a large cache fewer TLB misses",
        ),
    ]
}

/// The soft limit in a line of `/proc/self/limits`.
fn soft_limit<'a>(limits: &'a str, name: &str) -> Option<&'a str> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()
}

/// `3 of 16 free, 2.0 MiB each`.
fn hugepages(meminfo: &str) -> Option<String> {
    let field = |name: &str| -> Option<u64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.strip_prefix(':')?
            .split_ascii_whitespace()
            .next()?
            .parse()
            .ok()
    };
    let (total, free) = (field("HugePages_Total")?, field("HugePages_Free")?);
    let size = field("Hugepagesize")?.checked_mul(1024)?;
    Some(format!("{free} of {total} free, {} each", bytes(size)))
}

fn limits() -> Vec<Limit> {
    let limit = |name, value, unit, what| Limit {
        name,
        value,
        unit,
        what,
    };
    vec![
        limit(
            "MAX_RANKS",
            collectives::MAX_RANKS.into(),
            "ranks",
            "of one side",
        ),
        limit(
            "MAX_LAYERS",
            collectives::MAX_LAYERS.into(),
            "layers",
            "of a model",
        ),
        limit(
            "MAX_COMPONENTS",
            collectives::MAX_COMPONENTS as u64,
            "components",
            "of one side",
        ),
        limit(
            "MAX_GROUPS",
            collectives::MAX_GROUPS as u64,
            "groups",
            "of layers with page lists of their own",
        ),
        limit(
            "MAX_HEADS",
            collectives::MAX_HEADS.into(),
            "heads",
            "of a component",
        ),
        limit(
            "MAX_DIM",
            collectives::MAX_DIM.into(),
            "elements",
            "of a row",
        ),
        limit(
            "MAX_REGIONS",
            collectives::MAX_REGIONS,
            "regions",
            "of a rank",
        ),
        limit(
            "MAX_SIDE_REGIONS",
            collectives::MAX_SIDE_REGIONS,
            "regions",
            "of all ranks of a side",
        ),
        limit(
            "MAX_OWNED",
            collectives::MAX_OWNED,
            "entries",
            "of ranks × layers × components",
        ),
        limit(
            "MAX_CP",
            collectives::MAX_CP.into(),
            "ranks",
            "of context parallelism",
        ),
        limit(
            "MAX_CHUNKS",
            collectives::MAX_CHUNKS,
            "chunks",
            "of a request",
        ),
        limit(
            "MAX_TOKENS",
            collectives::MAX_TOKENS.into(),
            "tokens",
            "of a request",
        ),
        limit(
            "MAX_DESCRIPTION_BYTES",
            collectives::MAX_DESCRIPTION_BYTES,
            "bytes",
            "of a description file",
        ),
        limit(
            "CHUNK_BYTES",
            collectives::CHUNK_BYTES,
            "bytes",
            "of a chunk on the wire",
        ),
        limit(
            "MAX_MESSAGE_BYTES",
            transport::MAX_MESSAGE_BYTES.into(),
            "bytes",
            "of a control message",
        ),
        limit(
            "MAX_BATCH_BYTES",
            transport::MAX_BATCH_BYTES.into(),
            "bytes",
            "of a batch of rows",
        ),
        limit(
            "MAX_PEERS",
            transport::MAX_PEERS as u64,
            "peers",
            "of one interface",
        ),
        limit(
            "CONNECT_TIMEOUT",
            transport::CONNECT_TIMEOUT.as_millis() as u64,
            "ms",
            "for a connection to be established",
        ),
        limit(
            "FIRST_FRAME_TIMEOUT",
            transport::FIRST_FRAME_TIMEOUT.as_millis() as u64,
            "ms",
            "for whoever connects to say who it is",
        ),
        limit(
            "FINISH_TIMEOUT",
            transport::FINISH_TIMEOUT.as_millis() as u64,
            "ms",
            "without progress while a connection ends",
        ),
    ]
}

fn list_layouts() -> Layouts {
    // What follows from the length of the row is 0 in a row of none.
    let element = |element: Element| ElementInfo {
        name: element.name(),
        what: element.scheme().what,
        group_elements: element.unit(0).elements,
        group_bytes: element.unit(0).bytes,
        kept_apart_of_4608: element.params(4608).map_or(0, |params| params.bytes()),
        rules: element.scheme().rules().collect(),
        writable: element.writes(),
    };
    let component = |one: &presets::Component| ComponentInfo {
        name: one.name,
        layout: one.text,
        offset: one.offset,
        strides: one.strides.iter().copied().collect(),
        pool: one.pool,
        row: one.row,
    };
    let preset = |preset: &presets::Preset| PresetInfo {
        name: preset.name,
        components: preset.components.iter().map(component).collect(),
        source: preset.source,
    };
    Layouts {
        elements: Element::all().map(element).collect(),
        presets: presets::ALL.iter().map(preset).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says_is_read_and_what_it_does_not_is_unknown() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units\n\
                      Max open files            1024                 1048576              files\n\
                      Max locked memory         unlimited            unlimited            bytes\n";
        assert_eq!(soft_limit(limits, "Max open files"), Some("1024"));
        assert_eq!(soft_limit(limits, "Max locked memory"), Some("unlimited"));
        assert_eq!(soft_limit("", "Max open files"), None);
        let meminfo =
            "HugePages_Total:      16\nHugePages_Free:        3\nHugepagesize:       2048 kB\n";
        assert_eq!(hugepages(meminfo).unwrap(), "3 of 16 free, 2.0 MiB each");
        assert_eq!(hugepages("HugePages_Total: many\n"), None);
        assert_eq!(
            model_name("processor : 0\nmodel name\t: A: B\n"),
            Some("A: B")
        );
        assert_eq!(model_name("model name :\n"), None);
    }

    #[test]
    fn the_table_says_what_is_there_and_what_is_not() {
        let variables = [("MOAI_BIND", "127.0.0.1".to_owned(), "where ranks listen")];
        let info = collect(true, &variables);
        let text = print(&info);
        for part in [
            "tcp        present",
            "verbs      not built yet",
            "cuda    not built yet",
            "MOAI_BIND  127.0.0.1  where ranks listen",
            "CHUNK_BYTES",
            "fp8_ds_mla",
            "vllm/rocm_paged_8bit",
            "key            [layer] page head slot dim",
            "vLLM 0.20 FlashAttention: (2, B, N, H, D)",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        assert!(!print(&collect(false, &[])).contains("fp8_ds_mla"));
        let json = serde_json::to_value(&info).unwrap();
        assert_eq!(json["transports"][0]["name"], "shm");
        assert_eq!(json["transports"][1]["name"], "tcp");
        assert_eq!(json["layouts"]["elements"][2]["group_bytes"], 2);
        let presets = json["layouts"]["presets"].as_array().unwrap();
        let indexer = presets.iter().find(|p| p["name"] == "vllm/dsv32_indexer");
        let scale = &indexer.unwrap()["components"][1];
        assert_eq!(scale["layout"], "[layer] page slot dim");
        assert_eq!(scale["offset"], "slots*indexer");
        assert_eq!(scale["strides"]["page"], "slots*(indexer + indexer.scale)");
        assert_eq!(presets.len(), presets::ALL.len());
    }
}
