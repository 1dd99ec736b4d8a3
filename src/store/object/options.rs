//! What can be set, by which name, for which provider.

use std::fmt;
use std::str::FromStr;

use object_store::ClientConfigKey;

use super::super::HttpOptions;
use crate::error::{Error, Kind, Result};

/// Where objects are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Provider {
    S3,
    Gcs,
    Azure,
}

/// Settings of an [`ObjectStore`](super::ObjectStore): each a name and a value, and those of the client that fetches the bytes.
///
/// Names are those of the crate `object_store`, in lower case: `region`, `endpoint`, `access_key_id`, `account_name` and so on. With
/// `aws_`, `google_` or `azure_` in front they hold for that provider only, without for each provider that is opened with them. What
/// is set here counts before what the environment says.
///
/// Neither names nor values of the environment, nor values set here, appear in its `Debug`.
#[derive(Clone, Default)]
pub struct ObjectOptions {
    pub(super) http: HttpOptions,
    settings: Vec<(String, String)>,
}

impl ObjectOptions {
    /// Deadlines and limits of the connections, for the bytes as for everything else.
    #[must_use]
    pub fn http(mut self, http: HttpOptions) -> Self {
        self.http = http;
        self
    }

    /// Sets one. The last value counts.
    #[must_use]
    pub fn set(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((key.into().to_ascii_lowercase(), value.into()));
        self
    }

    /// The region of the bucket, as in `eu-central-1`. Default: what the environment says, else what the server names.
    #[must_use]
    pub fn region(self, region: impl Into<String>) -> Self {
        self.set("aws_region", region)
    }

    /// Another server than the provider's own: `https://minio.example.org:9000`, `https://ACCOUNT.r2.cloudflarestorage.com`. With
    /// `http://` nothing is encrypted.
    #[must_use]
    pub fn endpoint(self, url: impl Into<String>) -> Self {
        self.set("endpoint", url)
    }

    /// Whether the bucket is part of the server's name (`bucket.s3.…`) or of the path. Default: of the name at AWS, unless the bucket's name
    /// does not fit into one; of the path at other endpoints.
    #[must_use]
    pub fn virtual_hosted(self, virtual_hosted: bool) -> Self {
        self.set("aws_virtual_hosted_style_request", virtual_hosted.to_string())
    }

    /// Asks without credentials, and looks for none: for public buckets.
    #[must_use]
    pub fn anonymous(self) -> Self {
        self.set("skip_signature", "true")
    }

    /// Agrees to pay for requests and traffic of a requester-pays bucket (S3).
    #[must_use]
    pub fn requester_pays(self) -> Self {
        self.set("aws_request_payer", "requester")
    }

    /// An access key of S3, with its session token if it is a temporary one. No credentials are looked for elsewhere then.
    #[must_use]
    pub fn access_key(self, id: impl Into<String>, secret: impl Into<String>, token: Option<&str>) -> Self {
        let keys = self.set("aws_access_key_id", id).set("aws_secret_access_key", secret);
        match token {
            Some(token) => keys.set("aws_session_token", token),
            None => keys,
        }
    }

    /// What is set for `provider`, parsed, in the order in which it was set.
    ///
    /// # Errors
    /// `Config` for a name that means nothing there, unless it is another provider's.
    pub(super) fn for_provider<K: FromStr>(&self, provider: Provider) -> Result<Vec<(K, String)>> {
        let mut known = Vec::new();
        for (key, value) in &self.settings {
            // The one thing that all have and not all call alike.
            let name = if provider == Provider::Gcs && key == "endpoint" { "base_url" } else { key };
            match name.parse() {
                Ok(key) => known.push((key, value.clone())),
                Err(_) if provider.is_foreign(key) => {}
                Err(_) => return Err(unknown(key, provider.scheme())),
            }
        }
        Ok(known)
    }

    /// What is set for any web server; names of providers mean nothing there.
    pub(super) fn for_web(&self) -> Result<Vec<(ClientConfigKey, String)>> {
        let mut known = Vec::new();
        for (key, value) in &self.settings {
            match key.parse() {
                Ok(key) => known.push((key, value.clone())),
                // It may be meant for other shards of the same dataset.
                Err(_) if Provider::ALL.iter().any(|provider| provider.knows(key)) => {}
                Err(_) => return Err(unknown(key, "http")),
            }
        }
        Ok(known)
    }
}

impl Provider {
    const ALL: [Provider; 3] = [Provider::S3, Provider::Gcs, Provider::Azure];

    pub(super) fn scheme(self) -> &'static str {
        match self {
            Provider::S3 => "s3",
            Provider::Gcs => "gs",
            Provider::Azure => "az",
        }
    }

    fn prefix(self) -> &'static str {
        match self {
            Provider::S3 => "aws_",
            Provider::Gcs => "google_",
            Provider::Azure => "azure_",
        }
    }

    fn knows(self, key: &str) -> bool {
        match self {
            Provider::S3 => key.parse::<object_store::aws::AmazonS3ConfigKey>().is_ok(),
            Provider::Gcs => key.parse::<object_store::gcp::GoogleConfigKey>().is_ok(),
            Provider::Azure => key.parse::<object_store::azure::AzureConfigKey>().is_ok(),
        }
    }

    /// Whether `key` says that it is another provider's, and that one knows it.
    fn is_foreign(self, key: &str) -> bool {
        Provider::ALL.iter().any(|other| *other != self && key.starts_with(other.prefix()) && other.knows(key))
    }
}

fn unknown(key: &str, scheme: &str) -> Error {
    Error::new(Kind::Config, format!("{scheme}:// has no option '{}'", key.escape_debug())).advice(
        "names are listed in docs/stores.md; those with aws_, google_ or azure_ in front are kept to that provider",
    )
}

impl fmt::Debug for ObjectOptions {
    /// Names only: values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.settings.iter().map(|(key, _)| key).collect();
        f.debug_struct("ObjectOptions").field("http", &self.http).field("settings", &names).finish()
    }
}

#[cfg(test)]
mod tests {
    use object_store::aws::AmazonS3ConfigKey;
    use object_store::azure::AzureConfigKey;
    use object_store::gcp::GoogleConfigKey;

    use super::*;

    #[test]
    fn options_reach_the_provider_they_name() {
        let options =
            ObjectOptions::default().set("AWS_REGION", "r").endpoint("http://h").set("google_bearer_token", "t");
        let s3 = options.for_provider::<AmazonS3ConfigKey>(Provider::S3).unwrap();
        assert_eq!(s3.iter().map(|(_, value)| value.as_str()).collect::<Vec<_>>(), ["r", "http://h"]);
        let gcs = options.for_provider::<GoogleConfigKey>(Provider::Gcs).unwrap();
        assert!(gcs.iter().any(|(key, _)| *key == GoogleConfigKey::BaseUrl) && gcs.len() == 2);
        assert_eq!(options.for_provider::<AzureConfigKey>(Provider::Azure).unwrap().len(), 1);
        assert!(options.for_web().unwrap().is_empty());
        let plain = ObjectOptions::default().set("region", "r");
        let error = plain.for_provider::<AzureConfigKey>(Provider::Azure).err().unwrap();
        assert!(error.kind() == Kind::Config && error.to_string().contains("az:// has no option 'region'"), "{error}");
        let slip = ObjectOptions::default().set("aws_regoin", "r");
        assert!(slip.for_provider::<GoogleConfigKey>(Provider::Gcs).is_err() && slip.for_web().is_err());
    }

    #[test]
    fn values_are_not_shown() {
        let options = ObjectOptions::default().access_key("id", "much-secret", Some("token-secret"));
        let shown = format!("{options:?}");
        assert!(shown.contains("aws_session_token") && !shown.contains("-secret"), "{shown}");
    }
}
