//! What rustls says, in our words: whose fault it is, whether it may pass, and what to do.

use std::io;

use rustls::{AlertDescription as Alert, CertificateError};

use crate::error::{Error, Kind};
use crate::store::http::security::Introduction;

/// Where a TLS connection was when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Handshake,
    Open,
}

/// The failure as the caller is to report it.
pub(super) fn refusal(error: rustls::Error, stage: Stage, introduction: Introduction) -> io::Error {
    let new = |kind, what: &str| Error::new(kind, what.to_owned());
    let named = match &error {
        rustls::Error::InvalidCertificate(problem) => {
            new(Kind::Auth, "the server's certificate cannot be trusted").advice(what_to_do(problem))
        }
        rustls::Error::AlertReceived(alert) if introduction == Introduction::Refused && is_about_access(*alert) => {
            new(Kind::Auth, "the server asks for a client certificate").advice("name one with `client_certificate`")
        }
        rustls::Error::AlertReceived(alert) if is_about_certificates(*alert) => {
            new(Kind::Auth, "the server refused the client certificate")
                .advice("check that it has not expired, and that the server trusts the authority that signed it")
        }
        rustls::Error::AlertReceived(alert) if stage == Stage::Handshake && is_about_protocol(*alert) => {
            new(Kind::Unsupported, "the server refused the TLS handshake")
                .advice("it must know this host name, HTTP/1.1, and TLS 1.3 or 1.2 with AEAD ciphers")
        }
        rustls::Error::PeerIncompatible(_) => new(Kind::Unsupported, "no common ground with the server's TLS")
            .advice("it must know TLS 1.3, or TLS 1.2 with ECDHE and AEAD ciphers"),
        rustls::Error::InvalidMessage(_) if stage == Stage::Handshake => {
            new(Kind::Unsupported, "the server does not speak TLS")
                .advice("check that the port is that of an https server, or use http://")
        }
        rustls::Error::UnsupportedNameType => new(Kind::Config, "the host's name cannot be in a certificate"),
        _ => new(Kind::Io, "TLS broke").transient(),
    };
    io::Error::other(named.source(error))
}

fn what_to_do(problem: &CertificateError) -> &'static str {
    match problem {
        CertificateError::UnknownIssuer => {
            "if the authority that signed it is your own, name its certificate with `ca_bundle`, or add it to the system's"
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the server needs a new one; if it has one, check this machine's clock"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "check this machine's clock",
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "use a host name that it lists, or give the server a certificate for this one"
        }
        // Which it is has no name in rustls; this is what `openssl req -x509` makes.
        CertificateError::Other(_) => {
            "the server needs another one; if it signed this one itself, that must not say that it is an authority (CA:FALSE)"
        }
        _ => "the server needs another one",
    }
}

/// Alerts that say something about a certificate of ours, or the lack of it.
fn is_about_certificates(alert: Alert) -> bool {
    matches!(
        alert,
        Alert::NoCertificate
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::CertificateRequired
    )
}

/// TLS 1.2 servers say that the handshake failed when they miss a certificate.
fn is_about_access(alert: Alert) -> bool {
    is_about_certificates(alert) || alert == Alert::HandshakeFailure
}

fn is_about_protocol(alert: Alert) -> bool {
    matches!(
        alert,
        Alert::HandshakeFailure
            | Alert::ProtocolVersion
            | Alert::InsufficientSecurity
            | Alert::IllegalParameter
            | Alert::MissingExtension
            | Alert::UnsupportedExtension
            | Alert::UnrecognisedName
            | Alert::NoApplicationProtocol
    )
}
