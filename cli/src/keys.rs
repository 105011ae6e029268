//! `moai keys`: certificates and keys for links between hosts.

use std::{
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use moai_fabric::{
    config::{Config, Security},
    keys::{self, Described, Nodes},
};

use crate::{
    args::{self, KeysCommand},
    failure::{Failure, show},
};

pub(crate) fn keys(command: &KeysCommand) -> Result<(), Failure> {
    match command {
        KeysCommand::Init(init) if init.shared => {
            let path = keys::init_shared(&init.folder)?;
            show(format_args!(
                "{path}\n\nCopy it to every host, readable by its owner alone, and set there:\n\n  \
                 export MOAI_SHARED_KEY_FILE={path}\n",
                path = path.display()
            ))
        }
        KeysCommand::Init(init) => {
            let nodes = nodes(&init.nodes);
            let files = keys::init(&init.folder, &nodes)?;
            list(&files)?;
            advise(&init.folder, &nodes)
        }
        KeysCommand::Issue(issue) => {
            let files = keys::issue(&issue.folder, &nodes(&issue.nodes))?;
            list(&files)
        }
        KeysCommand::Show { file } => {
            let described =
                keys::describe(file).map_err(|error| Failure::Input(error.to_string()))?;
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            let now = now.map_or(0, |since| since.as_secs() as i64);
            described.iter().try_for_each(|one| show(text(one, now)))
        }
    }
}

/// Protects links by what is in a folder, if one is given.
pub(crate) fn protect(config: &mut Config, folder: Option<&Path>) -> Result<(), Failure> {
    let Some(folder) = folder else { return Ok(()) };
    if config.security != Security::None {
        return Err(Failure::Input(format!(
            "--tls {} and MOAI_TLS_CERT or MOAI_SHARED_KEY_FILE both say how links are protected; give one",
            folder.display()
        )));
    }
    config.security = keys::security(folder, keys::DEFAULT_NODE, None)?;
    Ok(())
}

fn nodes(given: &args::Nodes) -> Nodes {
    let default = Nodes::default();
    Nodes {
        names: match given.node.is_empty() {
            true => default.names,
            false => given.node.clone(),
        },
        prefix: given.spiffe.clone().unwrap_or(default.prefix),
        days: given.days.unwrap_or(default.days),
    }
}

fn list(files: &[std::path::PathBuf]) -> Result<(), Failure> {
    files
        .iter()
        .try_for_each(|file| show(format_args!("{}\n", file.display())))
}

fn advise(folder: &Path, nodes: &Nodes) -> Result<(), Failure> {
    let folder = folder.display();
    let Some(name) = nodes.names.first() else {
        return Ok(());
    };
    show(format_args!(
        "\nCopy ca.pem and a node's two files to its host; ca-key.pem stays here. On {name}:\n\n  \
         export MOAI_TLS_CERT={folder}/{name}.pem MOAI_TLS_KEY={folder}/{name}-key.pem\n  \
         export MOAI_TLS_CA={folder}/ca.pem MOAI_ALLOW='{}/*'\n",
        nodes.prefix
    ))
}

fn text(one: &Described, now: i64) -> String {
    let days = (one.expires - now).div_euclid(86_400);
    let left = match days {
        ..0 => format!("expired {} days ago", -days),
        days => format!("{days} days left"),
    };
    let what = if one.is_authority {
        "authority"
    } else {
        "certificate"
    };
    format!(
        "{what} of {}\n  signed by {}\n  holds from {} until {}, {left}\n",
        one.identity, one.issuer, one.not_before, one.not_after
    )
}
