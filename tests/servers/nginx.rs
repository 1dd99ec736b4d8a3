//! nginx, over one directory: plain, and with TLS of every kind.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use super::Authority;
use farfeed::store::{ClientCertificate, TlsOptions};

/// How one of its ports speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Site {
    Http,
    /// TLS 1.3 only.
    Tls13,
    /// TLS 1.2 only.
    Tls12,
    /// TLS 1.3 or 1.2, and a client certificate.
    Mutual,
    /// Its certificate has expired.
    Expired,
    /// Its certificate is for another name.
    Misnamed,
    /// Its certificate is of an authority that is not in the bundle.
    Stranger,
}

const SITES: [Site; 7] =
    [Site::Http, Site::Tls13, Site::Tls12, Site::Mutual, Site::Expired, Site::Misnamed, Site::Stranger];

/// Tries to find ports that nobody else takes before nginx does.
const ATTEMPTS: usize = 5;

/// A line of its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Logged {
    pub(crate) port: u16,
    /// Number of the connection.
    pub(crate) connection: u64,
    /// `-` without TLS.
    pub(crate) protocol: String,
    pub(crate) resumed: bool,
    pub(crate) status: u16,
}

/// A running nginx; dropping it ends it.
pub(crate) struct Nginx {
    directory: tempfile::TempDir,
    process: Child,
    ports: Vec<u16>,
    puts: AtomicU64,
}

impl Nginx {
    /// # Panics
    /// If there is no nginx, or it does not start.
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        certify(directory.path());
        fs::create_dir(directory.path().join("root")).unwrap();
        for _ in 0..ATTEMPTS {
            let ports = free_ports(SITES.len());
            fs::write(directory.path().join("nginx.conf"), configuration(&directory, &ports)).unwrap();
            let mut process = launch(&directory);
            if answers(&mut process, &ports) {
                return Nginx { directory, process, ports, puts: AtomicU64::new(0) };
            }
            let _ = process.kill();
            let _ = process.wait();
        }
        let log = fs::read_to_string(directory.path().join("error.log")).unwrap_or_default();
        panic!("nginx does not start: {log}");
    }

    /// Makes or replaces an object; its modification time, of which nginx makes the ETag, is another each time.
    pub(crate) fn put(&self, key: &str, bytes: &[u8]) {
        let path = self.root().join(key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let fresh = tempfile::NamedTempFile::new_in(path.parent().unwrap()).unwrap();
        fs::write(&fresh, bytes).unwrap();
        let day = Duration::from_secs(86_400 * 365 + self.puts.fetch_add(1, Ordering::Relaxed));
        fresh.as_file().set_modified(SystemTime::UNIX_EPOCH + day).unwrap();
        fs::set_permissions(&fresh, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        fresh.persist(&path).unwrap();
    }

    /// URL of its root at one of its ports.
    pub(crate) fn url(&self, site: Site) -> String {
        let scheme = if site == Site::Http { "http" } else { "https" };
        format!("{scheme}://127.0.0.1:{}/", self.port(site))
    }

    pub(crate) fn port(&self, site: Site) -> u16 {
        self.ports[SITES.iter().position(|other| *other == site).unwrap()]
    }

    /// Directory of the objects.
    pub(crate) fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    /// Certificate of the authority that certifies its good servers and clients.
    pub(crate) fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// Trusts the good servers.
    pub(crate) fn trusting(&self) -> TlsOptions {
        TlsOptions { ca_bundle: Some(self.ca()), client_certificate: None }
    }

    /// Trusts the good servers, and is trusted by the one that asks.
    pub(crate) fn trusted(&self) -> TlsOptions {
        TlsOptions { client_certificate: Some(self.client("client")), ..self.trusting() }
    }

    /// Files of a client certificate: `client`, or one that the server does not trust, `stranger`.
    pub(crate) fn client(&self, name: &str) -> ClientCertificate {
        let file = |extension: &str| self.directory.path().join(format!("{name}.{extension}"));
        ClientCertificate { chain: file("pem"), key: file("key") }
    }

    /// Requests answered so far; the newest may be missing.
    pub(crate) fn log(&self) -> Vec<Logged> {
        let log = fs::read_to_string(self.directory.path().join("access.log")).unwrap_or_default();
        let logged = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            Logged {
                port: words[0].parse().unwrap(),
                connection: words[1].parse().unwrap(),
                protocol: words[2].to_owned(),
                resumed: words[3] == "r",
                status: words[4].parse().unwrap(),
            }
        };
        log.lines().map(logged).collect()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Certificates of servers and clients, the good and the bad.
fn certify(directory: &std::path::Path) {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    ours.save(directory, "ca.pem");
    ours.server(&["localhost", "127.0.0.1"]).save(directory, "good");
    ours.expired_server().save(directory, "expired");
    ours.server(&["elsewhere.example"]).save(directory, "misnamed");
    theirs.server(&["localhost", "127.0.0.1"]).save(directory, "strange");
    ours.client("client").save(directory, "client");
    theirs.client("stranger").save(directory, "stranger");
}

fn configuration(directory: &tempfile::TempDir, ports: &[u16]) -> String {
    let servers: String = std::iter::zip(SITES, ports).map(|(site, port)| server(site, *port)).collect();
    format!(
        "daemon off; master_process off; pid nginx.pid; error_log error.log notice;\n\
         events {{ worker_connections 2048; }}\n\
         http {{\n\
         client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;\n\
         log_format tls '$server_port $connection $ssl_protocol $ssl_session_reused $status';\n\
         access_log access.log tls; root {}; sendfile on; tcp_nopush on; keepalive_requests 100000;\n\
         ssl_session_cache shared:sessions:1m;\n\
         {servers}\n}}\n",
        directory.path().join("root").display(),
    )
}

fn server(site: Site, port: u16) -> String {
    let (protocols, certificate, more) = match site {
        Site::Http => return format!("server {{ listen 127.0.0.1:{port}; }}\n"),
        Site::Tls13 => ("TLSv1.3", "good", ""),
        Site::Tls12 => ("TLSv1.2", "good", ""),
        Site::Mutual => ("TLSv1.2 TLSv1.3", "good", "ssl_client_certificate ca.pem; ssl_verify_client on;"),
        Site::Expired => ("TLSv1.2 TLSv1.3", "expired", ""),
        Site::Misnamed => ("TLSv1.2 TLSv1.3", "misnamed", ""),
        Site::Stranger => ("TLSv1.2 TLSv1.3", "strange", ""),
    };
    format!(
        "server {{ listen 127.0.0.1:{port} ssl; ssl_protocols {protocols};\n\
         ssl_certificate {certificate}.pem; ssl_certificate_key {certificate}.key; {more} }}\n"
    )
}

/// Debian keeps it where only root looks.
fn launch(directory: &tempfile::TempDir) -> Child {
    let spawn = |program: &str| {
        let mut command = Command::new(program);
        command.args(["-p", directory.path().to_str().unwrap(), "-e", "error.log", "-c", "nginx.conf"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
    };
    spawn("nginx").or_else(|_| spawn("/usr/sbin/nginx")).expect("nginx is needed for this test: run `make setup`")
}

/// Whether all ports are served before long, by this process.
fn answers(process: &mut Child, ports: &[u16]) -> bool {
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        if !matches!(process.try_wait(), Ok(None)) {
            return false;
        }
        if ports.iter().all(|port| TcpStream::connect(("127.0.0.1", *port)).is_ok()) {
            // One that could not bind a port ends soon.
            std::thread::sleep(Duration::from_millis(20));
            return matches!(process.try_wait(), Ok(None));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}
