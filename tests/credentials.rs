//! Where credentials come from, and what happens when they end in the middle of an epoch.

#![cfg(feature = "cloud")]
#![allow(clippy::unwrap_used, reason = "tests")]

#[allow(unused_imports, reason = "servers are shared, and this needs some of them")]
mod fixture;
mod servers;
#[path = "fixture/shards.rs"]
mod shards;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use farfeed::loader::LoaderBuilder;
use farfeed::memory::Slab;
use farfeed::order::Shuffle;
use farfeed::store::{ObjectOptions, ObjectStore, Store};
use farfeed::{ByteSize, Field, Kind, Loader};
use fixture::{Reply, ScriptedServer, pattern, read, request, run};
use servers::{Refusal, S3Server};

const ID: &str = "ASIAEXAMPLE";
const SECRET: &str = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY";
const KEYS: [(&str, &str); 1] = [(ID, SECRET)];

fn token(number: usize) -> String {
    format!("IQoJb3JpZ2luX2VjTOKEN{number}")
}

/// An S3 server that takes one token at a time: the next one after every `requests` that it has answered, and not the one before.
struct Rotating {
    server: S3Server,
    /// The number of the token that it takes.
    good: Arc<AtomicUsize>,
    refused: Arc<AtomicUsize>,
}

impl Rotating {
    fn start(requests: usize) -> Self {
        let (good, refused) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (now, count, answered) = (Arc::clone(&good), Arc::clone(&refused), AtomicUsize::new(0));
        let server = S3Server::scripted(&KEYS, move |seen| {
            let sent = seen.header("x-amz-security-token").unwrap_or_default();
            if sent == token(now.load(Ordering::SeqCst)) {
                if answered.fetch_add(1, Ordering::SeqCst) % requests == requests - 1 {
                    now.fetch_add(1, Ordering::SeqCst);
                }
                return None;
            }
            count.fetch_add(1, Ordering::SeqCst);
            Some(Refusal { detail: format!("<Token-0>{sent}</Token-0>"), ..Refusal::new(400, "ExpiredToken") })
        });
        Rotating { server, good, refused }
    }

    /// A metadata server, as there is one on each machine of EC2: it gives out the token that is good now.
    fn metadata(&self) -> ScriptedServer {
        let good = Arc::clone(&self.good);
        ScriptedServer::start(move |asked| match asked.line() {
            ("PUT", "/latest/api/token") => Reply::new("200 OK", "", b"session-of-the-metadata-server"),
            ("GET", path) if asked.header("x-aws-ec2-metadata-token").is_some() => {
                let body = match path.strip_prefix("/latest/meta-data/iam/security-credentials/") {
                    Some("") => "role".to_owned(),
                    Some("role") => format!(
                        r#"{{"AccessKeyId":"{ID}","SecretAccessKey":"{SECRET}","Token":"{}","Expiration":"2100-01-01T00:00:00Z"}}"#,
                        token(good.load(Ordering::SeqCst))
                    ),
                    _ => return Reply::new("404 Not Found", "", b""),
                };
                Reply::new("200 OK", "Content-Type: application/json\r\n", body.as_bytes())
            }
            _ => Reply::new("401 Unauthorized", "", b""),
        })
    }
}

fn epoch(builder: LoaderBuilder, dataset: &shards::WebDataset) -> Vec<(Vec<u64>, u64)> {
    let loader = builder
        .field("jpg", Field::bytes())
        .field("cls", Field::int())
        .batch_size(32)
        .block_size(ByteSize::bytes(100_000))
        .shuffle(Shuffle::window(150).seed(3))
        .host_memory(ByteSize::mib(32))
        .epochs(1)
        .build()
        .unwrap();
    let digest = |batch: &farfeed::Batch| {
        let mut hasher = DefaultHasher::new();
        batch.ragged("jpg").unwrap().values.unwrap().hash(&mut hasher);
        batch.ints("cls").unwrap().hash(&mut hasher);
        hasher.finish()
    };
    loader
        .epoch(0)
        .map(|batch| {
            let batch = batch.unwrap();
            dataset.check(&batch);
            (batch.ids().to_vec(), digest(&batch))
        })
        .collect()
}

#[test]
fn an_epoch_from_a_bucket_is_the_epoch_from_files_though_tokens_end_on_the_way() {
    let dataset = shards::webdataset(4, 100, 10_000);
    let rotating = Rotating::start(60);
    let files = tempfile::tempdir().unwrap();
    std::fs::create_dir(files.path().join("data")).unwrap();
    for (name, bytes) in &dataset.shards {
        rotating.server.put(&format!("data/{name}"), bytes);
        std::fs::write(files.path().join("data").join(name), bytes).unwrap();
    }
    let metadata = rotating.metadata();
    let from_bucket = Loader::builder(dataset.pattern("s3://bucket/"))
        .store_option("aws_endpoint", rotating.server.endpoint())
        .store_option("aws_metadata_endpoint", metadata.url().trim_end_matches('/'));
    let (bucket, local) = (
        epoch(from_bucket, &dataset),
        epoch(Loader::builder(dataset.pattern(&format!("{}/", files.path().display()))), &dataset),
    );
    assert_eq!(bucket.len(), local.len());
    assert!(bucket == local, "same samples in the same order, same bytes");
    assert!(rotating.refused.load(Ordering::SeqCst) > 0, "tokens did end");
    assert!(metadata.asked().len() < 3 * (rotating.good.load(Ordering::SeqCst) + 8), "one provider for all reactors");
}

/// R8 of docs/python.md: credentials are asked for once per process, not once per worker.
#[test]
fn all_reactors_share_one_provider() {
    let rotating = Rotating::start(usize::MAX);
    rotating.server.put("o", &pattern(1, 100_000));
    let metadata = rotating.metadata();
    let options = ObjectOptions::default()
        .endpoint(rotating.server.endpoint())
        .set("aws_metadata_endpoint", metadata.url().trim_end_matches('/'));
    let store: Arc<dyn Store> = ObjectStore::open("s3://bucket", options).unwrap();
    run(async {
        let mut reads = tokio::task::JoinSet::new();
        for number in 0..32 {
            let store = Arc::clone(&store).per_reactor();
            reads.spawn(async move {
                let slab = Slab::new(64 << 10, 64 << 10).unwrap();
                read(&store, &slab, &request("o", number), 1000).await.unwrap();
            });
        }
        while let Some(done) = reads.join_next().await {
            done.unwrap();
        }
    });
    assert_eq!(metadata.asked().len(), 3, "a token, the role's name, its credentials");
}

#[test]
fn no_credentials_anywhere_is_said_with_where_was_looked() {
    // Nobody listens there.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let options = ObjectOptions::default()
        .endpoint("http://127.0.0.1:9")
        .set("aws_metadata_endpoint", format!("http://{nobody}"));
    let store: Arc<dyn Store> = ObjectStore::open("s3://bucket", options).unwrap();
    let error = run(store.head("o")).unwrap_err();
    assert_eq!((error.kind(), error.is_transient()), (Kind::Auth, false), "{error}");
    for word in ["no credentials for s3://", "AWS_ACCESS_KEY_ID", "web identity", "instance", "anonymous()", "refused"]
    {
        assert!(error.to_string().contains(word), "{word}: {error}");
    }
}

/// No emulator of Google's store comes as a package that speaks its XML interface, which is S3's but for signatures: so it is the S3 server that is
/// asked, and this file that checks the bearer token. What Google's own servers do besides is not tested.
fn google(tokens: Arc<AtomicUsize>) -> S3Server {
    S3Server::scripted(&[], move |seen| {
        let wanted = format!("Bearer {}", token(tokens.load(Ordering::SeqCst)));
        (seen.header("authorization") != Some(&wanted)).then(|| Refusal::new(401, "AuthenticationRequired"))
    })
}

#[test]
fn google_gets_a_bearer_token() {
    let server = google(Arc::default());
    let object = pattern(2, 9000);
    server.put("a b/ü.tar", &object);
    let open = |number| -> Arc<dyn Store> {
        let options = ObjectOptions::default().endpoint(server.endpoint()).set("google_bearer_token", token(number));
        ObjectStore::open("gs://bucket", options).unwrap()
    };
    let slab = Slab::new(64 << 10, 64 << 10).unwrap();
    run(async {
        let store = open(0);
        assert_eq!(store.head("a b/ü.tar").await.unwrap().size, 9000);
        let (bytes, arrival) = read(&store, &slab, &request("a b/ü.tar", 10), 8000).await.unwrap();
        assert!(bytes == object[10..8010] && arrival.fallback.is_none());
        assert_eq!(store.list("a b/").await.unwrap()[0].key, "a b/ü.tar");
        let stranger = open(1);
        for error in [
            stranger.head("a b/ü.tar").await.unwrap_err(),
            read(&stranger, &slab, &request("a b/ü.tar", 0), 5).await.unwrap_err(),
            stranger.list("").await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), Kind::Auth, "{error}");
            assert!(!format!("{error:?} {stranger:?}").contains(&token(1)), "{error:?}");
        }
    });
}
