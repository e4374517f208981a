//! Modules know only those below them.

use std::path::Path;

/// From the bottom up; modules on one line may know each other.
const LAYERS: &[&[&str]] = &[
    &["clock", "crypto", "kept", "suggest", "url"],
    &["outcome"],
    &["peer"],
    &["expr"],
    &["config"],
    &["limits"],
    &["observe"],
    &["files", "net"],
    &["fetch"],
    &["refresh"],
    &["trust"],
    &["identity", "registry"],
    &["evidence"],
    &["tls"],
    &["auth", "policy"],
    &["upstream"],
    &["runtime"],
    &["relay", "session"],
    &["upkeep"],
    &["server", "admin"],
];

#[test]
fn imports_go_one_way() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let height = |module: &str| LAYERS.iter().position(|layer| layer.contains(&module));
    let mut wrong = Vec::new();
    for file in rust_files(&source) {
        let relative = file.strip_prefix(&source).unwrap().to_str().unwrap().to_owned();
        let module = relative.split(['/', '.']).next().unwrap().to_owned();
        let Some(own) = height(&module) else { continue };
        let text = std::fs::read_to_string(&file).unwrap();
        let product = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let code: Vec<&str> = product.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        let product = &code.join("\n");
        for (_, path) in product.match_indices("crate::").map(|(at, found)| (at, &product[at + found.len()..])) {
            let name: String = path.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if height(&name).is_some_and(|other| other > own) {
                wrong.push(format!("{relative} knows {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn rust_files(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { rust_files(&path) } else { vec![path] }).collect()
}
