//! Who asks: credentials, signatures, and what becomes of both when they end.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use http::header::{AUTHORIZATION, HOST, IF_MATCH, RANGE};
use http::{HeaderValue, Method};
use object_store::aws::AwsCredential;
use object_store::client::{HttpRequest, HttpRequestBody};
use object_store::list::PaginatedListStore;
use object_store::{BackoffConfig, CredentialProvider, ObjectStore, RetryConfig};

use super::super::http::{Asked, Root, Security, Target};
use super::connector::Connector;
use super::foreign::cause;
use super::options::{ObjectOptions, Provider};
use super::{azure, gcs, s3};
use crate::error::{Error, Kind, Result};

/// How long a signature is used. It is good for 15 minutes by the server's clock, and the providers renew credentials five minutes
/// before they end: neither ends in use, even where the clocks differ by ten minutes.
const SIGNATURE_AGE_MAX: Duration = Duration::from_secs(4 * 60);
/// Signatures kept. Beyond, all are forgotten: to sign again costs microseconds.
const SIGNATURES_MAX: usize = 4096;

/// One bucket and the credentials for it, for all reactors.
pub(super) struct Access {
    provider: Provider,
    bucket: String,
    options: ObjectOptions,
    connector: Connector,
    current: RwLock<Arc<Entry>>,
    signatures: Mutex<HashMap<(Method, Box<str>), Signature>>,
}

/// A provider's store as it was opened.
pub(super) struct Opened {
    pub(super) handle: Handle,
    /// Where the bucket's objects are.
    pub(super) url: String,
    pub(super) region: Option<String>,
    /// Whether the server is not the provider's own.
    pub(super) own_endpoint: bool,
    pub(super) anonymous: bool,
    /// Why all bytes go through the fallback, if they do.
    pub(super) streamed: Option<&'static str>,
}

#[derive(Clone)]
pub(super) enum Handle {
    S3(s3::Bucket),
    Gcs(gcs::Bucket),
    Azure(azure::Container),
}

/// What requests go by at present.
pub(super) struct Entry {
    /// Rises with each renewal.
    pub(super) generation: u64,
    pub(super) root: Root,
    /// Scheme and host.
    origin: String,
    opened: Opened,
    /// Whether there were credentials: then what keeps them away may pass.
    known: AtomicBool,
}

struct Signature {
    target: Target,
    credential: Arc<AwsCredential>,
    since: Instant,
}

impl Access {
    pub(super) fn open(
        provider: Provider,
        bucket: &str,
        options: ObjectOptions,
        security: &Arc<Security>,
    ) -> Result<Self> {
        let connector = Connector::new(options.http.clone(), Arc::clone(security));
        let current = Arc::new(Entry::open(provider, bucket, &options, &connector, 0, None)?);
        let (bucket, signatures) = (bucket.to_owned(), Mutex::default());
        Ok(Access { provider, bucket, options, connector, current: RwLock::new(current), signatures })
    }

    pub(super) fn current(&self) -> Arc<Entry> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Forgets credentials and signatures of `generation`, and looks for credentials anew, the environment included. Of many that
    /// ask at once the first one does it.
    pub(super) fn renew(&self, generation: u64, region: Option<&str>) -> Result<()> {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if current.generation == generation {
            let region = region.or(current.opened.region.as_deref());
            let entry =
                Entry::open(self.provider, &self.bucket, &self.options, &self.connector, generation + 1, region)?;
            entry.known.store(current.known.load(Ordering::Relaxed), Ordering::Relaxed);
            *current = Arc::new(entry);
            self.signatures().clear();
        }
        Ok(())
    }

    /// Where `asked` goes, with all that authorises it.
    pub(super) async fn target(&self, entry: &Entry, method: Method, asked: &Asked<'_>) -> Result<Target> {
        check_key(asked)?;
        let mut target = entry.root.target(asked.key);
        if entry.opened.anonymous {
            target.lines = entry.opened.handle.unsigned();
            return Ok(target);
        }
        let within = |error: Error| error.within(format_args!("{}{}", asked.root, asked.key));
        match &entry.opened.handle {
            Handle::S3(bucket) => {
                let credential = entry.credential(bucket.store().credentials(), self.provider).await?;
                if let Some(target) = self.signed(&method, asked.key, &credential) {
                    return Ok(target);
                }
                let mut request = entry.request(&method, &target)?;
                bucket.authorise(&credential, &mut request).map_err(within)?;
                carry_over(&request, &mut target);
                self.keep((method, asked.key.into()), &target, credential);
            }
            Handle::Gcs(bucket) => {
                let credential = entry.credential(bucket.credentials(), self.provider).await?;
                if !credential.bearer.is_empty() {
                    if !is_header_value(&credential.bearer) {
                        return Err(Error::new(Kind::Config, "the bearer token has characters that no token has")
                            .advice("look for a line break or quotes around it"));
                    }
                    target.lines = Some(format!("Authorization: Bearer {}\r\n", credential.bearer).into());
                }
            }
            Handle::Azure(container) => {
                let credential = entry.credential(container.store().credentials(), self.provider).await?;
                let mut request = entry.request(&method, &target)?;
                if method == Method::GET {
                    add_conditions(asked, &mut request);
                }
                container.authorise(&credential, &mut request).map_err(within)?;
                carry_over(&request, &mut target);
            }
        }
        Ok(target)
    }

    /// The target as it was signed before, if that is still good.
    fn signed(&self, method: &Method, key: &str, credential: &Arc<AwsCredential>) -> Option<Target> {
        let signatures = self.signatures();
        let signature = signatures.get(&(method.clone(), Box::from(key)))?;
        let fresh = signature.since.elapsed() < SIGNATURE_AGE_MAX && Arc::ptr_eq(&signature.credential, credential);
        fresh.then(|| signature.target.clone())
    }

    fn keep(&self, whose: (Method, Box<str>), target: &Target, credential: Arc<AwsCredential>) {
        let mut signatures = self.signatures();
        if signatures.len() >= SIGNATURES_MAX {
            signatures.clear();
        }
        signatures.insert(whose, Signature { target: target.clone(), credential, since: Instant::now() });
    }

    fn signatures(&self) -> MutexGuard<'_, HashMap<(Method, Box<str>), Signature>> {
        self.signatures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn open(
        provider: Provider,
        bucket: &str,
        options: &ObjectOptions,
        connector: &Connector,
        generation: u64,
        region: Option<&str>,
    ) -> Result<Self> {
        let opened = match provider {
            Provider::S3 => s3::open(bucket, options, region, connector)?,
            Provider::Gcs => gcs::open(bucket, options, connector)?,
            Provider::Azure => azure::open(bucket, options, connector)?,
        };
        let within = |error: Error| error.within(format_args!("{}://{bucket}", provider.scheme()));
        let root = Root::parse(&opened.url).map_err(within)?;
        // What signs parses URLs more strictly than we do, and panics where it cannot.
        if reqwest::Url::parse(&root.shown).is_err() {
            return Err(within(Error::new(Kind::Config, "the endpoint is no URL").advice("write https://host:port")));
        }
        let host = root.shown.find("://").map_or(0, |at| at + 3);
        let end = root.shown[host..].find('/').map_or(root.shown.len(), |at| host + at);
        Ok(Entry { generation, origin: root.shown[..end].to_owned(), root, opened, known: AtomicBool::new(false) })
    }

    pub(super) fn objects(&self) -> &dyn ObjectStore {
        match &self.opened.handle {
            Handle::S3(bucket) => bucket.store(),
            Handle::Gcs(bucket) => bucket,
            Handle::Azure(container) => container.store(),
        }
    }

    pub(super) fn pages(&self) -> &dyn PaginatedListStore {
        match &self.opened.handle {
            Handle::S3(bucket) => bucket.store(),
            Handle::Gcs(bucket) => bucket,
            Handle::Azure(container) => container.store(),
        }
    }

    pub(super) fn streamed(&self) -> Option<&'static str> {
        self.opened.streamed
    }

    pub(super) fn is_anonymous(&self) -> bool {
        self.opened.anonymous
    }

    /// Whether the bucket can be asked for in `region` instead.
    pub(super) fn can_move_to(&self, region: &str) -> bool {
        matches!(self.opened.handle, Handle::S3(_))
            && self.opened.region.as_deref() != Some(region)
            && region.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    }

    /// Whether the region is part of the server's name.
    pub(super) fn region_is_place(&self) -> bool {
        !self.opened.own_endpoint
    }

    async fn credential<C>(
        &self,
        credentials: &Arc<dyn CredentialProvider<Credential = C>>,
        provider: Provider,
    ) -> Result<Arc<C>> {
        let error = match credentials.get_credential().await {
            Ok(credential) => {
                self.known.store(true, Ordering::Relaxed);
                return Ok(credential);
            }
            Err(error) => error,
        };
        let (sources, advice) = match provider {
            Provider::S3 => (
                "the options, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a web identity, the container, the instance",
                "`aws configure export-credentials --format env` sets the variables from a profile; anonymous() asks without",
            ),
            Provider::Gcs => (
                "the options, GOOGLE_APPLICATION_CREDENTIALS, the login of gcloud, the instance",
                "`gcloud auth application-default login` makes a login that is found; anonymous() asks without",
            ),
            Provider::Azure => (
                "the options, AZURE_STORAGE_ACCOUNT_KEY, a SAS token, a client or workload identity, the managed identity",
                "set one of them, or use_azure_cli to take the login of az; anonymous() asks without",
            ),
        };
        let scheme = provider.scheme();
        let told = Error::new(Kind::Auth, format!("no credentials for {scheme}://: looked at {sources}"));
        let told = told.source(cause(&error)).advice(advice);
        // They were there before: whoever gives them out has a bad moment.
        Err(if self.known.load(Ordering::Relaxed) { told.transient() } else { told })
    }

    fn request(&self, method: &Method, target: &Target) -> Result<HttpRequest> {
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.method_mut() = method.clone();
        let url = format!("{}{}", self.origin, target.path);
        *request.uri_mut() = url.parse().map_err(|_| Error::new(Kind::Config, "the key is too long for a URL"))?;
        Ok(request)
    }
}

impl Handle {
    /// Header lines of a request without credentials.
    fn unsigned(&self) -> Option<Arc<str>> {
        let lines = match self {
            Handle::S3(bucket) => bucket.unsigned(),
            Handle::Gcs(_) => "",
            Handle::Azure(_) => azure::VERSION_LINE,
        };
        Some(lines).filter(|lines| !lines.is_empty()).map(Arc::from)
    }
}

/// The headers that our client will send for `asked`, for those who sign them.
fn add_conditions(asked: &Asked<'_>, request: &mut HttpRequest) {
    let range = format!("bytes={}-{}", asked.range.start, asked.range.end - 1);
    let headers = request.headers_mut();
    if let Ok(range) = HeaderValue::from_str(&range) {
        headers.insert(RANGE, range);
    }
    if let Some(tag) = asked.if_match().and_then(|tag| HeaderValue::from_str(tag).ok()) {
        headers.insert(IF_MATCH, tag);
    }
}

/// How long `object_store` itself asks again: listings and credentials may take a moment, and what is above us retries too.
pub(super) fn retry() -> RetryConfig {
    let backoff =
        BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(2), base: 2.0 };
    RetryConfig { backoff, max_retries: 3, retry_timeout: Duration::from_secs(10) }
}

/// The error for options that contradict each other, or cannot be read.
pub(super) fn refused_options(scheme: &str, bucket: &str, error: &object_store::Error) -> Error {
    Error::new(Kind::Config, format!("{scheme}://{bucket}: the options cannot be used: {}", cause(error)))
}

/// Whether `text` can be in a header line as it is.
pub(super) fn is_header_value(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Whoever follows URLs takes such parts for steps in a tree, and would sign another object's.
fn check_key(asked: &Asked<'_>) -> Result<()> {
    if asked.key.is_empty() {
        return Err(asked.error(Kind::Config, "no object was named"));
    }
    if asked.key.split('/').any(|part| matches!(part, "." | "..")) {
        return Err(asked
            .error(Kind::Unsupported, "a key with . or .. between its slashes")
            .advice("rename the object"));
    }
    Ok(())
}

/// Takes over what was added to `request`; our own client writes the rest itself.
fn carry_over(request: &HttpRequest, target: &mut Target) {
    if let Some(path) = request.uri().path_and_query() {
        target.path = path.as_str().to_owned();
    }
    let mut lines = String::with_capacity(512);
    for (name, value) in request.headers() {
        if let (false, Ok(value)) = ([HOST, RANGE, IF_MATCH].contains(name), value.to_str()) {
            let name = if name == AUTHORIZATION { "Authorization" } else { name.as_str() };
            // Writing to a string cannot fail.
            let _ = write!(lines, "{name}: {value}\r\n");
        }
    }
    target.lines = Some(lines.into());
}
