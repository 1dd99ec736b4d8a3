//! Relative links in the documentation lead somewhere: to a file, and to a heading of it where they name one.
#![expect(clippy::unwrap_used, reason = "a test may")]

use std::fs;
use std::path::{Path, PathBuf};

/// Folders that hold no documentation of ours.
const FOREIGN: [&str; 4] = ["target", ".git", ".venv", "node_modules"];

#[test]
fn every_relative_link_leads_somewhere() {
    let pages = pages(Path::new(env!("CARGO_MANIFEST_DIR")));
    assert!(pages.iter().any(|page| page.ends_with("README.md")), "{pages:?}");
    let (mut checked, mut broken) = (0, Vec::new());
    for page in &pages {
        for link in links(&fs::read_to_string(page).unwrap()) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            checked += 1;
            if !leads_somewhere(page, &link) {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
    assert!(checked > 10, "only {checked} relative links were found: the reader of links is broken");
}

#[test]
fn links_and_headings_are_recognised() {
    let text = "[a](b.md) ![c](d/e.svg) `[no](code)` [f](g.md#h-i)\n```\n[no](fence)\n```\n[x](y \"title\")";
    assert_eq!(links(text), ["b.md", "d/e.svg", "g.md#h-i", "y"]);
    assert_eq!(anchor("## What it does *not* do: `x_y`"), "what-it-does-not-do-x_y");
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    assert!(leads_somewhere(&here, "docs/emulate.md#what-it-does-not") && leads_somewhere(&here, "#licence"));
    assert!(!leads_somewhere(&here, "docs/absent.md") && !leads_somewhere(&here, "docs/emulate.md#absent"));
}

/// All Markdown files of ours.
fn pages(root: &Path) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let (path, name) = (entry.path(), entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                if !FOREIGN.iter().any(|foreign| name == *foreign) {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    found
}

/// Targets of the links outside code.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        // Every other part between backticks is code.
        let prose: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
        for rest in prose.split("](").skip(1) {
            let target = rest.split([')', ' ']).next().unwrap_or_default();
            found.push(target.to_owned());
        }
    }
    found
}

fn leads_somewhere(page: &Path, link: &str) -> bool {
    let (path, heading) = link.split_once('#').map_or((link, None), |(path, heading)| (path, Some(heading)));
    let target = if path.is_empty() { page.to_owned() } else { page.parent().unwrap().join(path) };
    match heading {
        None => target.exists(),
        Some(heading) => fs::read_to_string(target)
            .is_ok_and(|text| text.lines().any(|line| line.starts_with('#') && anchor(line) == heading)),
    }
}

/// What a heading is linked by.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|letter| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_'));
    kept.map(|letter| if letter == ' ' { '-' } else { letter }).collect()
}
