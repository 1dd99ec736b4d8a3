//! A TLS server that does what a test tells it to: rustls on tokio.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustls::crypto::ring;
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use rustls::{RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::{Authority, Identity};

/// A connection that has shaken hands.
pub(crate) type Stream = tokio_rustls::server::TlsStream<TcpStream>;

/// A request for a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) first: usize,
    pub(crate) last: usize,
}

/// Serves loopback until it is dropped.
pub(crate) struct Secured {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Secured {
    /// `serve` gets each connection and its number.
    pub(crate) fn start<F>(config: ServerConfig, serve: impl Fn(Stream, usize) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = std::io::Result<()>> + Send + 'static,
    {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let (acceptor, counter) = (TlsAcceptor::from(Arc::new(config)), Arc::clone(&accepted));
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            let serve = Arc::new(serve);
            while let Ok((socket, _)) = listener.accept().await {
                let number = counter.fetch_add(1, Ordering::SeqCst);
                let (acceptor, serve) = (acceptor.clone(), Arc::clone(&serve));
                tokio::spawn(async move {
                    socket.set_nodelay(true).unwrap();
                    // Clients that turn away are what some tests are about.
                    if let Ok(stream) = acceptor.accept(socket).await {
                        let _ = serve(stream, number).await;
                    }
                });
            }
        });
        Secured { address, accepted, runtime: Some(runtime) }
    }

    pub(crate) fn config(identity: &Identity, version: &'static SupportedProtocolVersion) -> ServerConfig {
        ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(identity.chain(), identity.private_key())
            .unwrap()
    }

    /// Of a server that wants a client certificate of `clients`.
    pub(crate) fn mutual(
        identity: &Identity,
        clients: &Authority,
        version: &'static SupportedProtocolVersion,
    ) -> ServerConfig {
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        let authority = Identity { certificate: clients.pem(), key: String::new() };
        roots.add(authority.chain().remove(0)).unwrap();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().unwrap();
        ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(identity.chain(), identity.private_key())
            .unwrap()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}/", self.address)
    }

    /// Connections accepted so far.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Secured {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

/// The next request on a connection; `None` once the client has closed.
pub(crate) async fn asked(stream: &mut Stream) -> std::io::Result<Option<Asked>> {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).await? == 0 {
            return Ok(None);
        }
        text.push(byte[0]);
    }
    let text = String::from_utf8(text).unwrap();
    let range = text.lines().find_map(|line| line.strip_prefix("Range: bytes=")).unwrap_or("0-0");
    let (first, last) = range.split_once('-').unwrap();
    Ok(Some(Asked { first: first.parse().unwrap(), last: last.parse().unwrap() }))
}

/// A response for what was asked of `object`: its header, and its body.
pub(crate) fn answer(object: &[u8], asked: Asked) -> (String, &[u8]) {
    let Asked { first, last } = asked;
    let (body, size) = (&object[first..=last], object.len());
    let header = format!(
        "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {first}-{last}/{size}\r\nContent-Length: {}\r\n\
         ETag: \"v\"\r\n\r\n",
        body.len()
    );
    (header, body)
}

/// Answers every request for ranges of `object`.
pub(crate) async fn serve(mut stream: Stream, object: Arc<[u8]>) -> std::io::Result<()> {
    while let Some(range) = asked(&mut stream).await? {
        let (header, body) = answer(&object, range);
        stream.write_all(header.as_bytes()).await?;
        stream.write_all(body).await?;
        stream.flush().await?;
    }
    Ok(())
}
