//! `farfeed serve`: what it announces, what lies behind it, how it ends.

#![expect(clippy::unwrap_used, reason = "a test may")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use farfeed::emulate::{Faults, Link, Objects, Server, Site};
use serde_json::Value;

/// A server in a process of its own, killed should a test fail.
struct Served {
    child: Child,
    announced: Value,
}

impl Served {
    fn start(args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_farfeed"))
            .args(["serve", "--json", "--until-stdin-closes"])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Served { child, announced: serde_json::from_str(&line).unwrap() }
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        let addresses = self.announced["addresses"].as_array().unwrap();
        addresses.iter().map(|address| address.as_str().unwrap().parse().unwrap()).collect()
    }

    /// Closes its standard input, and sees it end.
    fn end(mut self) {
        drop(self.child.stdin.take());
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "it goes on although nobody is there");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The whole answer to a request.
fn get(address: SocketAddr, key: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(format!("GET /{key} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn serves_a_directory_at_several_addresses() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a"), "a sample").unwrap();
    let directory = folder.path().to_str().unwrap();
    let options =
        ["--address", "127.0.0.1,127.0.0.2", "--rtt", "2", "--congestion", "reno", "--connection-rate", "1MB/s"];
    let served = Served::start(&[&options[..], &["--chunked", directory]].concat());
    let addresses = served.addresses();
    assert!(addresses.len() == 2 && served.announced["emulated"] == true, "{}", served.announced);
    assert_eq!(served.announced["url"].as_str().unwrap(), format!("http://{}", addresses[0]));
    for address in addresses {
        let answer = get(address, "a");
        assert!(answer.contains("chunked\r\n") && answer.ends_with("8\r\na sample\r\n0\r\n\r\n"), "{answer}");
    }
    served.end();
}

#[test]
fn puts_the_link_before_another_server() {
    let site = Site::objects(Objects::from_iter([("a", b"a sample".to_vec())]));
    let upstream = Server::start(site, Link::default(), Faults::none()).unwrap();
    let served = Served::start(&["--upstream", upstream.url(), "--rtt", "60"]);
    let started = Instant::now();
    let answer = get(served.addresses()[0], "a");
    assert!(answer.ends_with("a sample") && started.elapsed() >= Duration::from_millis(119), "{answer}");
    assert_eq!(upstream.stats().requests, 1);
    served.end();

    let address = upstream.address().to_string();
    let secure = Served::start(&["--upstream", &format!("https://{address}")]);
    assert!(secure.announced["url"].as_str().unwrap().starts_with("https://127.0.0.1:"), "{}", secure.announced);
    secure.end();
}

#[test]
fn refuses_what_it_cannot_put_behind_the_link() {
    let fail = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_farfeed")).arg("serve").args(args).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    for args in [&[][..], &[".", "--upstream", "127.0.0.1:9"]] {
        let (code, complaint) = fail(args);
        assert!(code == 2, "farfeed serve {args:?}: {code}, {complaint}");
    }
    for upstream in ["ftp://h:1", "http://me:secret@127.0.0.1:1", "http://127.0.0.1:1/secret", "127.0.0.1", ""] {
        let (code, complaint) = fail(&["--upstream", upstream]);
        assert!(code == 2 && complaint.contains("HOST:PORT") && !complaint.contains("secret"), "{complaint}");
    }
    let (code, complaint) = fail(&["--upstream", "127.0.0.1:9", "--fail-503", "0.5"]);
    assert!(code == 2 && complaint.contains("a relay cannot do this fault"), "{code}, {complaint}");
}
