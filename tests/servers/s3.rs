//! An S3 server that others wrote, in this process: it checks every signature, and refuses what a test tells it to.

use std::convert::Infallible;
use std::fs;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::header::HeaderMap;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use s3s::Body;
use s3s::auth::SimpleAuth;
use s3s::host::SingleDomain;
use s3s::service::{S3Service, S3ServiceBuilder};

/// A request as the server saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// An answer in place of the server's own.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) code: &'static str,
    /// Goes into the page, where real servers repeat what they were sent.
    pub(crate) detail: String,
    /// As a header.
    pub(crate) region: Option<&'static str>,
}

impl Refusal {
    pub(crate) fn new(status: u16, code: &'static str) -> Self {
        Refusal { status, code, detail: String::new(), region: None }
    }

    fn answer(self) -> Response<Body> {
        let page = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{}</Code><Message>no</Message>{}</Error>",
            self.code, self.detail
        );
        let answer = Response::builder().status(self.status).header("content-type", "application/xml");
        let answer = match self.region {
            Some(region) => answer.header("x-amz-bucket-region", region),
            None => answer,
        };
        answer.body(Body::from(page)).unwrap()
    }
}

type Script = dyn Fn(&Seen) -> Option<Refusal> + Send + Sync;

/// Serves a folder of buckets on loopback until it is dropped.
pub(crate) struct S3Server {
    directory: tempfile::TempDir,
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl S3Server {
    /// With these access keys and their secrets; without any, it takes requests that are not signed, and no others.
    pub(crate) fn start(keys: &[(&str, &str)]) -> Self {
        Self::scripted(keys, |_| None)
    }

    /// The script sees each request first, and may answer it.
    pub(crate) fn scripted(
        keys: &[(&str, &str)],
        script: impl Fn(&Seen) -> Option<Refusal> + Send + Sync + 'static,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(directory.path()).unwrap());
        if !keys.is_empty() {
            let mut auth = SimpleAuth::new();
            for (id, secret) in keys {
                auth.register((*id).to_owned(), (*secret).into());
            }
            builder.set_auth(auth);
        }
        builder.set_host(SingleDomain::new(&format!("s3.test:{}", address.port())).unwrap());
        let service = builder.build();
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.spawn(accept(listener, service, Arc::clone(&seen), Arc::new(script)));
        let server = S3Server { directory, address, seen, runtime: Some(runtime) };
        fs::create_dir(server.directory.path().join("bucket")).unwrap();
        server
    }

    /// Makes or replaces an object in the bucket `bucket`.
    pub(crate) fn put(&self, key: &str, bytes: &[u8]) {
        let path = self.directory.path().join("bucket").join(key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let fresh = tempfile::NamedTempFile::new_in(&self.directory).unwrap();
        fs::write(&fresh, bytes).unwrap();
        fresh.persist(&path).unwrap();
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

async fn accept(listener: std::net::TcpListener, service: S3Service, seen: Arc<Mutex<Vec<Seen>>>, script: Arc<Script>) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    while let Ok((socket, _)) = listener.accept().await {
        socket.set_nodelay(true).unwrap();
        let (service, seen, script) = (service.clone(), Arc::clone(&seen), Arc::clone(&script));
        tokio::spawn(async move {
            let answer = service_fn(|request| answer(request, &service, &seen, &*script));
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), answer).await;
        });
    }
}

async fn answer(
    request: Request<hyper::body::Incoming>,
    service: &S3Service,
    seen: &Mutex<Vec<Seen>>,
    script: &Script,
) -> Result<Response<Body>, Infallible> {
    let this = Seen {
        method: request.method().to_string(),
        target: request.uri().to_string(),
        headers: request.headers().clone(),
    };
    seen.lock().unwrap().push(this.clone());
    if let Some(refusal) = script(&this) {
        return Ok(refusal.answer());
    }
    let answer = service.call(request.map(Body::from)).await;
    Ok(answer.unwrap_or_else(|_| Refusal::new(500, "InternalError").answer()))
}
