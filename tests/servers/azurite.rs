//! Azurite, the emulator of Azure Blob Storage: it checks signatures, and answers as the service does.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};
use object_store::azure::{AzureAccessKey, AzureAuthorizer, AzureCredential};
use object_store::client::{HttpRequest, HttpRequestBody};

/// The account that every Azurite has, and its key: both are in its documentation.
pub(crate) const ACCOUNT: &str = "devstoreaccount1";
pub(crate) const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// A running Azurite with the container `container`; dropping it ends it.
pub(crate) struct Azurite {
    process: Child,
    authority: String,
}

impl Azurite {
    /// # Panics
    /// If it cannot be installed, or does not start.
    pub(crate) fn start() -> Self {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("azurite");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/azurite/setup.sh");
        let installed = Command::new("sh").arg(script).arg(&directory).status().unwrap();
        assert!(installed.success(), "Azurite is not there: install node and npm, or run `make setup`");
        let mut process = Command::new("node")
            .arg(directory.join("node_modules/azurite/dist/src/blob/main.js"))
            .args(["--inMemoryPersistence", "--blobPort", "0", "--disableTelemetry", "--silent"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (told, listens) = mpsc::channel();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        // Reads on to the end: who writes to a closed pipe is killed.
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some((_, url)) = line.split_once("successfully listens on http://") {
                    let _ = told.send(url.to_owned());
                }
            }
        });
        let authority = listens.recv_timeout(Duration::from_secs(60)).expect("Azurite starts within a minute");
        let azurite = Azurite { process, authority };
        azurite.send("container?restype=container", &[], b"");
        azurite
    }

    /// Makes or replaces a blob in the container.
    pub(crate) fn put(&self, key: &str, bytes: &[u8]) {
        let encoded: String = key
            .bytes()
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                    char::from(byte).to_string()
                }
                _ => format!("%{byte:02X}"),
            })
            .collect();
        self.send(&format!("container/{encoded}"), &[("x-ms-blob-type", "BlockBlob")], bytes);
    }

    /// As the option `endpoint` wants it.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}/{ACCOUNT}", self.authority)
    }

    /// A signed PUT.
    fn send(&self, what: &str, headers: &[(&'static str, &'static str)], body: &[u8]) {
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.method_mut() = Method::PUT;
        *request.uri_mut() = format!("{}/{what}", self.endpoint()).parse().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        if !body.is_empty() {
            request.headers_mut().insert("content-length", body.len().into());
        }
        let credential = AzureCredential::AccessKey(AzureAccessKey::try_new(KEY).unwrap());
        AzureAuthorizer::new(&credential, ACCOUNT).try_authorize(&mut request).unwrap();
        let mut text =
            format!("PUT {} HTTP/1.1\r\nHost: {}\r\n", request.uri().path_and_query().unwrap(), self.authority);
        for (name, value) in request.headers().iter().filter(|(name, _)| *name != "content-length") {
            text += &format!("{name}: {}\r\n", value.to_str().unwrap());
        }
        text += &format!("Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        let mut socket = TcpStream::connect(&self.authority).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        socket.write_all(text.as_bytes()).unwrap();
        socket.write_all(body).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 201"), "{what}: {answer}");
    }
}

impl Drop for Azurite {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
