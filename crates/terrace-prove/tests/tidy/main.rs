//! The shape of the workspace, held by a test: sizes of files and functions, names, unfinished code,
//! and the arrows between crates.
//!
//! Each rule is a function from a text to its offences, so each is also shown to catch its violation.

mod pages;

use std::fmt;
use std::fs;
use std::path::Path;

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use toml::de::{DeTable, DeValue};

const FILE_LINES: usize = 500;
const FUNCTION_LINES: usize = 70;
const MOD_RS_CODE_LINES: usize = 20;

/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 6] = ["utils", "util", "common", "helpers", "helper", "types"];

/// Crates that speak to an engine; only `terrace-stores` may list one.
const DRIVERS: [&str; 11] = [
    "async-nats",
    "bb8",
    "deadpool-postgres",
    "deadpool-redis",
    "libsqlite3-sys",
    "mongodb",
    "redis",
    "rusqlite",
    "sqlx",
    "tokio-postgres",
    "tokio-postgres-rustls",
];

/// The Terrace crates that a crate may list. The binary, which composes everything, is free.
const ARROWS: [(&str, &[&str]); 6] = [
    ("terrace-core", &[]),
    ("terrace-layers", &["terrace-core"]),
    ("terrace-stores", &["terrace-core", "terrace-lab"]),
    ("terrace-lab", &["terrace-core"]),
    ("terrace-bench", &["terrace-core", "terrace-lab"]),
    ("terrace-prove", &["terrace-core", "terrace-lab"]),
];

#[test]
fn the_workspace_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut texts = Vec::new();
    collect(&root, "", &mut texts);
    assert!(texts.len() > 10, "found only {} files under {}", texts.len(), root.display());
    let offences: Vec<String> = texts
        .iter()
        .flat_map(|(path, text)| offences_in(path, text))
        .map(|offence| offence.to_string())
        .collect();
    assert!(offences.is_empty(), "{} to repair:\n{}", offences.len(), offences.join("\n"));
}

/// One place that breaks a rule, and what to do about it.
struct Offence {
    path: String,
    line: usize,
    remedy: String,
}

impl Offence {
    fn new(path: &str, line: usize, remedy: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, remedy: remedy.into() }
    }
}

impl fmt::Display for Offence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.remedy)
    }
}

/// Every Rust file and manifest below `root`, as (path from the workspace's root, text); build
/// output and hidden folders are not the project's text.
fn collect(root: &Path, below: &str, into: &mut Vec<(String, String)>) {
    let folder = root.join(below);
    let entries = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("cannot list {}: {error}", folder.display()));
    for entry in entries {
        let entry = entry.unwrap_or_else(|error| panic!("in {}: {error}", folder.display()));
        let name = entry.file_name().into_string().unwrap_or_else(|name| panic!("{name:?}"));
        let path = if below.is_empty() { name.clone() } else { format!("{below}/{name}") };
        if entry.path().is_dir() {
            if name != "target" && !name.starts_with('.') {
                collect(root, &path, into);
            }
        } else if name.ends_with(".rs") || name == "Cargo.toml" {
            let text = fs::read_to_string(entry.path())
                .unwrap_or_else(|error| panic!("cannot read {path}: {error}"));
            into.push((path, text));
        }
    }
}

fn offences_in(path: &str, text: &str) -> Vec<Offence> {
    if path.ends_with(".rs") { in_rust(path, text) } else { in_manifest(path, text) }
}

fn in_rust(path: &str, text: &str) -> Vec<Offence> {
    let mut found = Vec::new();
    check_name(path, &mut found);
    check_size(path, text, &mut found);
    match text.parse::<TokenStream>() {
        Ok(tokens) => check_unfinished(path, tokens, &mut found),
        Err(error) => found.push(Offence::new(path, 1, format!("does not parse: {error}"))),
    }
    match syn::parse_file(text) {
        Ok(file) => Functions { path, found: &mut found }.visit_file(&file),
        Err(error) => {
            let line = error.span().start().line;
            found.push(Offence::new(path, line, format!("does not parse: {error}")));
        }
    }
    found
}

fn check_name(path: &str, found: &mut Vec<Offence>) {
    for part in path.trim_end_matches(".rs").split('/') {
        if EMPTY_NAMES.contains(&part) {
            let remedy = format!("`{part}` says nothing: name it after what it holds");
            found.push(Offence::new(path, 1, remedy));
        }
    }
}

fn check_size(path: &str, text: &str, found: &mut Vec<Offence>) {
    let lines = text.lines().count();
    if lines > FILE_LINES {
        let remedy = format!("{lines} lines, at most {FILE_LINES}: split it by subject");
        found.push(Offence::new(path, lines, remedy));
    }
    let is_code = |line: &&str| !line.trim().is_empty() && !line.trim().starts_with("//");
    let code = text.lines().filter(is_code).count();
    if path.ends_with("/mod.rs") && code > MOD_RS_CODE_LINES {
        let remedy = format!(
            "{code} lines of code in a mod.rs, at most {MOD_RS_CODE_LINES}: move the logic to a \
             file with a name"
        );
        found.push(Offence::new(path, 1, remedy));
    }
}

/// Finds `todo!`, `unimplemented!` and `#[ignore]`, also inside other macros' arguments.
fn check_unfinished(path: &str, tokens: TokenStream, found: &mut Vec<Offence>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    for (at, token) in tokens.iter().enumerate() {
        let line = token.span().start().line;
        match (token, tokens.get(at + 1)) {
            (TokenTree::Ident(name), Some(TokenTree::Punct(mark)))
                if mark.as_char() == '!' && (name == "todo" || name == "unimplemented") =>
            {
                found.push(Offence::new(path, line, format!("`{name}!`: finish it or remove it")));
            }
            (TokenTree::Punct(hash), Some(TokenTree::Group(attribute)))
                if hash.as_char() == '#' && ignores(attribute) =>
            {
                let remedy = "an ignored test proves nothing: make it run, or remove it";
                found.push(Offence::new(path, line, remedy));
            }
            (TokenTree::Group(group), _) => check_unfinished(path, group.stream(), found),
            _ => {}
        }
    }
}

/// Whether an attribute's brackets hold `ignore`, bare or under `cfg_attr`.
fn ignores(attribute: &proc_macro2::Group) -> bool {
    let is =
        |token: &TokenTree, word: &str| matches!(token, TokenTree::Ident(name) if name == word);
    let mut tokens = attribute.stream().into_iter();
    match tokens.next() {
        Some(first) if is(&first, "ignore") => attribute.delimiter() == Delimiter::Bracket,
        Some(first) if is(&first, "cfg_attr") => tokens.any(|token| match token {
            TokenTree::Group(group) => group.stream().into_iter().any(|token| is(&token, "ignore")),
            _ => false,
        }),
        _ => false,
    }
}

/// Measures each function from its `fn` line to its closing brace, comments included.
struct Functions<'a> {
    path: &'a str,
    found: &'a mut Vec<Offence>,
}

impl Functions<'_> {
    fn measure(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let first = signature.fn_token.span.start().line;
        let lines = block.span().end().line - first + 1;
        if lines > FUNCTION_LINES {
            let name = &signature.ident;
            let remedy = format!(
                "`{name}` has {lines} lines, at most {FUNCTION_LINES}: give its parts names"
            );
            self.found.push(Offence::new(self.path, first, remedy));
        }
    }
}

impl<'ast> Visit<'ast> for Functions<'_> {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.measure(&item.sig, &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.measure(&item.sig, &item.block);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(block) = &item.default {
            self.measure(&item.sig, block);
        }
        visit::visit_trait_item_fn(self, item);
    }
}

fn in_manifest(path: &str, text: &str) -> Vec<Offence> {
    let mut found = Vec::new();
    let manifest = match DeTable::parse(text) {
        Ok(manifest) => manifest.into_inner(),
        Err(error) => return vec![Offence::new(path, 1, format!("does not parse: {error}"))],
    };
    let Some(name) = manifest.get("package").and_then(|package| package.get_ref().get("name"))
    else {
        return found; // the workspace's own manifest: reasons stand where a dependency is used
    };
    let name = name.get_ref().as_str().unwrap_or_default();
    for dependency in dependencies(&manifest, text) {
        check_reason(path, text, &dependency, &mut found);
        check_arrow(path, name, &dependency, &mut found);
    }
    found
}

/// A dependency as a manifest lists it, with the lines that its entry starts and ends on.
struct Dependency {
    /// The crate, not the name it may be renamed to.
    name: String,
    first_line: usize,
    last_line: usize,
}

/// Normal, development and build dependencies, for every target.
fn dependencies(manifest: &DeTable<'_>, text: &str) -> Vec<Dependency> {
    let mut found = Vec::new();
    for (section, content) in manifest {
        let Some(content) = content.get_ref().as_table() else { continue };
        if section.get_ref() == "target" {
            let targets = content.values().filter_map(|target| target.get_ref().as_table());
            found.extend(targets.flat_map(|target| dependencies(target, text)));
        } else if section.get_ref().ends_with("dependencies") {
            found.extend(content.iter().map(|(key, value)| {
                let renamed = value.get_ref().get("package").map(toml::Spanned::get_ref);
                Dependency {
                    name: renamed.and_then(DeValue::as_str).unwrap_or(key.get_ref()).to_owned(),
                    first_line: line_of(text, key.span().start),
                    last_line: line_of(text, value.span().end.max(key.span().end)),
                }
            }));
        }
    }
    found
}

fn line_of(text: &str, byte: usize) -> usize {
    text.bytes().take(byte).filter(|byte| *byte == b'\n').count() + 1
}

fn check_reason(path: &str, text: &str, dependency: &Dependency, found: &mut Vec<Offence>) {
    let line = |number: usize| text.lines().nth(number.wrapping_sub(1)).unwrap_or_default().trim();
    let above = line(dependency.first_line - 1).starts_with('#');
    let beside = [dependency.first_line, dependency.last_line].map(line);
    if !above && !beside.iter().any(|line| line.contains(" #")) {
        let remedy = format!(
            "say why `{}` is needed, in a comment on the same line or the line above",
            dependency.name
        );
        found.push(Offence::new(path, dependency.first_line, remedy));
    }
}

fn check_arrow(path: &str, from: &str, dependency: &Dependency, found: &mut Vec<Offence>) {
    let Dependency { name: to, first_line, .. } = dependency;
    if DRIVERS.contains(&to.as_str()) && from != "terrace-stores" {
        let remedy = format!("`{to}` is a driver: only terrace-stores may list one");
        found.push(Offence::new(path, *first_line, remedy));
    }
    let own = to == "terrace" || to.starts_with("terrace-");
    let allowed = ARROWS.iter().find(|(name, _)| *name == from).map(|(_, allowed)| *allowed);
    let Some(allowed) = allowed else { return };
    if own && from != to && !allowed.contains(&to.as_str()) {
        let remedy = format!("{from} must not depend on {to}: it may use {allowed:?}");
        found.push(Offence::new(path, *first_line, remedy));
    }
}

/// What the rules say about one text, as lines without the path.
fn said(path: &str, text: &str) -> Vec<String> {
    offences_in(path, text)
        .into_iter()
        .map(|offence| format!("{}: {}", offence.line, offence.remedy))
        .collect()
}

#[track_caller]
fn assert_says(path: &str, text: &str, wanted: &str) {
    let said = said(path, text);
    assert!(said.len() == 1 && said[0].starts_with(wanted), "wanted {wanted:?}, said {said:?}");
}

#[test]
fn a_tidy_file_and_a_tidy_manifest_have_no_offence() {
    let source = "//! Doc.\nfn f() { let todo = \"todo!()\"; } // unimplemented!()\n";
    assert_eq!(said("a/src/near_cache.rs", source), Vec::<String>::new());
    let manifest = "[package]\nname = \"terrace-layers\"\n[dependencies]\n# The contract.\n\
                    terrace-core.workspace = true\ntracing = \"1\" # Log lines.\n";
    assert_eq!(said("a/Cargo.toml", manifest), Vec::<String>::new());
}

#[test]
fn a_long_file_is_caught() {
    assert_says("a.rs", &"// x\n".repeat(501), "501: 501 lines, at most 500");
    assert_eq!(said("a.rs", &"// x\n".repeat(500)), Vec::<String>::new());
}

#[test]
fn a_long_function_is_caught_wherever_it_stands() {
    let long = |lines: usize| format!("fn f() {{\n{}}}\n", "    g();\n".repeat(lines - 2));
    assert_eq!(said("a.rs", &long(70)), Vec::<String>::new());
    assert_says("a.rs", &long(71), "1: `f` has 71 lines");
    let inside = |what: &str| format!("{what} {{\n#[test]\n{}}}\n", long(71));
    for place in ["impl A", "trait A", "mod a", "fn outer()"] {
        let said = said("a.rs", &inside(place));
        assert!(said.iter().any(|line| line.starts_with("3: `f` has 71")), "{place}: {said:?}");
    }
}

#[test]
fn unfinished_code_is_caught_also_inside_macros() {
    assert_says("a.rs", "fn f() {\n    todo!()\n}\n", "2: `todo!`");
    assert_says(
        "a.rs",
        "fn f() {\n    select! { x => {\n unimplemented!(\"x\") } }\n}\n",
        "3: `unim",
    );
    assert_says("a.rs", "#[test]\n#[ignore = \"slow\"]\nfn f() {}\n", "2: an ignored test");
    assert_says("a.rs", "#[cfg_attr(windows, ignore)]\nfn f() {}\n", "1: an ignored test");
}

#[test]
fn a_mod_rs_with_logic_is_caught() {
    let text = "pub mod a;\n".repeat(21);
    assert_says("a/mod.rs", &text, "1: 21 lines of code in a mod.rs");
    assert_eq!(said("a/lib.rs", &text), Vec::<String>::new());
}

#[test]
fn an_empty_name_is_caught_for_files_and_folders() {
    assert_says("a/src/utils.rs", "", "1: `utils` says nothing");
    assert_says("a/tests/common/engine.rs", "", "1: `common` says nothing");
    assert_eq!(said("a/src/common_prefix.rs", ""), Vec::<String>::new());
}

#[test]
fn text_that_does_not_parse_is_an_offence() {
    assert_says("a.rs", "fn f() {}\nfn {}\n", "2: does not parse");
    assert_says("a/Cargo.toml", "[package\n", "1: does not parse");
}

#[test]
fn a_dependency_without_a_reason_is_caught() {
    let head = "[package]\nname = \"terrace\"\n";
    let bare = format!("{head}[dependencies]\n# Why.\na = \"1\"\nb = \"1\"\n");
    assert_says("Cargo.toml", &bare, "6: say why `b`");
    let dotted = format!("{head}[dev-dependencies]\na.workspace = true\n");
    assert_says("Cargo.toml", &dotted, "4: say why `a`");
    let target = format!("{head}[target.'cfg(unix)'.dependencies]\na = {{ version = \"1\" }}\n");
    assert_says("Cargo.toml", &target, "4: say why `a`");
    let last_line =
        format!("{head}[dependencies]\na = {{ version = \"1\", features = [\n] }} # Why.\n");
    assert_eq!(said("Cargo.toml", &last_line), Vec::<String>::new());
}

#[test]
fn an_arrow_in_the_wrong_direction_is_caught() {
    let manifest = |from: &str, section: &str, line: &str| {
        format!("[package]\nname = \"{from}\"\n[{section}]\n# Why.\n{line}\n")
    };
    for (from, to) in [
        ("terrace-core", "terrace-layers"),
        ("terrace-layers", "terrace-stores"),
        ("terrace-stores", "terrace-layers"),
        ("terrace-lab", "terrace-stores"),
        ("terrace-bench", "terrace-layers"),
        ("terrace-prove", "terrace"),
    ] {
        let text = manifest(from, "dev-dependencies", &format!("{to}.workspace = true"));
        assert_says("Cargo.toml", &text, &format!("5: {from} must not depend on {to}"));
    }
    let driver = manifest("terrace-layers", "dependencies", "db = { package = \"redis\" }");
    assert_says("Cargo.toml", &driver, "5: `redis` is a driver");
    let core = manifest("terrace-core", "dev-dependencies", "terrace-core = { path = \".\" }");
    assert_eq!(said("Cargo.toml", &core), Vec::<String>::new());
}
