//! Azure Blob Storage.

use object_store::azure::{
    AzureAuthorizer, AzureConfigKey as Key, AzureCredential, MicrosoftAzure, MicrosoftAzureBuilder,
};
use object_store::client::HttpRequest;

use super::access::{Handle, Opened, is_header_value, refused_options, retry};
use super::connector::Connector;
use super::options::{ObjectOptions, Provider};
use crate::error::{Error, Kind, Result};

/// Without it the service falls back to the ways of 2009: no quotes around ETags, no bearer tokens.
pub(super) const VERSION_LINE: &str = "x-ms-version: 2023-11-03\r\n";

/// Keys that are credentials of some kind.
const CREDENTIALS: [Key; 6] =
    [Key::AccessKey, Key::SasKey, Key::Token, Key::ClientSecret, Key::FederatedTokenFile, Key::UseAzureCli];

/// A container, and the account it is in.
#[derive(Clone)]
pub(super) struct Container {
    store: MicrosoftAzure,
    account: String,
}

/// Opens `container`.
pub(super) fn open(container: &str, options: &ObjectOptions, connector: &Connector) -> Result<Opened> {
    let said: Vec<(Key, String)> = options.for_provider(Provider::Azure)?;
    let environment = MicrosoftAzureBuilder::from_env();
    let of = |key: Key| {
        let last = said.iter().rev().find(|(other, _)| *other == key);
        last.map(|(_, value)| value.clone()).or_else(|| environment.get_config_value(&key))
    };
    let is_on = |key: Key| of(key).as_deref() == Some("true");
    if is_on(Key::UseEmulator) || is_on(Key::UseFabricEndpoint) {
        return Err(Error::new(
            Kind::Unsupported,
            format!("az://{container}: use_emulator and use_fabric_endpoint are not supported"),
        )
        .advice("name the account and its endpoint, as in http://127.0.0.1:10000/devstoreaccount1"));
    }
    let Some(account) = of(Key::AccountName) else {
        return Err(Error::new(Kind::Config, format!("az://{container}: no storage account was named"))
            .advice("set the option account_name, or AZURE_STORAGE_ACCOUNT_NAME"));
    };
    let endpoint = of(Key::Endpoint);
    let service = endpoint.clone().unwrap_or_else(|| format!("https://{account}.blob.core.windows.net"));
    let service = service.trim_end_matches('/').to_owned();

    let mut builder = match said.iter().any(|(key, _)| CREDENTIALS.contains(key)) {
        true => MicrosoftAzureBuilder::new(),
        false => environment.clone(),
    };
    for (key, value) in &said {
        builder = builder.with_config(*key, value);
    }
    builder = builder
        .with_account(&account)
        .with_container_name(container)
        .with_endpoint(service.clone())
        .with_retry(retry())
        .with_http_connector(connector.clone());
    if service.starts_with("http://") {
        builder = builder.with_allow_http(true);
    }
    let streamed = match of(Key::EncryptionKey) {
        Some(_) => Some("customer-provided encryption keys"),
        None => of(Key::Client(object_store::ClientConfigKey::ProxyUrl)).map(|_| "a proxy"),
    };
    let anonymous = is_on(Key::SkipSignature);
    let store = builder.build().map_err(|error| refused_options("az", container, &error))?;
    let url = format!("{service}/{container}");
    let handle = Handle::Azure(Container { store, account });
    Ok(Opened { handle, url, region: None, own_endpoint: endpoint.is_some(), anonymous, streamed })
}

impl Container {
    pub(super) fn store(&self) -> &MicrosoftAzure {
        &self.store
    }

    /// Adds what authorises `request`: headers, or a query where the credential is a shared access signature. An account's key signs
    /// range and condition too, so the signature is for this one request.
    pub(super) fn authorise(&self, credential: &AzureCredential, request: &mut HttpRequest) -> Result<()> {
        if matches!(credential, AzureCredential::BearerToken(token) if !is_header_value(token)) {
            return Err(Error::new(Kind::Config, "the bearer token has characters that no token has")
                .advice("look for a line break or quotes around it"));
        }
        AzureAuthorizer::new(credential, &self.account)
            .try_authorize(request)
            .map_err(|error| super::foreign::explained("signing", &error))
    }
}
