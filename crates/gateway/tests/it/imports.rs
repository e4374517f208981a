//! Imports go in one direction: every file has a layer, no file imports one of a higher layer, and there are no import
//! cycles, neither of files nor of modules.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The layers from the bottom up: directories, or files where a directory spans layers. The longest match applies.
const LAYERS: &[&[&str]] = &[
    &["util"],
    &["outcome"],
    &["peer"],
    &["expr"],
    &["config"],
    &["observe"],
    &["files", "net"],
    &["trust"],
    &["fetch"],
    &["refresh"],
    &["limits", "pki"],
    &["devices"],
    &["evidence"],
    &["tls"],
    &["auth", "policy"],
    &["edge", "upstream"],
    &["sessions"],
    &["state"],
    &["runtime"],
    &["relay"],
    &["session"],
    &["maintenance", "status"],
    &["admin"],
    &["gateway"],
    &["fuzzing"],
    &["lib"],
];

#[test]
fn imports_go_one_way() {
    let sources = Sources::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let imports = sources.imports();
    let mut wrong = Vec::new();
    for (file, imported) in &imports {
        let Some(own) = layer(file) else {
            wrong.push(format!("{file} is in no layer: add it to LAYERS"));
            continue;
        };
        for other in imported.iter().filter(|other| layer(other).is_some_and(|other| other > own)) {
            wrong.push(format!("{file} imports {other} of a higher layer"));
        }
        if reaches(&imports, imported, file) {
            wrong.push(format!("{file} imports itself in a circle"));
        }
    }
    let mut modules: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (file, imported) in &imports {
        let others = imported.iter().map(|other| module(other)).filter(|other| *other != module(file));
        modules.entry(module(file)).or_default().extend(others);
    }
    for (name, imported) in modules.iter().filter(|(name, imported)| reaches(&modules, imported, name)) {
        wrong.push(format!("module {name} imports itself in a circle: {imported:?}"));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(imports.values().map(BTreeSet::len).sum::<usize>() > 200, "the test no longer finds the imports");
}

/// The top-level module of a file.
fn module(file: &str) -> String {
    file.split('/').next().unwrap().trim_end_matches(".rs").to_owned()
}

fn layer(file: &str) -> Option<usize> {
    let path = file.trim_end_matches(".rs").trim_end_matches("/mod");
    let rank = |name: &&str| path == *name || path.strip_prefix(*name).is_some_and(|rest| rest.starts_with('/'));
    let named = LAYERS.iter().enumerate().flat_map(|(level, names)| names.iter().map(move |name| (level, name)));
    named.filter(|(_, name)| rank(name)).max_by_key(|(_, name)| name.len()).map(|(level, _)| level)
}

fn reaches(imports: &BTreeMap<String, BTreeSet<String>>, from: &BTreeSet<String>, to: &str) -> bool {
    let (mut seen, mut next) = (BTreeSet::new(), from.iter().collect::<Vec<_>>());
    while let Some(file) = next.pop() {
        if file == to {
            return true;
        }
        if seen.insert(file) {
            next.extend(&imports[file]);
        }
    }
    false
}

/// The files of the crate without comments and unit tests, by path below `src`.
struct Sources(BTreeMap<String, String>);

impl Sources {
    fn read(source: &Path) -> Self {
        let mut files = BTreeMap::new();
        let mut folders = vec![source.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let text = std::fs::read_to_string(&path).unwrap();
                let product = text.split("#[cfg(test)]\nmod tests").next().unwrap();
                let code = product.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n");
                files.insert(path.strip_prefix(source).unwrap().to_str().unwrap().to_owned(), code);
            }
        }
        Self(files)
    }

    /// The files that each file imports. Re-exports are followed to the definitions.
    fn imports(&self) -> BTreeMap<String, BTreeSet<String>> {
        let reexports: BTreeMap<(String, String), Vec<String>> = self
            .0
            .keys()
            .flat_map(|file| self.paths(file, true).into_iter().map(move |path| (file, path)))
            .filter_map(|(file, path)| Some(((file.clone(), path.last()?.clone()), path)))
            .collect();
        let of = |file: &String| {
            let found = self.paths(file, false).into_iter().filter_map(|path| self.resolve(path, &reexports));
            (file.clone(), found.filter(|other| other != file).collect())
        };
        self.0.keys().map(of).collect()
    }

    /// The paths that a file names: those of its `pub use`, or all others.
    fn paths(&self, file: &str, reexported: bool) -> Vec<Vec<String>> {
        let text = &self.0[file];
        let mut paths = Vec::new();
        let mut rest = String::new();
        for statement in text.split_inclusive([';', '{', '}']) {
            rest.push_str(statement);
            // Braces inside a `use` statement do not end it.
            let is_use = |text: &str| text.trim_start().starts_with("use ") || text.contains(") use ");
            let begin = rest.rfind("use ").filter(|at| {
                rest[..*at].trim_end().ends_with([';', '}', ')', 'b', ']']) || rest[..*at].trim().is_empty()
            });
            if let Some(begin) = begin
                && is_use(&rest[begin..])
            {
                if !statement.ends_with(';') {
                    continue;
                }
                let is_public = rest[..begin].trim_end().ends_with("pub") || rest[..begin].trim_end().ends_with(')');
                if is_public == reexported {
                    paths.extend(expand(rest[begin + 4..].trim_end_matches(';')));
                }
            } else if !reexported {
                paths.extend(qualified(&rest));
            }
            rest.clear();
        }
        paths.into_iter().filter_map(|path| self.absolute(&path, file)).collect()
    }

    /// A path from the crate's root; `None` for another crate's.
    fn absolute(&self, path: &str, file: &str) -> Option<Vec<String>> {
        let mut segments: Vec<String> = path.split("::").map(|segment| segment.trim().to_owned()).collect();
        let own = file.trim_end_matches(".rs");
        let own = own.strip_suffix("/mod").unwrap_or(own);
        let mut base: Vec<String> = own.split('/').filter(|segment| *segment != "lib").map(str::to_owned).collect();
        if segments[0] == "crate" {
            return Some(segments.split_off(1));
        }
        let mut is_relative = false;
        while segments.first().is_some_and(|segment| segment == "super" || segment == "self") {
            if segments.remove(0) == "super" {
                base.pop();
            }
            is_relative = true;
        }
        let first = segments.first()?.clone();
        base.extend(segments);
        let depth = base.iter().position(|segment| *segment == first)? + 1;
        (is_relative || self.file(&base[..depth]).is_some_and(|other| other != file)).then_some(base)
    }

    fn resolve(&self, path: Vec<String>, reexports: &BTreeMap<(String, String), Vec<String>>) -> Option<String> {
        let (mut path, mut steps) = (path, 0);
        loop {
            let depth = (1..=path.len()).rev().find(|depth| self.file(&path[..*depth]).is_some())?;
            let file = self.file(&path[..depth])?;
            match path.get(depth).and_then(|name| reexports.get(&(file.clone(), name.clone()))) {
                Some(target) if steps < 8 => (path, steps) = (target.clone(), steps + 1),
                _ => return Some(file),
            }
        }
    }

    fn file(&self, module: &[String]) -> Option<String> {
        let path = module.join("/");
        [format!("{path}.rs"), format!("{path}/mod.rs")].into_iter().find(|file| self.0.contains_key(file))
    }
}

/// `a::{b, c::{d, e}}` as three paths.
fn expand(tree: &str) -> Vec<String> {
    let Some((prefix, inner)) = tree.trim().split_once('{') else {
        return vec![tree.split(" as ").next().unwrap().trim().to_owned()];
    };
    let inner = inner.strip_suffix('}').unwrap_or(inner);
    let (mut parts, mut depth) = (vec![String::new()], 0);
    for character in inner.chars() {
        match character {
            ',' if depth == 0 => parts.push(String::new()),
            _ => {
                depth += i32::from(character == '{') - i32::from(character == '}');
                parts.last_mut().unwrap().push(character);
            }
        }
    }
    let parts = parts.iter().filter(|part| !part.trim().is_empty());
    parts.flat_map(|part| expand(&format!("{}{}", prefix.trim(), part.trim()))).collect()
}

/// Paths in code that begin with `crate::` or `super::`.
fn qualified(code: &str) -> Vec<String> {
    let starts = code.match_indices("crate::").chain(code.match_indices("super::")).map(|(at, _)| at);
    let path = |at: usize| code[at..].chars().take_while(|c| c.is_alphanumeric() || matches!(c, ':' | '_')).collect();
    starts.map(path).map(|path: String| path.trim_end_matches(':').to_owned()).collect()
}
