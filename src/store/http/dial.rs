//! One connection to whichever of a host's addresses answers: the next one is tried when one says nothing for a moment, and the first
//! that answers wins.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::resolver::Resolver;

/// How long an address has to itself before the next one is tried beside it, at least and at most: the former is what RFC 8305
/// recommends, and on long links it is this many times what connecting took last.
const ANSWER_WITHIN: Duration = Duration::from_millis(250);
const ANSWER_WITHIN_MAX: Duration = Duration::from_secs(2);
const ANSWER_FACTOR: u32 = 3;
/// Addresses that are tried for one connection.
const TRIES_MAX: usize = 8;

/// A connection that is being opened.
struct Try<F> {
    address: SocketAddr,
    began: Instant,
    connecting: Pin<Box<F>>,
}

/// Opens a connection to one of `addresses`, the first of them first; gives it, its address, and what
/// connecting to that took. Tells `resolver` which ones answered and which did not. The caller has the deadline.
///
/// # Errors
/// That of the last address, once all have failed.
pub(super) async fn dial<T, F: Future<Output = io::Result<T>>>(
    addresses: &[SocketAddr],
    resolver: &Resolver,
    connect: impl Fn(SocketAddr) -> F,
) -> io::Result<(T, SocketAddr, Duration)> {
    let mut failure = io::Error::new(io::ErrorKind::AddrNotAvailable, "the name has no address");
    let mut waiting = addresses.iter().copied().take(TRIES_MAX);
    let mut tries: Vec<Try<F>> = Vec::new();
    loop {
        let next = waiting.next();
        if let Some(address) = next {
            tries.push(Try { address, began: Instant::now(), connecting: Box::pin(connect(address)) });
        }
        if tries.is_empty() {
            return Err(failure);
        }
        let usual = resolver.last_connect().saturating_mul(ANSWER_FACTOR).clamp(ANSWER_WITHIN, ANSWER_WITHIN_MAX);
        let patience = if waiting.len() > 0 { usual } else { Duration::MAX };
        match tokio::time::timeout(patience, first_of(&mut tries)).await {
            Ok((address, took, Ok(connection))) => {
                resolver.answered(address, took);
                return Ok((connection, address, took));
            }
            Ok((address, _, Err(error))) => {
                resolver.failed(address);
                failure = error;
            }
            Err(_) => {
                if let Some(address) = next {
                    resolver.failed(address);
                }
            }
        }
    }
}

/// The first try that ends, which is taken out of `tries`.
async fn first_of<T, F: Future<Output = io::Result<T>>>(
    tries: &mut Vec<Try<F>>,
) -> (SocketAddr, Duration, io::Result<T>) {
    poll_fn(|context| {
        for at in 0..tries.len() {
            if let Poll::Ready(outcome) = tries[at].connecting.as_mut().poll(context) {
                let ended = tries.remove(at);
                return Poll::Ready((ended.address, ended.began.elapsed(), outcome));
            }
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u8) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, n], 80))
    }

    /// Dials addresses of which 1 to 9 refuse, 10 to 19 say nothing, and the others answer after as many milliseconds; for two seconds.
    fn dialled(numbers: &[u8], resolver: &Resolver) -> (io::Result<SocketAddr>, Duration) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let began = Instant::now();
            let addresses: Vec<_> = numbers.iter().copied().map(address).collect();
            let dialling = dial(&addresses, resolver, async |address: SocketAddr| {
                let SocketAddr::V4(v4) = address else { unreachable!() };
                match v4.ip().octets()[3] {
                    0..10 => Err(io::ErrorKind::ConnectionRefused.into()),
                    10..20 => std::future::pending().await,
                    ms => {
                        tokio::time::sleep(Duration::from_millis(ms.into())).await;
                        Ok(())
                    }
                }
            });
            let outcome = tokio::time::timeout(Duration::from_secs(2), dialling).await;
            let outcome = outcome.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            (outcome.map(|((), address, _)| address), began.elapsed())
        })
    }

    #[test]
    fn the_next_address_is_tried_at_once_or_after_a_moment() {
        let resolver = Resolver::default();
        let (outcome, _) = dialled(&[30, 31], &resolver);
        assert_eq!(outcome.unwrap(), address(30));
        let (outcome, took) = dialled(&[1, 2, 30], &resolver);
        assert!(outcome.unwrap() == address(30) && took < ANSWER_WITHIN, "{took:?}");
        let (outcome, took) = dialled(&[10, 1, 30], &resolver);
        assert!(outcome.unwrap() == address(30), "one is silent, one refuses");
        assert!(took >= ANSWER_WITHIN && took < 2 * ANSWER_WITHIN, "{took:?}");
        // The silent ones go last from now on.
        let addresses = [10, 1, 30, 31].map(address);
        assert_eq!(resolver.order(&addresses, &[], 0), [30, 31, 10, 1].map(address));
    }

    #[test]
    fn it_ends_when_all_have_failed_and_not_before() {
        let resolver = Resolver::default();
        assert_eq!(dialled(&[], &resolver).0.unwrap_err().kind(), io::ErrorKind::AddrNotAvailable);
        assert_eq!(dialled(&[1, 2], &resolver).0.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let (outcome, took) = dialled(&[10, 11, 1], &resolver);
        assert!(outcome.unwrap_err().kind() == io::ErrorKind::TimedOut && took >= Duration::from_secs(2), "two hang");
    }
}
