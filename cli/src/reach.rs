//! Options that all commands share which read from a store: whom to trust, and how a bucket is reached.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use farfeed::loader::LoaderBuilder;
use farfeed::{Error, Kind, Result};

/// How to reach the storage.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Reach {
    /// Certificates to trust in place of the system's, as PEM
    #[arg(long, value_name = "FILE", help_heading = "Storage")]
    ca_bundle: Option<PathBuf>,
    /// Certificate to show to servers that ask for one, with its chain, as PEM
    #[arg(long, value_name = "FILE", requires = "client_key", help_heading = "Storage")]
    client_certificate: Option<PathBuf>,
    /// Private key of that certificate, as PEM
    #[arg(long, value_name = "FILE", requires = "client_certificate", help_heading = "Storage")]
    client_key: Option<PathBuf>,
    /// Setting of a bucket or a proxy, as in endpoint=https://minio.example.org:9000 or region=eu-central-1; may be repeated.
    /// Others see what is written here: secrets belong into the environment
    #[arg(long = "store-option", value_name = "KEY=VALUE", help_heading = "Storage")]
    settings: Vec<Setting>,
}

/// One `KEY=VALUE`.
#[derive(Clone)]
struct Setting {
    key: String,
    value: String,
}

impl Reach {
    /// `builder` with all of this said.
    pub(crate) fn apply(&self, mut builder: LoaderBuilder) -> LoaderBuilder {
        if let Some(file) = &self.ca_bundle {
            builder = builder.ca_bundle(file);
        }
        if let (Some(chain), Some(key)) = (&self.client_certificate, &self.client_key) {
            builder = builder.client_certificate(chain, key);
        }
        self.settings.iter().fold(builder, |builder, setting| builder.store_option(&setting.key, &setting.value))
    }
}

impl FromStr for Setting {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() => {
                Ok(Setting { key: key.trim().to_owned(), value: value.to_owned() })
            }
            // Not shown: it may be a secret that lacks its name.
            _ => Err(Error::new(Kind::Config, "a setting without a name")
                .advice("write KEY=VALUE, as in region=eu-central-1")),
        }
    }
}

impl std::fmt::Debug for Setting {
    /// Without the value: it may be a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Setting").field("key", &self.key).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_have_names_and_show_no_values() {
        let setting: Setting = "endpoint=http://h/?a=b".parse().unwrap();
        assert_eq!((setting.key.as_str(), setting.value.as_str()), ("endpoint", "http://h/?a=b"));
        assert!(!format!("{setting:?}").contains("http"));
        for text in ["secret", "=secret"] {
            let error = text.parse::<Setting>().unwrap_err();
            assert!(error.kind() == Kind::Config && !error.to_string().contains("secret"), "{error}");
        }
    }
}
