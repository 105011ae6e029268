//! The layouts' pictures in the book are those that the program draws.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

fn pictures(folder: &Path) -> BTreeMap<String, String> {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, fs::read_to_string(path).unwrap())
        })
        .collect()
}

#[test]
fn the_books_pictures_of_layouts_are_those_of_the_program() {
    let place = tempfile::tempdir().unwrap();
    let done = Command::new(env!("CARGO_BIN_EXE_moai"))
        .args(["info", "--layouts", "--svg"])
        .arg(place.path())
        .output()
        .unwrap();
    assert!(done.status.success());
    let told = String::from_utf8(done.stdout).unwrap();
    assert!(
        told.contains("vllm/flash_attn_hnd\n    key            [layer] page head slot part dim\n")
    );

    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let book = pictures(&root.join("docs/src/images/layouts"));
    let drawn = pictures(place.path());
    assert!(drawn.len() >= 12, "only {} pictures", drawn.len());
    let again =
        "draw them again: cargo run --bin moai -- info --layouts --svg docs/src/images/layouts";
    let names = |pictures: &BTreeMap<String, String>| pictures.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&book), names(&drawn), "{again}");
    let page = fs::read_to_string(root.join("docs/src/layout-gallery.md")).unwrap();
    for (name, document) in &drawn {
        assert!(
            *document == book[name],
            "{name} is not what the program draws; {again}"
        );
        assert!(
            page.contains(&format!("(images/layouts/{name})")),
            "{name} is not in the gallery"
        );
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_said() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("file");
    fs::write(&file, "").unwrap();
    let done = Command::new(env!("CARGO_BIN_EXE_moai"))
        .args(["info", "--layouts", "--svg"])
        .arg(&file)
        .output()
        .unwrap();
    assert_eq!(done.status.code(), Some(2));
    let said = String::from_utf8(done.stderr).unwrap();
    assert!(said.starts_with("error: cannot write to "), "{said}");
}
