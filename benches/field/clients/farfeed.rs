//! Ours: received where it belongs.

use std::sync::Arc;

use farfeed::memory::Landing;
use farfeed::store::{HttpOptions, HttpStore, ObjectOptions, ObjectStore, ReadRequest, Store, TlsOptions};

use super::{BUCKET, Client, KEY, Origin, REGION, Reading, Scheme};

pub(crate) struct Ours {
    store: Arc<dyn Store>,
}

impl Ours {
    pub(crate) fn open(origin: &Origin) -> Self {
        let tls = TlsOptions { ca_bundle: origin.authority.clone(), ..TlsOptions::default() };
        let options = HttpOptions { tls, ..HttpOptions::default() };
        if origin.scheme == Scheme::S3 {
            let options = ObjectOptions::default().endpoint(origin.url()).region(REGION).access_key(KEY, KEY, None);
            return Ours { store: ObjectStore::open(&format!("s3://{BUCKET}"), options).unwrap() };
        }
        Ours { store: HttpStore::open(&origin.url(), options).unwrap() }
    }
}

impl Client for Ours {
    fn read<'a>(&'a self, key: &'a str, start: u64, landing: &'a mut Landing) -> Reading<'a> {
        Box::pin(async move {
            let request = ReadRequest { key: key.into(), start, size: None, version: None };
            self.store.read(&request, landing).await.unwrap().copied
        })
    }
}
