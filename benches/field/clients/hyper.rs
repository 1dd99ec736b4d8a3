//! What the two others stand on, without their pools: one HTTP/1.1 connection for each range under way, kept for the next.

use std::sync::{Arc, Mutex};

use farfeed::memory::Landing;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{HOST as HOST_HEADER, RANGE};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{Client, HOST, Origin, Reading};

type Connection = SendRequest<Empty<Bytes>>;

pub(crate) struct Hyper {
    port: u16,
    tls: Option<Arc<ClientConfig>>,
    idle: Mutex<Vec<Connection>>,
}

impl Hyper {
    pub(crate) fn open(origin: &Origin) -> Self {
        Hyper { port: origin.port, tls: origin.tls(), idle: Mutex::default() }
    }

    async fn connection(&self) -> Connection {
        loop {
            let idle = self.idle.lock().unwrap().pop();
            let Some(mut connection) = idle else { return self.connect().await };
            if connection.ready().await.is_ok() {
                return connection;
            }
        }
    }

    async fn connect(&self) -> Connection {
        let socket = TcpStream::connect((HOST, self.port)).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let Some(tls) = &self.tls else { return shake_hands(socket).await };
        let name = ServerName::try_from(HOST).unwrap();
        shake_hands(TlsConnector::from(Arc::clone(tls)).connect(name, socket).await.unwrap()).await
    }
}

async fn shake_hands(socket: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Connection {
    let (sender, connection) = handshake(TokioIo::new(socket)).await.unwrap();
    tokio::spawn(connection);
    sender
}

impl Client for Hyper {
    fn read<'a>(&'a self, key: &'a str, start: u64, landing: &'a mut Landing) -> Reading<'a> {
        Box::pin(async move {
            let mut connection = self.connection().await;
            let range = format!("bytes={start}-{}", start + landing.len() as u64 - 1);
            let request = Request::get(format!("/{key}")).header(HOST_HEADER, HOST).header(RANGE, range);
            let mut response = connection.send_request(request.body(Empty::new()).unwrap()).await.unwrap();
            assert_eq!(response.status(), StatusCode::PARTIAL_CONTENT);
            let mut copied = 0;
            while let Some(frame) = response.frame().await {
                copied += landing.push(frame.unwrap().data_ref().unwrap()) as u64;
            }
            self.idle.lock().unwrap().push(connection);
            copied
        })
    }
}
