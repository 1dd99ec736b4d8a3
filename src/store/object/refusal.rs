//! What to do about a refusal, by the code that the store gave: pure.

use super::super::http::Refused;
use crate::error::{Error, Kind};

/// What may help.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Remedy {
    /// Fresh credentials, and a fresh signature.
    Renew,
    /// Asking in this region.
    Move(Box<str>),
    /// Nothing that this store could do.
    None,
}

/// The remedy for `error`; the caller knows which it has tried.
pub(super) fn remedy(error: &Error) -> Remedy {
    let Some(refused) = Refused::of(error) else {
        // 401 without a word: what was sent is no longer good, or never was.
        return if error.kind() == Kind::Auth { Remedy::Renew } else { Remedy::None };
    };
    match (&refused.region, refused.code.as_deref(), refused.status) {
        (Some(region), Some("AuthorizationHeaderMalformed" | "PermanentRedirect" | "TemporaryRedirect"), _)
        | (Some(region), None, 301 | 307 | 400) => Remedy::Move(region.clone()),
        (_, Some(code), _) if is_passing(code) => Remedy::Renew,
        (_, _, 401) => Remedy::Renew,
        _ => Remedy::None,
    }
}

/// Whether the code is of credentials or signatures that were good once.
fn is_passing(code: &str) -> bool {
    is_expired(code)
        || matches!(
            code,
            "InvalidAccessKeyId"
                | "InvalidToken"
                | "InvalidSecurity"
                | "AuthenticationFailed"
                | "InvalidAuthenticationInfo"
                | "AuthenticationRequired"
                | "RequestTimeTooSkewed"
        )
}

fn is_expired(code: &str) -> bool {
    matches!(code, "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" | "RequestExpired")
}

/// `error` as what it is, in words; `object` names what was asked for.
pub(super) fn in_words(object: &str, error: Error) -> Error {
    let Some(refused) = Refused::of(&error) else { return error };
    let (code, region) = (refused.code.as_deref().unwrap_or_default(), refused.region.as_deref());
    let (kind, what, advice) = match code {
        _ if is_expired(code) => (
            Kind::Auth,
            "the session token has expired, and no newer one was found",
            "renew what the credentials come from; a role, a web identity or a metadata server renews by itself",
        ),
        "RequestTimeTooSkewed" => (
            Kind::Auth,
            "this machine's clock and the server's differ by minutes",
            "set the clock, with NTP for example",
        ),
        "InvalidAccessKeyId" | "NotSignedUp" => {
            (Kind::Auth, "the server does not know the access key", "check the key's id, and the endpoint it is for")
        }
        "SignatureDoesNotMatch" => (
            Kind::Auth,
            "the signature does not match",
            "check the secret key; a proxy that rewrites requests does this too",
        ),
        "InvalidToken" => {
            (Kind::Auth, "the session token is not valid", "check that id, secret and token belong together")
        }
        "AccessDenied" | "AllAccessDisabled" | "AuthorizationFailure" | "AuthorizationPermissionMismatch" => (
            Kind::Auth,
            "access denied",
            "check what the credentials may read; a requester-pays bucket needs the option requester_pays",
        ),
        "AuthenticationFailed"
        | "InvalidAuthenticationInfo"
        | "NoAuthenticationInformation"
        | "AuthenticationRequired"
        | "InvalidSecurity" => (
            Kind::Auth,
            "the server does not accept the credentials",
            "check the key or token, when it ends, and this machine's clock",
        ),
        "NoSuchBucket" | "ContainerNotFound" => {
            (Kind::NotFound, "no such bucket", "check its name, and the endpoint and region it is in")
        }
        "NoSuchKey" | "BlobNotFound" | "ResourceNotFound" | "NoSuchVersion" => {
            (Kind::NotFound, "no such object", "check its name, and that it is still there")
        }
        "SlowDown"
        | "ServerBusy"
        | "TooManyRequests"
        | "Throttling"
        | "ThrottlingException"
        | "RequestLimitExceeded" => {
            (Kind::Throttled, "the server asks to slow down", "lower `requests`, or spread the keys over prefixes")
        }
        "RequestTimeout" | "InternalError" | "OperationTimedOut" => {
            (Kind::Io, "the server failed", "it may pass; its status page may say more")
        }
        "InvalidObjectState" | "BlobArchived" => {
            (Kind::Unsupported, "the object is archived", "restore it to a class that can be read at once")
        }
        _ => match region {
            Some(region) => {
                let what = format!("{object}: the bucket is in region {region}, and was asked for elsewhere");
                let advice = format!("set the region to {region}, and an endpoint of it if you set an endpoint");
                return Error::new(Kind::Config, what).advice(advice);
            }
            None => return error,
        },
    };
    let context = format!("{object}: {what} (HTTP {}, {code})", refused.status);
    let told = Error::new(kind, context).advice(advice);
    match error.retry_after() {
        Some(delay) => told.retry_in(delay),
        None if error.is_transient() || matches!(kind, Kind::Throttled | Kind::Io) => told.transient(),
        None => told,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, code: &str, region: Option<&str>) -> Error {
        let code = Some(code).filter(|code| !code.is_empty()).map(Box::from);
        Error::new(Kind::Io, "s3://b/k: refused").source(Refused { status, code, region: region.map(Box::from) })
    }

    #[test]
    fn a_remedy_for_each() {
        for (status, code, region, expected) in [
            (400, "ExpiredToken", None, Remedy::Renew),
            (403, "RequestTimeTooSkewed", None, Remedy::Renew),
            (403, "InvalidAccessKeyId", None, Remedy::Renew),
            (401, "Whatever", None, Remedy::Renew),
            (403, "SignatureDoesNotMatch", None, Remedy::None),
            (403, "AccessDenied", None, Remedy::None),
            (404, "NoSuchKey", Some("eu-west-1"), Remedy::None),
            (400, "AuthorizationHeaderMalformed", Some("eu-west-1"), Remedy::Move("eu-west-1".into())),
            (301, "PermanentRedirect", Some("eu-west-1"), Remedy::Move("eu-west-1".into())),
            (301, "", Some("eu-west-1"), Remedy::Move("eu-west-1".into())),
        ] {
            assert_eq!(remedy(&refused(status, code, region)), expected, "{code}");
        }
        assert_eq!(remedy(&Error::new(Kind::Auth, "401")), Remedy::Renew);
        assert_eq!(remedy(&Error::new(Kind::NotFound, "404")), Remedy::None);
    }

    #[test]
    fn codes_are_kinds_and_words() {
        for (status, code, kind, word, transient) in [
            (400, "ExpiredToken", Kind::Auth, "the session token has expired", false),
            (403, "SignatureDoesNotMatch", Kind::Auth, "secret key", false),
            (403, "AccessDenied", Kind::Auth, "requester_pays", false),
            (404, "NoSuchBucket", Kind::NotFound, "no such bucket", false),
            (503, "SlowDown", Kind::Throttled, "slow down", true),
            (400, "RequestTimeout", Kind::Io, "failed", true),
            (403, "InvalidObjectState", Kind::Unsupported, "archived", false),
        ] {
            let error = in_words("s3://b/k", refused(status, code, None));
            let text = error.to_string();
            assert_eq!((error.kind(), error.is_transient()), (kind, transient), "{text}");
            assert!(text.contains(word) && text.contains(code) && text.contains("s3://b/k"), "{text}");
        }
        let elsewhere = in_words("s3://b/k", refused(301, "PermanentRedirect", Some("eu-west-1")));
        assert!(elsewhere.kind() == Kind::Config && elsewhere.to_string().contains("set the region to eu-west-1"));
        let other = in_words("s3://b/k", refused(409, "SomethingElse", None));
        assert!(other.to_string().contains("it says SomethingElse"), "{other}");
    }
}
