//! S3, and what speaks its language.

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey as Key, AwsAuthorizer, AwsCredential};
use object_store::client::HttpRequest;

use super::access::{Handle, Opened, is_header_value, retry};
use super::connector::Connector;
use super::options::{ObjectOptions, Provider};
use crate::error::{Error, Kind, Result};

/// What AWS takes an unsaid region to be; elsewhere the name mostly means nothing.
const REGION: &str = "us-east-1";

/// What comes along from the environment where the keys don't.
const PLACE: [Key; 5] = [Key::Region, Key::Endpoint, Key::S3Endpoint, Key::RequestPayer, Key::SkipSignature];

/// A bucket, and how it is asked.
#[derive(Clone)]
pub(super) struct Bucket {
    store: AmazonS3,
    region: String,
    requester_pays: bool,
}

/// Opens `bucket`; `region` is one that the server has named.
pub(super) fn open(
    bucket: &str,
    options: &ObjectOptions,
    region: Option<&str>,
    connector: &Connector,
) -> Result<Opened> {
    let said: Vec<(Key, String)> = options.for_provider(Provider::S3)?;
    let environment = AmazonS3Builder::from_env();
    let of = |key: Key, said: &[(Key, String)]| {
        let last = said.iter().rev().find(|(other, _)| *other == key);
        last.map(|(_, value)| value.clone()).or_else(|| environment.get_config_value(&key))
    };
    let is_on = |key: Key| {
        of(key, &said).is_some_and(|value| matches!(&*value.to_lowercase(), "true" | "1" | "on" | "requester"))
    };
    let endpoint = last(&said, &[Key::S3Endpoint, Key::Endpoint])
        .or_else(|| environment.get_config_value(&Key::S3Endpoint))
        .or_else(|| environment.get_config_value(&Key::Endpoint));
    let region = region.map(str::to_owned).or_else(|| last(&said, &[Key::Region, Key::DefaultRegion]));
    let region = region.or_else(|| environment.get_config_value(&Key::Region)).unwrap_or_else(|| REGION.to_owned());
    let style = last(&said, &[Key::VirtualHostedStyleRequest])
        .or_else(|| environment.get_config_value(&Key::VirtualHostedStyleRequest).filter(|value| value == "true"));
    let url = bucket_url(bucket, endpoint.as_deref(), &region, style.map(|style| style == "true"));

    // An id and secret given here go with no token from the environment, which belongs to others.
    let mut builder = if said.iter().any(|(key, _)| *key == Key::AccessKeyId) {
        PLACE.into_iter().fold(AmazonS3Builder::new(), |builder, key| match environment.get_config_value(&key) {
            Some(value) => builder.with_config(key, value),
            None => builder,
        })
    } else {
        environment.clone()
    };
    for (key, value) in &said {
        builder = builder.with_config(*key, value);
    }
    builder = builder.with_bucket_name(bucket).with_region(&region).with_retry(retry());
    builder = builder.with_http_connector(connector.clone());
    let express = is_on(Key::S3Express);
    if !express {
        builder = builder.with_config(Key::S3Endpoint, &url).with_virtual_hosted_style_request(true);
    }
    if url.starts_with("http://") {
        builder = builder.with_allow_http(true);
    }
    let customer_key = "sse_customer_key_base64".parse().ok().and_then(|key| of(key, &said));
    let streamed = if express {
        Some("S3 Express sessions")
    } else if customer_key.is_some() {
        Some("customer-provided encryption keys")
    } else {
        of(Key::Client(object_store::ClientConfigKey::ProxyUrl), &said).map(|_| "a proxy")
    };
    let store = builder.build().map_err(|error| super::access::refused_options("s3", bucket, &error))?;
    let handle = Handle::S3(Bucket { store, region: region.clone(), requester_pays: is_on(Key::RequestPayer) });
    let anonymous = is_on(Key::SkipSignature);
    Ok(Opened { handle, url, region: Some(region), own_endpoint: endpoint.is_some(), anonymous, streamed })
}

/// The last value of any of `keys`, the first of them that has one.
fn last(said: &[(Key, String)], keys: &[Key]) -> Option<String> {
    keys.iter().find_map(|key| said.iter().rev().find(|(other, _)| other == key)).map(|(_, value)| value.clone())
}

/// Where the bucket's objects are.
fn bucket_url(bucket: &str, endpoint: Option<&str>, region: &str, virtual_hosted: Option<bool>) -> String {
    match endpoint.map(|endpoint| endpoint.trim_end_matches('/')) {
        None if virtual_hosted.unwrap_or(is_host_label(bucket)) => {
            format!("https://{bucket}.s3.{region}.amazonaws.com")
        }
        None => format!("https://s3.{region}.amazonaws.com/{bucket}"),
        Some(endpoint) if virtual_hosted == Some(true) => match endpoint.split_once("://") {
            Some((scheme, host)) if !host.starts_with(&format!("{bucket}.")) => format!("{scheme}://{bucket}.{host}"),
            _ => endpoint.to_owned(),
        },
        Some(endpoint) => format!("{endpoint}/{bucket}"),
    }
}

/// Whether the bucket's name can be the first part of a host's: one label, since certificates stand for one.
fn is_host_label(bucket: &str) -> bool {
    bucket.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

impl Bucket {
    pub(super) fn store(&self) -> &AmazonS3 {
        &self.store
    }

    /// Adds the headers that authorise `request`. Range and conditions are not signed: the signature is good for all ranges.
    pub(super) fn authorise(&self, credential: &AwsCredential, request: &mut HttpRequest) -> Result<()> {
        let parts = [Some(&credential.key_id), credential.token.as_ref()];
        if parts.into_iter().flatten().any(|part| !is_header_value(part)) {
            return Err(Error::new(Kind::Config, "the access key or session token has characters that no key has")
                .advice("look for a line break or quotes around it"));
        }
        AwsAuthorizer::new(credential, "s3", &self.region)
            .with_request_payer(self.requester_pays)
            .try_authorize(request, None)
            .map_err(|error| super::foreign::explained("signing", &error))
    }

    /// What goes along with a request that is not signed.
    pub(super) fn unsigned(&self) -> &'static str {
        if self.requester_pays { "x-amz-request-payer: requester\r\n" } else { "" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_where_their_endpoint_has_them() {
        for (bucket, endpoint, style, url) in [
            ("b", None, None, "https://b.s3.r.amazonaws.com"),
            ("b.c", None, None, "https://s3.r.amazonaws.com/b.c"),
            ("b", None, Some(false), "https://s3.r.amazonaws.com/b"),
            ("b", Some("http://h:9000/"), None, "http://h:9000/b"),
            ("b", Some("https://h"), Some(true), "https://b.h"),
            ("b", Some("https://b.h"), Some(true), "https://b.h"),
        ] {
            assert_eq!(bucket_url(bucket, endpoint, "r", style), url);
        }
    }
}
