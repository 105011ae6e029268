//! RDMA devices and GPUs, and which are near each other.

use super::{Finding, root::Root};

/// Devices of a host.
#[derive(Clone, Debug, Default)]
pub(super) struct Devices {
    nics: Vec<Nic>,
    gpus: Vec<Gpu>,
}

#[derive(Clone, Debug)]
struct Nic {
    name: String,
    state: String,
    rate: String,
    node: Option<i64>,
    /// The interface of the network that it belongs to.
    netdev: Option<String>,
}

#[derive(Clone, Debug)]
struct Gpu {
    /// Its place on the bus.
    address: String,
    maker: &'static str,
    node: Option<i64>,
}

/// Display and processing accelerators of the PCI classes; VGA adapters of servers' consoles are of other makers.
const CLASSES: [&str; 3] = ["0x0300", "0x0302", "0x1200"];
const MAKERS: [(&str, &str); 2] = [("0x10de", "NVIDIA"), ("0x1002", "AMD")];

impl Devices {
    pub(super) fn of(root: &Root) -> Self {
        let node = |path: String| root.number(&path).filter(|&node| node >= 0);
        let nic = |name: String| {
            let of = |file: &str| format!("/sys/class/infiniband/{name}/{file}");
            // `4: ACTIVE`.
            let state = root.text(&of("ports/1/state")).unwrap_or_default();
            Nic {
                state: state
                    .split_once(": ")
                    .map_or_else(|| state.clone(), |(_, word)| word.to_owned()),
                rate: root.text(&of("ports/1/rate")).unwrap_or_default(),
                node: node(of("device/numa_node")),
                netdev: root.names(&of("device/net")).into_iter().next(),
                name,
            }
        };
        let gpu = |address: String| {
            let of = |file: &str| format!("/sys/bus/pci/devices/{address}/{file}");
            let class = root.text(&of("class"))?;
            let vendor = root.text(&of("vendor"))?;
            let (_, maker) = MAKERS.into_iter().find(|(code, _)| *code == vendor)?;
            let is_gpu = CLASSES.iter().any(|code| class.starts_with(code));
            let node = node(of("numa_node"));
            is_gpu.then_some(Gpu {
                address,
                maker,
                node,
            })
        };
        Self {
            nics: root
                .names("/sys/class/infiniband")
                .into_iter()
                .map(nic)
                .collect(),
            gpus: root
                .names("/sys/bus/pci/devices")
                .into_iter()
                .filter_map(gpu)
                .collect(),
        }
    }

    /// Whether something here reaches memory by itself.
    pub(super) fn need_locked_memory(&self) -> bool {
        !self.nics.is_empty() || !self.gpus.is_empty()
    }

    pub(super) fn findings(&self, root: &Root) -> Vec<Finding> {
        let mut findings = self.rdma();
        findings.extend(self.gpu(root));
        findings.extend(self.affinity());
        findings
    }

    fn rdma(&self) -> Vec<Finding> {
        const WHY: &str = "a NIC that reaches memory by itself leaves the processor out";
        let one = |nic: &Nic| {
            let found = format!("{}: {}, {}{}", nic.name, nic.state, nic.rate, on(nic.node));
            match nic.state.as_str() {
                "ACTIVE" => Finding::ok("rdma", found, WHY),
                _ => {
                    let line = match &nic.netdev {
                        Some(name) => format!("sudo ip link set {name} up"),
                        None => format!("rdma link show {}/1", nic.name),
                    };
                    Finding::problem("rdma", found, WHY, line)
                }
            }
        };
        match self.nics.is_empty() {
            true => vec![Finding::note("rdma", "no RDMA device", WHY)],
            false => self.nics.iter().map(one).collect(),
        }
    }

    fn gpu(&self, root: &Root) -> Vec<Finding> {
        const WHY: &str = "pages of a GPU are reached through its driver";
        let has_driver = |maker: &str| match maker {
            "NVIDIA" => root.exists("/proc/driver/nvidia/version") || root.exists("/dev/nvidiactl"),
            _ => root.exists("/dev/kfd"),
        };
        let one = |gpu: &Gpu| {
            let found = format!("{} at {}{}", gpu.maker, gpu.address, on(gpu.node));
            match (has_driver(gpu.maker), gpu.maker) {
                (true, _) => Finding::ok("gpu", found, WHY),
                (false, "NVIDIA") => {
                    let found = format!("{found}, without a driver");
                    Finding::problem(
                        "gpu",
                        found,
                        WHY,
                        "sudo modprobe nvidia # containers: --gpus all",
                    )
                }
                (false, _) => {
                    let found = format!("{found}, without a driver");
                    let line =
                        "sudo modprobe amdgpu # containers: --device /dev/kfd --device /dev/dri";
                    Finding::problem("gpu", found, WHY, line)
                }
            }
        };
        match self.gpus.is_empty() {
            true => vec![Finding::note("gpu", "no GPU", WHY)],
            false => self.gpus.iter().map(one).collect(),
        }
    }

    /// GPUs that are far from every NIC.
    fn affinity(&self) -> Vec<Finding> {
        const WHY: &str =
            "bytes between a GPU and a NIC of another node cross the link between processors";
        let near = |gpu: &Gpu| {
            self.nics
                .iter()
                .find(|nic| nic.node.is_some() && nic.node == gpu.node)
        };
        let one = |gpu: &Gpu| {
            gpu.node?;
            Some(match near(gpu) {
                Some(nic) => Finding::ok(
                    "affinity",
                    format!("{} is near {}", gpu.address, nic.name),
                    WHY,
                ),
                None => Finding::note(
                    "affinity",
                    format!("{} is near no RDMA device", gpu.address),
                    WHY,
                ),
            })
        };
        // A host of one node often says none.
        match self.nics.iter().any(|nic| nic.node.is_some()) {
            true => self.gpus.iter().filter_map(one).collect(),
            false => Vec::new(),
        }
    }
}

fn on(node: Option<i64>) -> String {
    node.map_or_else(String::new, |node| format!(", NUMA node {node}"))
}
