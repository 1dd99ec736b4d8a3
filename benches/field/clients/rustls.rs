//! The floor of TLS through a public interface: a bare GET, and rustls's stream read straight into the pages.

use std::sync::{Arc, Mutex};

use farfeed::memory::Landing;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::wire::{HEAD_MAX, body_at, request};
use super::{Client, HOST, Origin, Reading};

pub(crate) struct Rustls {
    port: u16,
    tls: Arc<ClientConfig>,
    idle: Mutex<Vec<TlsStream<TcpStream>>>,
}

impl Rustls {
    pub(crate) fn open(origin: &Origin) -> Self {
        Rustls { port: origin.port, tls: origin.tls().unwrap(), idle: Mutex::default() }
    }

    async fn connection(&self) -> TlsStream<TcpStream> {
        if let Some(idle) = self.idle.lock().unwrap().pop() {
            return idle;
        }
        let socket = TcpStream::connect((HOST, self.port)).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let name = ServerName::try_from(HOST).unwrap();
        TlsConnector::from(Arc::clone(&self.tls)).connect(name, socket).await.unwrap()
    }
}

impl Client for Rustls {
    fn read<'a>(&'a self, key: &'a str, start: u64, landing: &'a mut Landing) -> Reading<'a> {
        Box::pin(async move {
            let mut connection = self.connection().await;
            connection.write_all(request(key, start, landing.len()).as_bytes()).await.unwrap();
            let (mut scratch, mut here) = ([0; HEAD_MAX], 0);
            let body = loop {
                here += connection.read(&mut scratch[here..]).await.unwrap();
                if let Some(body) = body_at(&scratch[..here]) {
                    break body;
                }
            };
            landing.push(&scratch[body..here]);
            // rustls decrypts into a buffer of its own and copies from there.
            let copied = landing.len() as u64;
            while landing.remaining() > 0 {
                let count = connection.read(landing.spare()).await.unwrap();
                assert!(count > 0, "the server closed the connection");
                landing.advance(count);
            }
            self.idle.lock().unwrap().push(connection);
            copied
        })
    }
}
