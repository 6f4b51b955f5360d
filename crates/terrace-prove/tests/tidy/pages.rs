//! The pages of documentation, held by a test: every link leads somewhere, to a heading that is there,
//! and the site's table of contents (`docs/SUMMARY.md`) has every page.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::Offence;

const CONTENTS: &str = "docs/SUMMARY.md";

#[test]
fn every_link_leads_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut pages = Pages::default();
    pages.collect(&root, "");
    assert!(pages.texts.len() > 50, "found only {} pages", pages.texts.len());
    let offences: Vec<String> = pages.offences().iter().map(ToString::to_string).collect();
    assert!(offences.is_empty(), "{} to repair:\n{}", offences.len(), offences.join("\n"));
}

/// Texts of pages by their paths, and everything that a link may lead to.
#[derive(Default)]
struct Pages {
    texts: BTreeMap<String, String>,
    places: BTreeSet<String>,
}

impl Pages {
    /// Everything below `root`, without build output and hidden folders.
    fn collect(&mut self, root: &Path, below: &str) {
        self.places.insert(below.to_owned());
        let entries = fs::read_dir(root.join(below))
            .unwrap_or_else(|error| panic!("cannot list {below}: {error}"));
        for entry in entries {
            let entry = entry.unwrap_or_else(|error| panic!("in {below}: {error}"));
            let name = entry.file_name().into_string().unwrap_or_else(|name| panic!("{name:?}"));
            let path = if below.is_empty() { name.clone() } else { format!("{below}/{name}") };
            if name == "target" || name.starts_with('.') {
                continue;
            }
            if entry.path().is_dir() {
                self.collect(root, &path);
            } else {
                if name.ends_with(".md") {
                    let text = fs::read_to_string(entry.path())
                        .unwrap_or_else(|error| panic!("cannot read {path}: {error}"));
                    self.texts.insert(path.clone(), text);
                }
                self.places.insert(path);
            }
        }
    }

    fn offences(&self) -> Vec<Offence> {
        let links = self.texts.iter().flat_map(|(path, text)| {
            let found = links(text).into_iter();
            found.filter_map(|(line, link)| {
                let remedy = self.wrong_with(path, link)?;
                Some(Offence::new(path, line, remedy))
            })
        });
        links.chain(self.unlisted()).collect()
    }

    /// What is wrong with a link on the page at `from`. Links to other machines are not looked at.
    fn wrong_with(&self, from: &str, link: &str) -> Option<String> {
        if ["http:", "https:", "mailto:"].iter().any(|scheme| link.starts_with(scheme)) {
            return None;
        }
        let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
        let Some(place) = resolve(from, path) else {
            return Some(format!("`{link}` leads out of the repository"));
        };
        if !self.places.contains(&place) {
            return Some(format!("`{link}`: there is no {place}"));
        }
        let text = self.texts.get(&place)?;
        let known = anchor.is_empty() || anchors(text).iter().any(|have| have == anchor);
        (!known).then(|| format!("`{link}`: {place} has no heading for #{anchor}"))
    }

    /// Pages below `docs` that the table of contents does not have.
    fn unlisted(&self) -> Vec<Offence> {
        let contents = self.texts.get(CONTENTS).map_or("", String::as_str);
        let listed: BTreeSet<String> =
            links(contents).into_iter().filter_map(|(_, link)| resolve(CONTENTS, link)).collect();
        let pages = self.texts.keys().filter(|path| path.starts_with("docs/"));
        pages
            .filter(|path| *path != CONTENTS && !listed.contains(*path))
            .map(|path| Offence::new(path, 1, format!("{CONTENTS} does not list this page")))
            .collect()
    }
}

/// The path that `link` means on the page at `from`, or `None` when it leads out of the root.
fn resolve(from: &str, link: &str) -> Option<String> {
    if link.is_empty() {
        return Some(from.to_owned());
    }
    let mut place = PathBuf::from(from);
    place.pop();
    for part in Path::new(link).components() {
        match part {
            Component::Normal(name) => place.push(name),
            Component::CurDir => {}
            Component::ParentDir if place.pop() => {}
            _ => return None,
        }
    }
    place.to_str().map(str::to_owned)
}

/// The lines of a page that are no code, each with its number.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut code = false;
    text.lines().enumerate().filter_map(move |(at, line)| {
        let fence = line.trim_start().starts_with("```");
        code ^= fence;
        (!code && !fence).then_some((at + 1, line))
    })
}

/// What the links of a page lead to, with their lines.
fn links(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for (number, line) in prose(text) {
        let mut rest = line;
        while let Some(at) = rest.find("](") {
            let in_code = rest[..at].matches('`').count() % 2 == 1;
            rest = &rest[at + 2..];
            let Some(end) = rest.find(')') else { break };
            if !in_code {
                found.push((number, &rest[..end]));
                rest = &rest[end..];
            }
        }
    }
    found
}

/// The anchors of a page's headings, made as GitHub and mdBook make them.
fn anchors(text: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for (_, line) in prose(text) {
        let heading = line.trim_start_matches('#');
        if heading.len() == line.len() || !heading.starts_with(' ') {
            continue;
        }
        let kept = heading
            .trim()
            .chars()
            .filter(|letter| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_'));
        let anchor = kept.collect::<String>().to_lowercase().replace(' ', "-");
        let again = found
            .iter()
            .filter(|have| have.strip_suffix(char::is_numeric).unwrap_or(have) == anchor)
            .count();
        found.push(if again == 0 { anchor } else { format!("{anchor}-{again}") });
    }
    found
}

/// What is said of some pages, of which the table of contents lists all.
fn said(pages: &[(&str, &str)]) -> Vec<String> {
    let mut all = Pages::default();
    let mut contents = String::new();
    for (path, text) in pages {
        all.texts.insert((*path).to_owned(), (*text).to_owned());
        let listed = path.strip_prefix("docs/").map(|path| format!("- [x]({path})\n"));
        contents.push_str(listed.as_deref().unwrap_or_default());
    }
    all.texts.entry(CONTENTS.to_owned()).or_insert(contents);
    all.places.extend(all.texts.keys().cloned());
    all.places.insert("docs".to_owned());
    all.offences().iter().map(ToString::to_string).collect()
}

#[test]
fn links_that_lead_somewhere_are_no_offence() {
    let page = "# One\n[a](b.md#two-and-three), [up](../README.md), [web](https://example.org/x)\n\
                [folder](../docs), [here](#one) `[code](nowhere)`\n```\n[code](nowhere)\n```\n";
    let other = "# Two and `three`!\n## Same\n## Same\n";
    assert_eq!(
        said(&[("docs/a.md", page), ("docs/b.md", other), ("README.md", "[](docs/b.md#same-1)")]),
        Vec::<String>::new()
    );
}

#[test]
fn a_link_to_nothing_is_caught() {
    let wanted = "docs/a.md:2: `c.md`: there is no docs/c.md";
    assert_eq!(said(&[("docs/a.md", "# A\nsee [c](c.md)\n")]), [wanted]);
    let wanted = "docs/a.md:1: `../../x` leads out of the repository";
    assert_eq!(said(&[("docs/a.md", "[x](../../x)\n")]), [wanted]);
}

#[test]
fn a_link_to_a_heading_that_is_gone_is_caught() {
    let pages = [("docs/a.md", "[b](b.md#gone) [`b`](b.md#b)\n"), ("docs/b.md", "# B\n")];
    assert_eq!(said(&pages), ["docs/a.md:1: `b.md#gone`: docs/b.md has no heading for #gone"]);
}

#[test]
fn a_page_that_the_contents_lack_is_caught() {
    let pages = [("docs/a.md", "# A\n"), (CONTENTS, "# Contents\n")];
    assert_eq!(said(&pages), ["docs/a.md:1: docs/SUMMARY.md does not list this page"]);
}
