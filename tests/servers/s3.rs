//! An S3 server that others wrote, in this process: it checks every signature, and refuses what a test tells it to.

use std::convert::Infallible;
use std::fs;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Frame;
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
    watch: Arc<Watch>,
    runtime: Option<tokio::runtime::Runtime>,
}

/// What the server and those who look at it share.
struct Watch {
    seen: Mutex<Vec<Seen>>,
    script: Box<Script>,
    in_chunks: AtomicBool,
    /// Whether requests are signed; else their Authorization is another server's, for the script to look at.
    signed: bool,
}

/// A body of which nobody is told how long it is.
struct Uncounted(Body);

impl hyper::body::Body for Uncounted {
    type Data = <Body as hyper::body::Body>::Data;
    type Error = <Body as hyper::body::Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.0).poll_frame(context)
    }
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
        let watch = Arc::new(Watch {
            seen: Mutex::default(),
            script: Box::new(script),
            in_chunks: AtomicBool::new(false),
            signed: !keys.is_empty(),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.spawn(accept(listener, service, Arc::clone(&watch)));
        let server = S3Server { directory, address, watch, runtime: Some(runtime) };
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

    /// Objects are sent with Transfer-Encoding: chunked from now on, or no longer.
    pub(crate) fn send_in_chunks(&self, in_chunks: bool) {
        self.watch.in_chunks.store(in_chunks, Ordering::SeqCst);
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.watch.seen.lock().unwrap().clone()
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

async fn accept(listener: std::net::TcpListener, service: S3Service, watch: Arc<Watch>) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    while let Ok((socket, _)) = listener.accept().await {
        socket.set_nodelay(true).unwrap();
        let (service, watch) = (service.clone(), Arc::clone(&watch));
        tokio::spawn(async move {
            let answer = service_fn(|request| answer(request, &service, &watch));
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), answer).await;
        });
    }
}

async fn answer(
    mut request: Request<hyper::body::Incoming>,
    service: &S3Service,
    watch: &Watch,
) -> Result<Response<Body>, Infallible> {
    let this = Seen {
        method: request.method().to_string(),
        target: request.uri().to_string(),
        headers: request.headers().clone(),
    };
    watch.seen.lock().unwrap().push(this.clone());
    if let Some(refusal) = (watch.script)(&this) {
        return Ok(refusal.answer());
    }
    if !watch.signed {
        request.headers_mut().remove("authorization");
    }
    let mut answer = match service.call(request.map(Body::from)).await {
        Ok(answer) => answer,
        Err(_) => return Ok(Refusal::new(500, "InternalError").answer()),
    };
    if watch.in_chunks.load(Ordering::SeqCst) && answer.status() == 206 {
        answer.headers_mut().remove("content-length");
        answer = answer.map(|body| Body::http_body_unsync(Uncounted(body)));
    }
    Ok(answer)
}
