//! The header is C99 and C++17, and what the Rust side believes of it.

use std::mem::offset_of;
use std::process::Command;

use moai_transport_plugin::abi;

fn compiles(arguments: &[&str]) {
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let header = moai_tests::plugins::header();
    let made = Command::new(compiler)
        .args([
            "-Wall",
            "-Wextra",
            "-Wconversion",
            "-pedantic",
            "-Werror",
            "-fsyntax-only",
        ])
        .args(arguments)
        .arg(header)
        .output()
        .expect("a C compiler, `cc` or what CC says");
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "{arguments:?}: {said}");
}

#[test]
fn it_compiles_as_c99() {
    compiles(&["-x", "c", "-std=c99"]);
}

#[test]
fn it_compiles_as_cxx17() {
    compiles(&["-x", "c++", "-std=c++17"]);
}

#[test]
fn sizes_offsets_and_numbers_are_those_of_the_header() {
    let mut checks = Vec::new();
    macro_rules! layout {
        ($($rust:ident $c:ident: $($field:ident)*;)*) => {$(
            checks.push(format!("sizeof({}) == {}", stringify!($c), size_of::<abi::$rust>()));
            $(checks.push(format!(
                "offsetof({}, {}) == {}",
                stringify!($c), stringify!($field), offset_of!(abi::$rust, $field)
            ));)*
        )*};
    }
    layout! {
        Text moai_text: data capacity length;
        Error moai_error: size detail text;
        Memory moai_memory: size kind flags fd fd_offset bytes address handle retain release domain;
        Regions moai_regions: size stride version count at;
        Pieces moai_pieces: region bytes count stride offsets offset_count;
        Batch moai_batch: id bytes;
        Piece moai_piece: region bytes offset;
        Completion moai_completion: token peer outcome code;
        Closed moai_closed: size reason detail text;
        Handler moai_handler: size context connected message landing pieces regions landed writable closed;
        Fill moai_fill: context fill;
        Capabilities moai_capabilities:
            size one_sided encrypted max_message max_batch max_operation lanes reach;
        Options moai_options: size listens bind advertise;
        Path moai_path: size is_fallback local peer why;
        Stats moai_stats:
            size bytes_in bytes_out messages_in messages_out batches_in batches_out direct_pieces direct_bytes
            staged_bytes copied_bytes puts gets put_bytes got_bytes puts_in gets_in faults refused mapped_bytes
            fallbacks busy reads writes waits connected accepted rejected authenticated distrusted closed;
        Transport moai_transport:
            size name context probe obstacle open destroy addresses connect send post register_memory deregister
            remote_key import_key put get map flush completion poll wait_fd arm close finish path identity stats;
        Span moai_span: handle offset bytes;
        Job moai_job: size work name spans span_count buffer bytes;
        Finished moai_finished: name status;
        Domain moai_domain:
            size kind name context retain release allocate import open_stream close_stream submit completed
            stream_fd;
        Host moai_host: size major minor version log;
        Plugin moai_plugin:
            size major minor name version transports transport_count domains domain_count;
    }
    macro_rules! numbers {
        ($($name:ident)*) => {
            $(checks.push(format!("(MOAI_{}) == ({})", stringify!($name), abi::$name));)*
        };
    }
    numbers! {
        OK IN_FLIGHT BUSY NONE E_NO_SUCH_PEER E_FINISHING E_TOO_LARGE E_TOO_MANY_PEERS E_TOO_MANY_REGISTRATIONS
        E_TOO_MANY_IMPORTS E_NOT_REGISTERED E_NOT_LENT E_NOT_IMPORTED E_KEY E_REFUSED E_PIECES E_UNEQUAL
        E_UNSUPPORTED E_UNREACHABLE E_UNADVERTISED E_ELSEWHERE E_OBSTACLE E_SYSTEM E_OUT_OF_MEMORY E_REJECTED
        E_BUFFER E_FAILED PIECES_EMPTY PIECES_OVERLAP PIECES_OUT_OF_BOUNDS PIECES_TOO_LARGE MEMORY_WRITABLE
        ENDED_WELL ENDED_PEER_LOST ENDED_REFUSED ENDED_COPY ENDED_ACCESS CLOSED_BY_PEER CLOSED_TRUNCATED
        CLOSED_REJECTED CLOSED_IO CLOSED_IDLE CLOSED_BY_US CLOSED_OTHER IDENTITY_NONE IDENTITY_SHARED_KEY
        IDENTITY_CERTIFIED WORK_TO_HOST WORK_FROM_HOST LOG_ERROR LOG_WARN LOG_DEBUG
    }
    checks.push(format!("MOAI_PROVIDER_MAJOR == {}", abi::MAJOR));
    checks.push(format!("MOAI_PROVIDER_MINOR == {}", abi::MINOR));
    for kind in moai_memory::MemoryKind::ALL {
        let name = kind.to_string().to_uppercase();
        checks.push(format!("MOAI_KIND_{name} == {}", kind.code()));
    }
    for (at, name) in ["PUT", "GET", "SEND", "MAP"].into_iter().enumerate() {
        checks.push(format!("MOAI_OPERATION_{name} == {at}"));
    }
    for refusal in moai_transport::Refusal::ALL {
        let name = format!("{refusal:?}").to_uppercase();
        checks.push(format!("MOAI_REFUSAL_{name} == {}", refusal.code()));
    }
    for (name, rights) in [
        ("READ", moai_transport::Rights::READ),
        ("WRITE", moai_transport::Rights::WRITE),
        ("MAP", moai_transport::Rights::MAP),
    ] {
        checks.push(format!("MOAI_RIGHT_{name} == {}", rights.bits()));
    }
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("layout.c");
    // An array of -1 elements does not compile, in any version of C, and its line says which it is.
    let lines: String = checks
        .iter()
        .enumerate()
        .map(|(at, check)| format!("typedef char check_{at}[({check}) ? 1 : -1];\n"))
        .collect();
    let text = format!("#include <stddef.h>\n#include \"moai_provider.h\"\n{lines}int nothing;\n");
    std::fs::write(&source, text).unwrap();
    let _ = moai_tests::plugins::compile(&source, folder.path(), &[]);
    assert!(checks.len() > 250, "only {} checks", checks.len());
}
