//! The client that most Rust programs use for HTTP: its stream of bytes, copied to the pages.

use farfeed::memory::Landing;
use futures_util::StreamExt as _;
use reqwest::header::RANGE;
use reqwest::{Certificate, StatusCode};

use super::{Client, Origin, Reading, Scheme};

pub(crate) struct Reqwest {
    client: reqwest::Client,
    url: String,
}

impl Reqwest {
    pub(crate) fn open(origin: &Origin) -> Self {
        let mut builder = reqwest::Client::builder().http1_only();
        if origin.scheme == Scheme::Https {
            builder = builder.tls_certs_only([Certificate::from_pem(&origin.authority()).unwrap()]);
        }
        Reqwest { client: builder.build().unwrap(), url: origin.url() }
    }
}

impl Client for Reqwest {
    fn read<'a>(&'a self, key: &'a str, start: u64, landing: &'a mut Landing) -> Reading<'a> {
        Box::pin(async move {
            let range = format!("bytes={start}-{}", start + landing.len() as u64 - 1);
            let request = self.client.get(format!("{}/{key}", self.url)).header(RANGE, range);
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), StatusCode::PARTIAL_CONTENT);
            let (mut chunks, mut copied) = (response.bytes_stream(), 0);
            while let Some(chunk) = chunks.next().await {
                copied += landing.push(&chunk.unwrap()) as u64;
            }
            copied
        })
    }
}
