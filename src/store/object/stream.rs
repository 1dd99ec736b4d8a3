//! Bytes through `object_store`, for what our client leaves to another one: streamed, and copied into the landing.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

use futures_util::StreamExt;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore};

use super::super::http::{Asked, Tag};
use super::super::{Arrival, ObjectMeta, changed, past_end};
use super::foreign::{cause, explained};
use crate::error::{Error, Kind, Result};
use crate::memory::Landing;

/// Objects that took the detour before the whole store does: a server that answers so for a few does for all.
const OBJECTS_MAX: usize = 4;

/// What is read through the fallback from now on, and why: asking our own client first costs a round trip, and its connection.
#[derive(Debug, Default)]
pub(super) struct Detours {
    all: OnceLock<&'static str>,
    some: Mutex<HashMap<Box<str>, &'static str>>,
}

impl Detours {
    /// Everything, for that reason.
    pub(super) fn everywhere(why: &'static str) -> Self {
        Detours { all: OnceLock::from(why), some: Mutex::default() }
    }

    /// Why an object is read through the fallback, if it is.
    pub(super) fn why(&self, key: &str) -> Option<&'static str> {
        let some = || self.some.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied();
        self.all.get().copied().or_else(some)
    }

    /// Remembers an object, or that it is one too many.
    pub(super) fn note(&self, key: &str, why: &'static str) {
        let mut some = self.some.lock().unwrap_or_else(PoisonError::into_inner);
        some.insert(key.into(), why);
        if some.len() >= OBJECTS_MAX {
            let _ = self.all.set(why);
            some.clear();
        }
    }
}

/// Fills `landing` with what was asked for.
pub(super) async fn read(
    objects: &dyn ObjectStore,
    asked: &Asked<'_>,
    landing: &mut Landing,
    why: &'static str,
) -> Result<Arrival> {
    let began = Instant::now();
    let options = GetOptions {
        range: Some(GetRange::Bounded(asked.range.clone())),
        if_match: asked.if_match().map(str::to_owned),
        ..GetOptions::default()
    };
    let path = path(asked)?;
    let answer = objects.get_opts(&path, options).await.map_err(|error| refusal(asked, &error))?;
    asked.check_size(answer.meta.size)?;
    if answer.range != asked.range {
        let (wanted, sent) = (&asked.range, &answer.range);
        let what =
            format!("bytes {}..{} wanted, the server sent {}..{}", wanted.start, wanted.end, sent.start, sent.end);
        return Err(asked.error(Kind::Corrupt, what));
    }
    let version = with_tag(&answer.meta, |tag| asked.check_version(tag))?;
    let mut arrival = Arrival { version, first_byte: began.elapsed(), fallback: Some(why), ..Arrival::default() };
    let mut chunks = answer.into_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| broken(asked, landing).source(cause(&error)))?;
        let copied = landing.push(&chunk);
        arrival.copied += copied as u64;
        if copied < chunk.len() {
            return Err(asked.error(Kind::Corrupt, "more bytes than were asked for"));
        }
    }
    if landing.remaining() > 0 {
        return Err(broken(asked, landing));
    }
    Ok(arrival)
}

/// Size and version: by the answer to a range, which tells them even where HEAD does not; of an empty object, which has none, by HEAD.
pub(super) async fn head(objects: &dyn ObjectStore, asked: &Asked<'_>) -> Result<ObjectMeta> {
    let path = path(asked)?;
    let range = GetOptions { range: Some(GetRange::Bounded(0..1)), ..GetOptions::default() };
    let meta = match objects.get_opts(&path, range).await {
        Ok(answer) => answer.meta,
        Err(error) if error.to_string().contains("status code: 416") => {
            let head = GetOptions { head: true, ..GetOptions::default() };
            objects.get_opts(&path, head).await.map_err(|error| refusal(asked, &error))?.meta
        }
        Err(error) => return Err(refusal(asked, &error)),
    };
    Ok(ObjectMeta { size: meta.size, version: with_tag(&meta, |tag| tag.map(Tag::version)) })
}

/// The key as `object_store` wants it.
fn path(asked: &Asked<'_>) -> Result<Path> {
    Path::parse(asked.key).ok().filter(|path| path.as_ref() == asked.key).ok_or_else(|| {
        asked
            .error(
                Kind::Unsupported,
                "the fallback client cannot read a key with empty parts, or with a slash at its end",
            )
            .advice("rename the object")
    })
}

/// What the answer tells of the object's content, as our own client would have it.
fn with_tag<T>(meta: &object_store::ObjectMeta, then: impl FnOnce(Option<Tag<'_>>) -> T) -> T {
    if let Some(etag) = &meta.e_tag {
        return then(Some(Tag::Etag(etag)));
    }
    // Without the header it is the beginning of the epoch.
    if meta.last_modified.timestamp() == 0 {
        return then(None);
    }
    let modified = meta.last_modified.format("%a, %d %b %Y %H:%M:%S GMT").to_string();
    then(Some(Tag::Dated { modified: &modified, size: meta.size }))
}

fn refusal(asked: &Asked<'_>, error: &object_store::Error) -> Error {
    let text = error.to_string();
    match error {
        object_store::Error::Precondition { .. } => match asked.version {
            Some(version) => changed(asked.root, asked.key, version, &"another version"),
            None => asked.error(Kind::Io, "the server refused a condition that was not made"),
        },
        _ if text.contains("status code: 416") || text.contains("but object was only") => match asked.size {
            Some(size) => past_end(asked.root, asked.key, &asked.range, size),
            None => asked.error(
                Kind::Corrupt,
                format!("bytes {}..{} are past the object's end", asked.range.start, asked.range.end),
            ),
        },
        object_store::Error::NotSupported { .. } => asked
            .error(Kind::Unsupported, "the server ignores Range, for the fallback client too")
            .advice("use a server that serves byte ranges"),
        _ => explained(format_args!("{}{}", asked.root, asked.key), error),
    }
}

fn broken(asked: &Asked<'_>, landing: &Landing) -> Error {
    let (filled, len) = (landing.filled(), landing.len());
    asked.error(Kind::Io, format!("the connection broke after {filled} of {len} bytes")).transient()
}
