//! The crate that most Rust programs read object stores with. Its defaults, connections kept.

use std::sync::Arc;

use farfeed::memory::Landing;
use futures_util::StreamExt as _;
use object_store::aws::AmazonS3Builder;
use object_store::http::HttpBuilder;
use object_store::path::Path;
use object_store::{Certificate, ClientOptions, GetOptions, ObjectStore, ObjectStoreExt as _};

use super::{BUCKET, Client, KEY, Origin, REGION, Reading, Scheme};

pub(crate) fn open(origin: &Origin) -> Arc<dyn ObjectStore> {
    let mut options = ClientOptions::new().with_allow_http(true);
    if origin.scheme == Scheme::Https {
        let authority = Certificate::from_pem(&origin.authority()).unwrap();
        options = options.with_no_system_certificates(true).with_root_certificate(authority);
    }
    if origin.scheme == Scheme::S3 {
        let store = AmazonS3Builder::new()
            .with_client_options(options)
            .with_endpoint(origin.url())
            .with_bucket_name(BUCKET)
            .with_region(REGION)
            .with_access_key_id(KEY)
            .with_secret_access_key(KEY);
        return Arc::new(store.build().unwrap());
    }
    Arc::new(HttpBuilder::new().with_url(origin.url()).with_client_options(options).build().unwrap())
}

/// `get_opts`, and each chunk of its stream copied to the pages.
pub(crate) struct Streamed(pub(crate) Arc<dyn ObjectStore>);

impl Client for Streamed {
    fn read<'a>(&'a self, key: &'a str, start: u64, landing: &'a mut Landing) -> Reading<'a> {
        Box::pin(async move {
            let options = GetOptions::new().with_range(Some(start..start + landing.len() as u64));
            let found = self.0.get_opts(&Path::from(key), options).await.unwrap();
            let (mut chunks, mut copied) = (found.into_stream(), 0);
            while let Some(chunk) = chunks.next().await {
                copied += landing.push(&chunk.unwrap()) as u64;
            }
            copied
        })
    }
}

/// `get_range`, which gives one buffer of its own, copied to the pages.
pub(crate) struct Whole(pub(crate) Arc<dyn ObjectStore>);

impl Client for Whole {
    fn read<'a>(&'a self, key: &'a str, start: u64, landing: &'a mut Landing) -> Reading<'a> {
        Box::pin(async move {
            let bytes = self.0.get_range(&Path::from(key), start..start + landing.len() as u64).await.unwrap();
            // It has collected the chunks of its stream before.
            bytes.len() as u64 + landing.push(&bytes) as u64
        })
    }
}
