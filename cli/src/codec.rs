//! `moai codec`: rows of one format into rows of another, for people who want to check a format.

use std::{
    ffi::OsString,
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use moai_fabric::translate::{
    convert::Conversion,
    format::{FormatError, Pairing, Rope, RowFormat, RowScale},
    number::Overflow,
    rotation::Rotation,
};
use serde_json::json;

use crate::{
    args,
    failure::{Failure, show, write_json},
};

pub(crate) fn codec(command: &args::Codec) -> Result<(), Failure> {
    let (from, to) = formats(command)?;
    let dim = match command.dim {
        Some(dim) => dim,
        None => shortest_row(&from, &to)?,
    };
    let conversion = Conversion::new(from, to, dim).map_err(refused)?;
    let (input, output) = (&command.input, &command.output);
    let mut read_from = vec![input.clone()];
    let mut written = vec![output.clone()];
    if conversion.source_params_bytes() > 0 {
        read_from.push(beside(input));
    }
    if conversion.target_params_bytes() > 0 {
        written.push(beside(output));
    }
    written.extend(command.json.clone());
    apart(&read_from, &written)?;
    if output.is_dir() {
        return Err(Failure::Input(format!(
            "cannot write {}: it is a folder; name a file in it",
            output.display()
        )));
    }
    let codes = read(&command.input)?;
    let row_bytes = conversion.source_row_bytes();
    if !codes.len().is_multiple_of(row_bytes) {
        return Err(Failure::Input(format!(
            "{} holds {} bytes, which are no whole number of rows of {dim} {}: {row_bytes} bytes each; give whole rows, or another --dim",
            command.input.display(),
            codes.len(),
            command.from,
        )));
    }
    let rows = codes.len() / row_bytes;
    let params = match conversion.source_params_bytes() {
        0 => Vec::new(),
        each => {
            let path = beside(&command.input);
            let params = fs::read(&path).map_err(|error| {
                Failure::Input(format!(
                    "cannot read {}: {error}; what rows of {} keep apart belongs there, {each} bytes for each of {rows}",
                    path.display(),
                    command.from,
                ))
            })?;
            if params.len() != rows * each {
                return Err(Failure::Input(format!(
                    "{} holds {} bytes; {rows} rows of {} keep {each} each apart, {} in all",
                    path.display(),
                    params.len(),
                    command.from,
                    rows * each,
                )));
            }
            params
        }
    };
    let mut made = vec![0; rows * conversion.target_row_bytes()];
    let mut made_params = vec![0; rows * conversion.target_params_bytes()];
    let counts = conversion.run(rows, &codes, &params, &mut made, &mut made_params);
    // The codes last: where they are, all is.
    let apart = if made_params.is_empty() {
        String::new()
    } else {
        let path = beside(output);
        write(&path, &made_params)?;
        format!(" and {} to {}", made_params.len(), path.display())
    };
    write(output, &made)?;
    let summary = format!(
        "{rows} rows of {dim}: {} bytes of {} to {} bytes of {}{apart}; {} saturated, {} NaN\n",
        codes.len(),
        command.from,
        made.len(),
        command.to,
        counts.saturated,
        counts.nan,
    );
    // Codes on stdout are to be nothing but codes.
    let stdout = place(Path::new("/dev/stdout"));
    if written.iter().any(|path| place(path) == stdout) {
        // That nobody can hear it is no failure.
        let _ = std::io::stderr().write_all(summary.as_bytes());
    } else {
        show(summary)?;
    }
    write_json(
        command.json.as_deref(),
        &json!({
            "outcome": "converted",
            "from": command.from,
            "to": command.to,
            "rows": rows,
            "dim": dim,
            "row_bytes": [row_bytes, conversion.target_row_bytes()],
            "row_params_bytes": [conversion.source_params_bytes(), conversion.target_params_bytes()],
            "carried": conversion.is_identity(),
            "saturated": counts.saturated,
            "nan": counts.nan,
        }),
    )
}

/// Refuses to write over what is read, and to write two things to one place.
fn apart(read_from: &[PathBuf], written: &[PathBuf]) -> Result<(), Failure> {
    for (i, path) in written.iter().enumerate() {
        let taken = read_from.iter().chain(&written[..i]);
        if let Some(other) = taken.into_iter().find(|other| place(other) == place(path)) {
            return Err(Failure::Input(format!(
                "{} would be written over {}; name another OUT or --json",
                path.display(),
                other.display(),
            )));
        }
    }
    Ok(())
}

/// What a path leads to, however it is written.
#[derive(PartialEq)]
enum Spot {
    /// A file that exists: its device and number there, which all its names share.
    #[cfg(unix)]
    File(u64, u64),
    /// Where a file would be made, or one is.
    Name(PathBuf),
}

fn place(path: &Path) -> Spot {
    #[cfg(unix)]
    if let Ok(file) = fs::metadata(path) {
        use std::os::unix::fs::MetadataExt;
        return Spot::File(file.dev(), file.ino());
    }
    let mut path = path.to_owned();
    // A link that leads nowhere yet: what is written is made at its end. As many as the system follows.
    for _ in 0..40 {
        let Ok(link) = fs::read_link(&path) else {
            break;
        };
        path = path.parent().unwrap_or_else(|| Path::new("")).join(link);
    }
    Spot::Name(fs::canonicalize(&path).unwrap_or_else(|_| {
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let folder = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
        folder.join(path.file_name().unwrap_or_default())
    }))
}

/// Both formats, with their constants.
fn formats(command: &args::Codec) -> Result<(RowFormat, RowFormat), Failure> {
    let named = |name: &str, constant| RowFormat::named(name, constant).map_err(refused);
    // Whether a side takes a constant, with one as without.
    let element = |name: &str| -> Result<bool, Failure> {
        let probe = RowFormat::named(name, Some(1.0)).or_else(|_| RowFormat::named(name, None));
        let probe = probe.map_err(refused)?;
        let wide = probe.element.row_bytes(8) >= 16 && !probe.element.is_grouped();
        Ok(matches!(probe.scale, RowScale::Constant(_)) && !wide)
    };
    let (mut source, mut target) = (command.from_scale, command.to_scale);
    if let Some(scale) = command.scale {
        match (element(&command.from)?, element(&command.to)?) {
            (true, true) => {
                return Err(Failure::Input(format!(
                    "--scale {scale} may be that of {} and of {}; say --from-scale and --to-scale",
                    command.from, command.to
                )));
            }
            (true, false) => source = Some(scale),
            (false, true) => target = Some(scale),
            (false, false) => {
                return Err(Failure::Input(format!(
                    "--scale {scale}: neither {} nor {} takes a constant scale; say --from-scale or --to-scale if one is meant",
                    command.from, command.to
                )));
            }
        }
    }
    let (mut from, mut to) = (named(&command.from, source)?, named(&command.to, target)?);
    to.overflow = match command.overflow {
        args::Overflow::Sat => Overflow::Saturate,
        args::Overflow::Nosat => Overflow::NoSaturate,
        args::Overflow::Satfinite => Overflow::SaturateFinite,
    };
    if let Some(pairings) = &command.rope {
        let pairing = |name: &str| match name {
            "half" => Ok(Pairing::Half),
            "interleaved" => Ok(Pairing::Interleaved),
            other => Err(Failure::Input(format!(
                "--rope {pairings}: {other:?} is no pairing; expected half or interleaved, as half:interleaved"
            ))),
        };
        let (a, b) = pairings.split_once(':').unwrap_or((pairings, ""));
        let Some(dim) = command.dim else {
            return Err(Failure::Input(
                "--rope speaks of whole rows; say how long they are by --dim".to_owned(),
            ));
        };
        let offset = command.rope_offset;
        let dims = command
            .rope_dims
            .unwrap_or_else(|| dim.saturating_sub(offset));
        let rope = |pairing| {
            Some(Rope {
                pairing,
                offset,
                dims,
            })
        };
        (from.rope, to.rope) = (rope(pairing(a)?), rope(pairing(b)?));
    }
    Ok((from, to))
}

/// The least number of elements that both formats can make a row of, if rows of any such number come out the same.
fn shortest_row(from: &RowFormat, to: &RowFormat) -> Result<u32, Failure> {
    let mut least = 1;
    for format in [from, to] {
        let element = format.element;
        let by_row = format.scale == RowScale::Row
            || element.group_elements(0) == 0
            || element.unit(0).elements == 0
            || matches!(format.rotation, Rotation::Hadamard(0) | Rotation::Signed)
            || element.rotation() != Rotation::None;
        if by_row {
            return Err(Failure::Input(format!(
                "{element} depends on the length of its rows; say it by --dim"
            )));
        }
        let group = match format.row_bytes(1) {
            Err(FormatError::RaggedRow { group_elements, .. }) => group_elements,
            _ => 1,
        };
        let group = group.max(format.rotation.block(1 << 16));
        least = least / gcd(least, group) * group;
    }
    Ok(least)
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn refused(error: FormatError) -> Failure {
    Failure::Input(error.to_string())
}

/// Where what rows keep apart lies: `FILE.scale`.
fn beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".scale");
    PathBuf::from(name)
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path)
        .map_err(|error| Failure::Input(format!("cannot read {}: {error}", path.display())))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    fs::write(path, bytes)
        .map_err(|error| Failure::Input(format!("cannot write {}: {error}", path.display())))
}
