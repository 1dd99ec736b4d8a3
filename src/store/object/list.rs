//! What there is below a prefix.

use object_store::list::PaginatedListOptions;

use super::super::ObjectEntry;
use super::super::http::Refused;
use super::foreign::explained;
use super::{ObjectStore, Tried};
use crate::error::{Error, Kind, Result};

/// Objects that one listing may find.
const OBJECTS_MAX: usize = 1_000_000;
/// Pages that one listing may have; a server that always names a next one would never end.
const PAGES_MAX: usize = 20_000;

impl ObjectStore {
    /// Objects whose keys start with `prefix`, sorted.
    pub(super) async fn list_below(&self, prefix: &str) -> Result<Vec<ObjectEntry>> {
        let (mut found, mut token, mut tried) = (Vec::new(), None, Tried::default());
        for _ in 0..PAGES_MAX {
            let page = loop {
                let entry = self.access.current();
                let options = PaginatedListOptions { page_token: token.clone(), ..PaginatedListOptions::default() };
                let whole = Some(prefix).filter(|prefix| !prefix.is_empty());
                let error = match entry.pages().list_paginated(whole, options).await {
                    Ok(page) => break page,
                    Err(error) => explained(format_args!("listing {}{prefix}", self.root), &error),
                };
                let error = self.with_region(error, prefix).await;
                self.again(error, &entry, prefix, &mut tried)?;
            };
            for object in page.result.objects {
                let key = String::from(object.location);
                // Folders of web consoles are objects too, of no bytes, whose keys end in a slash that is cut off on the way here.
                if key.starts_with(prefix) {
                    found.push(ObjectEntry { key, size: object.size });
                }
            }
            if found.len() > OBJECTS_MAX {
                return Err(too_many(&self.root, prefix));
            }
            token = page.page_token;
            if token.is_none() {
                found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
                return Ok(found);
            }
        }
        Err(too_many(&self.root, prefix))
    }

    /// A redirect without a word: our own client sees the header that names the region.
    async fn with_region(&self, error: Error, prefix: &str) -> Error {
        if Refused::of(&error).is_none_or(|refused| refused.status != 301 || refused.region.is_some()) {
            return error;
        }
        let entry = self.access.current();
        let asked = super::Asked::meta(&self.root, if prefix.is_empty() { "x" } else { prefix });
        match self.ask_size(&entry, &asked).await {
            Err(told) if Refused::of(&told).is_some_and(|refused| refused.region.is_some()) => told,
            _ => error,
        }
    }
}

fn too_many(root: &str, prefix: &str) -> Error {
    Error::new(Kind::Config, format!("{root}{prefix}: more than {OBJECTS_MAX} objects"))
        .advice("name the shards with braces, as in train-{0000..0255}.tar, or a longer prefix")
}
