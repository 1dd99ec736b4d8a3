//! The emulated link over real sockets: delays, rates, ranges, faults, shutdown.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use farfeed::Kind;
use farfeed::emulate::{Cut, Effect, Fault, Faults, Link, Objects, Server, Site};

/// How late a busy machine may be. What must not be early is checked without it.
const LATE: Duration = Duration::from_millis(250);

const SIZE: usize = 300_000;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn bytes(size: usize) -> Vec<u8> {
    (0..size).map(|n| (n.wrapping_mul(2_654_435_761) >> 7) as u8).collect()
}

fn server(link: Link, faults: impl Into<Faults>) -> Server {
    let objects = Objects::from_iter([("a/b.tar", bytes(SIZE))]);
    Server::start(Site::objects(objects), link, faults.into()).unwrap()
}

struct Reply {
    status: u16,
    head: String,
    body: Vec<u8>,
    /// How the body ended, if not as announced.
    broken: Option<std::io::ErrorKind>,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

/// The simplest client that can show everything.
struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.set_nodelay(true).unwrap();
        Client(BufReader::with_capacity(64 << 10, stream))
    }

    fn send(&mut self, method: &str, target: &str, headers: &str) {
        let request = format!("{method} {target} HTTP/1.1\r\nHost: test\r\n{headers}\r\n");
        self.0.get_mut().write_all(request.as_bytes()).unwrap();
    }

    fn head(&mut self) -> (u16, String, usize) {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(self.0.read_line(&mut head).unwrap() > 0, "closed in the head: {head:?}");
        }
        let status = head[9..12].parse().unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
        let length = length.parse().unwrap();
        (status, head, length)
    }

    fn get(&mut self, target: &str, headers: &str) -> Reply {
        self.send("GET", target, headers);
        let (status, head, length) = self.head();
        let mut body = vec![0; length];
        let (mut read, mut broken) = (0, None);
        while read < length {
            match self.0.read(&mut body[read..]) {
                Ok(0) => {
                    broken = Some(std::io::ErrorKind::UnexpectedEof);
                    break;
                }
                Ok(n) => read += n,
                Err(error) => {
                    broken = Some(error.kind());
                    break;
                }
            }
        }
        body.truncate(read);
        Reply { status, head, body, broken }
    }
}

fn get(server: &Server, headers: &str) -> Reply {
    Client::connect(server.address()).get("/a/b.tar", headers)
}

#[test]
fn serves_ranges_of_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("x")).unwrap();
    std::fs::write(directory.path().join("x/a b.tar"), bytes(SIZE)).unwrap();
    let server = Server::start(Site::directory(directory.path()), Link::default(), Faults::none()).unwrap();
    let mut client = Client::connect(server.address());

    let whole = client.get("/x/a%20b.tar?signature=1", "");
    assert_eq!((whole.status, whole.header("Content-Length")), (200, Some("300000")));
    assert!(whole.body == bytes(SIZE));
    let etag = whole.header("ETag").unwrap().to_owned();
    assert!(etag.starts_with('"') && etag.ends_with('"'));

    let range = client.get("/x/a%20b.tar", &format!("Range: bytes=1000-200999\r\nIf-Match: {etag}\r\n"));
    assert_eq!((range.status, range.header("Content-Range")), (206, Some("bytes 1000-200999/300000")));
    assert!(range.body == bytes(SIZE)[1000..201_000] && range.header("ETag") == Some(&etag));
    assert_eq!(client.get("/x/a%20b.tar", "Range: bytes=-7\r\n").body, bytes(SIZE)[SIZE - 7..]);
    let past = client.get("/x/a%20b.tar", "Range: bytes=300000-\r\n");
    assert_eq!((past.status, past.header("Content-Range")), (416, Some("bytes */300000")));
    assert_eq!(client.get("/x/a%20b.tar", "If-Match: \"other\"\r\n").status, 412);
    assert_eq!(client.get("/x/none", "").status, 404);
    assert_eq!(client.get("/x/../../etc/passwd", "").status, 404);

    client.send("HEAD", "/x/a%20b.tar", "");
    let (status, _, length) = client.head();
    assert_eq!((status, length), (200, SIZE));
    // The next answer follows directly: the one to HEAD had no body. All this was one connection.
    assert_eq!(client.get("/x/a%20b.tar", "Range: bytes=0-0\r\n").body.len(), 1);
    let stats = server.stats();
    assert_eq!((stats.connections, stats.requests, stats.faults), (1, 9, 0));
    assert_eq!(stats.bytes, 300_000 + 200_000 + 7 + 1);

    std::fs::write(directory.path().join("x/a b.tar"), bytes(5)).unwrap();
    assert_eq!(client.get("/x/a%20b.tar", &format!("If-Match: {etag}\r\n")).status, 412);
}
