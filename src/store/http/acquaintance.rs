//! A server's certificates, verified once for all the connections that are opened together.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

/// How long certificates that were found good are not looked at again.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Servers remembered: those of one cold start.
const SERVERS: usize = 8;

/// Verifies as `inner` does, and remembers for a minute whose certificates were good.
///
/// A cold start opens some two hundred connections to one server at once, and each is shown the same certificates. That they
/// lead to a root we trust has to be found out once; that the server has their key, which is the other half, is found out for
/// each. What is remembered is compared byte for byte, name and stapled answer included, and never a refusal.
#[derive(Debug)]
pub(super) struct Acquaintance {
    inner: Arc<dyn ServerCertVerifier>,
    known: Mutex<Vec<Known>>,
}

#[derive(Debug)]
struct Known {
    name: ServerName<'static>,
    /// Its own first, then those that lead to the root.
    chain: Vec<CertificateDer<'static>>,
    ocsp: Vec<u8>,
    since: UnixTime,
}

impl Acquaintance {
    pub(super) fn new(inner: Arc<dyn ServerCertVerifier>) -> Self {
        Acquaintance { inner, known: Mutex::default() }
    }

    fn knows(&self, shown: &Shown<'_>, now: UnixTime) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().any(|known| known.is_fresh(now) && shown.is(known))
    }

    fn remember(&self, shown: &Shown<'_>, now: UnixTime) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // Of two connections at once the later one finds that it is remembered already.
        known.retain(|known| known.is_fresh(now) && !shown.is(known));
        known.truncate(SERVERS - 1);
        let chain = std::iter::once(shown.own).chain(shown.others).map(|der| der.clone().into_owned()).collect();
        known.insert(0, Known { name: shown.name.to_owned(), chain, ocsp: shown.ocsp.to_vec(), since: now });
    }
}

impl Known {
    /// A clock that was set back forgets.
    fn is_fresh(&self, now: UnixTime) -> bool {
        now.as_secs().checked_sub(self.since.as_secs()).is_some_and(|age| age < REMEMBERED.as_secs())
    }
}

/// What a server shows of itself.
struct Shown<'a> {
    name: &'a ServerName<'a>,
    own: &'a CertificateDer<'a>,
    others: &'a [CertificateDer<'a>],
    ocsp: &'a [u8],
}

impl Shown<'_> {
    fn is(&self, known: &Known) -> bool {
        let Some((own, others)) = known.chain.split_first() else { return false };
        own == self.own && others == self.others && known.name == *self.name && known.ocsp == self.ocsp
    }
}

impl ServerCertVerifier for Acquaintance {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let shown = Shown { name, own, others, ocsp };
        if self.knows(&shown, now) {
            return Ok(ServerCertVerified::assertion());
        }
        let verified = self.inner.verify_server_cert(own, others, name, ocsp, now)?;
        self.remember(&shown, now);
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        self.inner.requires_raw_public_keys()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        self.inner.root_hint_subjects()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rustls::CertificateError;

    use super::*;

    /// Finds certificates good that end in an even byte, and counts how often it was asked.
    #[derive(Debug, Default)]
    struct Counting(AtomicUsize);

    impl ServerCertVerifier for Counting {
        fn verify_server_cert(
            &self,
            own: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            self.0.fetch_add(1, Ordering::Relaxed);
            let good = own.last().is_some_and(|last| last % 2 == 0);
            if good { Ok(ServerCertVerified::assertion()) } else { Err(CertificateError::UnknownIssuer.into()) }
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(CertificateError::BadSignature.into())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(CertificateError::BadSignature.into())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }
    }

    struct Bench {
        counting: Arc<Counting>,
        acquaintance: Acquaintance,
    }

    impl Bench {
        fn new() -> Bench {
            let counting = Arc::new(Counting::default());
            let acquaintance = Acquaintance::new(Arc::clone(&counting) as Arc<dyn ServerCertVerifier>);
            Bench { counting, acquaintance }
        }

        /// Whether a server is believed `seconds` after the beginning, and how often somebody looked so far.
        fn believes(&self, seconds: u64, name: &str, chain: [&[u8]; 2], ocsp: &[u8]) -> (bool, usize) {
            let [own, other] = chain.map(|der| CertificateDer::from(der.to_vec()));
            let name = ServerName::try_from(name.to_owned()).unwrap();
            let now = UnixTime::since_unix_epoch(Duration::from_secs(1_000_000 + seconds));
            let verdict = self.acquaintance.verify_server_cert(&own, &[other], &name, ocsp, now);
            (verdict.is_ok(), self.counting.0.load(Ordering::Relaxed))
        }
    }

    #[test]
    fn the_same_certificates_are_looked_at_once_a_minute() {
        let bench = Bench::new();
        let chain: [&[u8]; 2] = [&[1, 2], &[9]];
        assert_eq!(bench.believes(0, "a.example", chain, &[]), (true, 1));
        assert_eq!(bench.believes(59, "a.example", chain, &[]), (true, 1));
        assert_eq!(bench.believes(60, "a.example", chain, &[]), (true, 2));
        // The clock was set back.
        assert_eq!(bench.believes(30, "a.example", chain, &[]), (true, 3));
    }

    #[test]
    fn whatever_differs_is_looked_at() {
        let bench = Bench::new();
        assert_eq!(bench.believes(0, "a.example", [&[1, 2], &[9]], &[]), (true, 1));
        assert_eq!(bench.believes(0, "b.example", [&[1, 2], &[9]], &[]), (true, 2), "another name");
        assert_eq!(bench.believes(0, "a.example", [&[1, 4], &[9]], &[]), (true, 3), "another certificate");
        assert_eq!(bench.believes(0, "a.example", [&[1, 2], &[8]], &[]), (true, 4), "another way to the root");
        assert_eq!(bench.believes(0, "a.example", [&[1, 2], &[9]], &[7]), (true, 5), "another stapled answer");
        assert_eq!(bench.believes(0, "a.example", [&[1, 2], &[9]], &[]), (true, 5), "and the first is still known");
    }

    #[test]
    fn a_refusal_is_never_remembered_and_neither_is_a_signature() {
        let bench = Bench::new();
        assert_eq!(bench.believes(0, "a.example", [&[3], &[9]], &[]), (false, 1));
        assert_eq!(bench.believes(0, "a.example", [&[3], &[9]], &[]), (false, 2));
        assert_eq!(bench.acquaintance.supported_verify_schemes(), [SignatureScheme::ED25519]);
    }

    #[test]
    fn few_servers_are_remembered() {
        let bench = Bench::new();
        let names: Vec<_> = (0..=SERVERS).map(|n| format!("n{n}.example")).collect();
        for (n, name) in names.iter().enumerate() {
            assert_eq!(bench.believes(0, name, [&[2], &[9]], &[]), (true, n + 1));
        }
        assert_eq!(bench.acquaintance.known.lock().unwrap().len(), SERVERS);
        assert_eq!(bench.believes(0, &names[SERVERS], [&[2], &[9]], &[]), (true, SERVERS + 1));
        assert_eq!(bench.believes(0, &names[0], [&[2], &[9]], &[]), (true, SERVERS + 2), "the oldest was forgotten");
    }
}
