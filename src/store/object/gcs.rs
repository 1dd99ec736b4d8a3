//! Google Cloud Storage, by its XML interface.

use object_store::gcp::{GoogleCloudStorage, GoogleCloudStorageBuilder, GoogleConfigKey as Key};

use super::access::{Handle, Opened, refused_options, retry};
use super::connector::Connector;
use super::options::{ObjectOptions, Provider};
use crate::error::Result;

const ENDPOINT: &str = "https://storage.googleapis.com";

/// A bucket.
pub(super) type Bucket = GoogleCloudStorage;

/// Opens `bucket`.
pub(super) fn open(bucket: &str, options: &ObjectOptions, connector: &Connector) -> Result<Opened> {
    let said: Vec<(Key, String)> = options.for_provider(Provider::Gcs)?;
    let environment = GoogleCloudStorageBuilder::from_env();
    // Credentials given here replace those of the environment: two kinds at once are refused.
    let own = [Key::ServiceAccount, Key::ServiceAccountKey, Key::ApplicationCredentials, Key::BearerToken];
    let mut builder = match said.iter().any(|(key, _)| own.contains(key)) {
        true => GoogleCloudStorageBuilder::new(),
        false => environment.clone(),
    };
    for (key, value) in &said {
        builder = builder.with_config(*key, value);
    }
    let endpoint = builder.get_config_value(&Key::BaseUrl).or_else(|| environment.get_config_value(&Key::BaseUrl));
    let base = endpoint.as_deref().unwrap_or(ENDPOINT).trim_end_matches('/').to_owned();
    let mut client = object_store::ClientOptions::new();
    for (key, value) in &said {
        if let Key::Client(key) = key {
            client = client.with_config(*key, value);
        }
    }
    if base.starts_with("http://") {
        client = client.with_allow_http(true);
    }
    let anonymous = builder.get_config_value(&Key::SkipSignature).as_deref() == Some("true");
    let streamed = client.get_config_value(&object_store::ClientConfigKey::ProxyUrl).map(|_| "a proxy");
    let builder = builder
        .with_bucket_name(bucket)
        .with_config(Key::BaseUrl, &base)
        .with_client_options(client)
        .with_retry(retry())
        .with_http_connector(connector.clone());
    let store = builder.build().map_err(|error| refused_options("gs", bucket, &error))?;
    let url = format!("{base}/{bucket}");
    let own_endpoint = endpoint.is_some();
    Ok(Opened { handle: Handle::Gcs(store), url, region: None, own_endpoint, anonymous, streamed })
}
