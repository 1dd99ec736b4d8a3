//! What a value looks like, told from its first bytes.

use farfeed::dataset::{Dtype, NpyHeader};
use serde::Serialize;

/// Letters of text, and bytes, that are shown.
const LETTERS: usize = 60;
const BYTES: usize = 16;
/// Numbers of an array that are shown.
const ELEMENTS: usize = 8;

/// A value in a few words.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Preview {
    /// What it seems to be: `JPEG`, `text`, `uint16`, `binary`.
    pub(super) kind: String,
    /// Its beginning: text escaped, numbers in brackets, else hexadecimal.
    pub(super) text: String,
}

/// Looks at `head`, the first bytes of a value of `len`; `dtype` is told where the format fixes it.
pub(super) fn preview(head: &[u8], len: u64, dtype: Option<Dtype>) -> Preview {
    let whole = head.len() as u64 == len;
    if let Some(dtype) = dtype {
        return Preview { kind: dtype.name().into(), text: numbers(head, dtype, len) };
    }
    if let Ok(header) = NpyHeader::parse(head) {
        let elements = head.get(header.start as usize..).unwrap_or_default();
        let left = len.saturating_sub(header.start);
        let kind = format!("npy {} {:?}", header.dtype.name(), header.shape);
        return Preview { kind, text: numbers(elements, header.dtype, left) };
    }
    if let Some(kind) = known(head) {
        return Preview { kind: kind.into(), text: hexadecimal(head, len) };
    }
    match text(head, whole) {
        Some(text) => {
            let start = text.trim_start();
            let json = if whole {
                start.starts_with(['{', '[']) && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
            } else {
                start.starts_with("{\"") || start.starts_with("[{\"")
            };
            Preview { kind: if json { "JSON" } else { "text" }.into(), text: escaped(text, whole) }
        }
        None if head.is_empty() => Preview { kind: "empty".into(), text: String::new() },
        None => Preview { kind: "binary".into(), text: hexadecimal(head, len) },
    }
}

/// Formats that tell themselves by their first bytes.
fn known(head: &[u8]) -> Option<&'static str> {
    const STARTS: [(&[u8], &str); 19] = [
        (b"\xff\xd8\xff", "JPEG"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"GIF87a", "GIF"),
        (b"GIF89a", "GIF"),
        (b"II*\0", "TIFF"),
        (b"MM\0*", "TIFF"),
        (b"\0\0\0\x0cJXL ", "JPEG XL"),
        (b"\xff\x0a", "JPEG XL"),
        (b"%PDF-", "PDF"),
        (b"\x93NUMPY", "npy"),
        (b"PK\x03\x04", "zip (npz, pt)"),
        (b"\x1f\x8b", "gzip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"\x04\x22\x4d\x18", "lz4"),
        (b"fLaC", "FLAC"),
        (b"OggS", "Ogg"),
        (b"ID3", "MP3"),
        (b"PAR1", "Parquet"),
        (b"\x1a\x45\xdf\xa3", "Matroska, WebM"),
    ];
    if let Some((_, kind)) = STARTS.iter().find(|(start, _)| head.starts_with(start)) {
        return Some(kind);
    }
    match (head.get(..4), head.get(4..8), head.get(8..12)) {
        (Some(b"RIFF"), _, Some(b"WEBP")) => Some("WebP"),
        (Some(b"RIFF"), _, Some(b"WAVE")) => Some("WAV"),
        (_, Some(b"ftyp"), Some(b"avif" | b"heic")) => Some("AVIF, HEIF"),
        (_, Some(b"ftyp"), _) => Some("MP4"),
        (Some([0x80, 2..=5, b'}' | b']' | b'(' | b'c' | 0x95, _]), ..) => Some("pickle"),
        _ => None,
    }
}

/// The bytes as text, if that is what they are. A letter that was cut through at the end is left out.
fn text(head: &[u8], whole: bool) -> Option<&str> {
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(error) if !whole && error.error_len().is_none() => {
            std::str::from_utf8(&head[..error.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    let readable = |letter: char| !letter.is_control() || matches!(letter, '\n' | '\r' | '\t');
    (!text.is_empty() && text.chars().all(readable)).then_some(text)
}

fn escaped(text: &str, whole: bool) -> String {
    let start: String = text.chars().take(LETTERS).collect();
    let more = if whole && start.len() == text.len() { "" } else { "…" };
    // Quotes stay as they are: JSON is hard to read with each of them escaped.
    let shown: String = start
        .chars()
        .map(|letter| if matches!(letter, '"' | '\'') { letter.to_string() } else { letter.escape_debug().to_string() })
        .collect();
    shown + more
}

fn hexadecimal(head: &[u8], len: u64) -> String {
    let shown = &head[..head.len().min(BYTES)];
    let digits: Vec<String> = shown.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.join(" ") + if (shown.len() as u64) < len { " …" } else { "" }
}

/// The first elements of an array of `len` bytes.
fn numbers(bytes: &[u8], dtype: Dtype, len: u64) -> String {
    let mut shown: Vec<String> =
        bytes.chunks_exact(dtype.bytes()).take(ELEMENTS).map(|element| number(element, dtype)).collect();
    if (shown.len() * dtype.bytes()) as u64 != len {
        shown.push("…".into());
    }
    format!("[{}]", shown.join(", "))
}

/// One element, little-endian.
fn number(element: &[u8], dtype: Dtype) -> String {
    let bits = element.iter().rev().fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
    match dtype {
        Dtype::U8 | Dtype::U16 | Dtype::U32 | Dtype::U64 => bits.to_string(),
        Dtype::I8 => (bits as i8).to_string(),
        Dtype::I16 => (bits as i16).to_string(),
        Dtype::I32 => (bits as i32).to_string(),
        Dtype::I64 => (bits as i64).to_string(),
        Dtype::F16 => half(bits as u16).to_string(),
        Dtype::BF16 => f32::from_bits((bits as u32) << 16).to_string(),
        Dtype::F32 => f32::from_bits(bits as u32).to_string(),
        Dtype::F64 => f64::from_bits(bits).to_string(),
        Dtype::Bool => (bits != 0).to_string(),
    }
}

/// An IEEE 754 half: 1 bit of sign, 5 of exponent, 10 of fraction.
fn half(bits: u16) -> f32 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f32::from(bits & 0x3ff) / 1024.0);
    sign * match exponent {
        0 => fraction * 2f32.powi(-14),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1.0 + fraction) * 2f32.powi(exponent - 15),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(bytes: &[u8]) -> (String, String) {
        let Preview { kind, text } = preview(bytes, bytes.len() as u64, None);
        (kind, text)
    }

    fn pair(kind: &str, text: &str) -> (String, String) {
        (kind.into(), text.into())
    }

    #[test]
    fn values_are_known_by_their_first_bytes() {
        assert_eq!(told(b"\xff\xd8\xff\xe0"), pair("JPEG", "ff d8 ff e0"));
        assert_eq!(told(b"RIFF\x10\0\0\0WAVEfmt ").0, "WAV");
        assert_eq!(told(b"{\"a\": [1]}"), pair("JSON", "{\"a\": [1]}"));
        assert_eq!(told(b"{not json}").0, "text");
        assert_eq!(told("caf\u{e9}\n".as_bytes()), pair("text", "café\\n"));
        assert_eq!(told(b"7"), pair("text", "7"));
        assert_eq!(told(b""), pair("empty", ""));
        assert_eq!(told(b"\0\x01"), pair("binary", "00 01"));
        assert_eq!(told(&[0x80; 20]).1, format!("{} …", ["80"; 16].join(" ")));
    }

    #[test]
    fn a_cut_is_no_fault_of_the_value() {
        let cut = preview(&"é".as_bytes()[..1], 2, None);
        assert_eq!(cut.kind, "binary", "one byte of a letter is no text");
        let cut = preview(&"aé".as_bytes()[..2], 3, None);
        assert_eq!((cut.kind.as_str(), cut.text.as_str()), ("text", "a…"));
        assert_eq!(preview(b"{\"long\": \"", 5000, None).kind, "JSON");
        assert_eq!(preview("x".repeat(100).as_bytes(), 100, None).text, format!("{}…", "x".repeat(60)));
    }

    #[test]
    fn arrays_are_shown_as_numbers() {
        let text = |bytes: &[u8], dtype| preview(bytes, bytes.len() as u64, Some(dtype)).text;
        assert_eq!(text(&[1, 0, 0xff, 0xff], Dtype::U16), "[1, 65535]");
        assert_eq!(text(&[0xff, 0xff], Dtype::I16), "[-1]");
        assert_eq!(text(&[0, 0x3c, 0, 0xc0, 0, 0x7c], Dtype::F16), "[1, -2, inf]");
        assert_eq!(text(&[0x80, 0x3f], Dtype::BF16), "[1]");
        assert_eq!(text(&[0; 9], Dtype::Bool), format!("[{}, …]", ["false"; 8].join(", ")));
        let mut npy = b"\x93NUMPY\x01\0\x3a\0{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }".to_vec();
        npy.resize(10 + 0x3a, b' ');
        npy.extend(1.5f32.to_le_bytes().iter().chain(&2f32.to_le_bytes()));
        assert_eq!(told(&npy), pair("npy float32 [2]", "[1.5, 2]"));
    }
}
