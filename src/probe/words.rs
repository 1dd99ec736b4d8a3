//! Numbers as people say them.

/// `238`, `1,240`, `8.4`: three digits, or all in front of the point.
pub(super) fn figure(number: f64) -> String {
    if !number.is_finite() {
        return "?".to_owned();
    }
    with_places(number, places(number))
}

/// `238 MB/s ± 6`: the deviation with no more places than the mean.
pub(super) fn around(mean: f64, deviation: f64, unit: &str) -> String {
    format!("{} {unit} ± {}", figure(mean), with_places(deviation, places(mean)))
}

fn places(number: f64) -> usize {
    if number >= 99.95 {
        0
    } else if number >= 9.995 {
        1
    } else {
        2
    }
}

fn with_places(number: f64, places: usize) -> String {
    let text = format!("{number:.places$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let rest = if rest.trim_end_matches('0') == "." { "" } else { rest };
    let mut grouped = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + rest
}

/// Bytes per second in MB/s, without the unit.
pub(super) fn mb_s(bytes_s: f64) -> String {
    figure(bytes_s / 1e6)
}

/// Seconds in milliseconds, with the unit.
pub(super) fn ms(seconds: f64) -> String {
    format!("{} ms", figure(seconds * 1e3))
}

/// `1 MiB`, `256 KiB`; sizes of requests are powers of two.
pub(super) fn size(bytes: u64) -> String {
    if bytes >= 1 << 20 {
        format!("{} MiB", figure(bytes as f64 / (1 << 20) as f64))
    } else {
        format!("{} KiB", figure(bytes as f64 / 1024.0))
    }
}

/// `1 connection`, `8 connections`.
pub(super) fn counted(count: usize, noun: &str) -> String {
    format!("{} {noun}{}", figure(count as f64), if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        let said = [0.0, 0.123, 1.5, 9.996, 15.04, 99.96, 238.4, 1239.7, 1_234_567.0].map(figure);
        assert_eq!(said, ["0", "0.12", "1.50", "10", "15", "100", "238", "1,240", "1,234,567"].map(String::from));
        assert_eq!((size(256 << 10), size(8 << 20), mb_s(2.5e9)), ("256 KiB".into(), "8 MiB".into(), "2,500".into()));
        assert_eq!(
            (around(238.4, 6.4, "MB/s"), around(8.5, 0.25, "MB/s")),
            ("238 MB/s ± 6".into(), "8.50 MB/s ± 0.25".into())
        );
        assert_eq!((figure(f64::NAN), ms(0.01523)), ("?".into(), "15.2 ms".into()));
        assert_eq!((counted(1, "request"), counted(8, "request")), ("1 request".into(), "8 requests".into()));
    }
}
