use proptest::prelude::*;

use super::*;

/// A file with this table and so many bytes behind it.
fn file(table: &str, data: usize) -> Vec<u8> {
    let mut bytes = (table.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(table.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn parse(table: &str, data: usize) -> Result<SafetensorsHeader> {
    let bytes = file(table, data);
    SafetensorsHeader::parse(&bytes, bytes.len() as u64)
}

const TABLE: &str = r#"{"b":{"dtype":"F32","shape":[2,3],"data_offsets":[2,26]},"__metadata__":{"format":"pt"},
    "none":{"dtype":"I64","shape":[0,5],"data_offsets":[2,2]},"a":{"dtype":"BF16","shape":[],"data_offsets":[0,2]}}   "#;

#[test]
fn tensors_are_told_in_the_order_of_the_file() {
    let header = parse(TABLE, 26).unwrap();
    let base = 8 + TABLE.len() as u64;
    let place = |name: &str, dtype, shape: &[usize], start, len| TensorPlace {
        name: name.into(),
        dtype,
        shape: shape.to_vec(),
        start: base + start,
        len,
    };
    let expected = [
        place("a", Dtype::BF16, &[], 0, 2),
        place("none", Dtype::I64, &[0, 5], 2, 0),
        place("b", Dtype::F32, &[2, 3], 2, 24),
    ];
    assert_eq!(header.tensors, expected);
    assert_eq!(header.metadata.get("format").map(String::as_str), Some("pt"));
    assert_eq!(parse("{}", 0).unwrap(), SafetensorsHeader::default());
}

#[test]
fn the_header_is_enough() {
    let bytes = file(TABLE, 26);
    let needed = SafetensorsHeader::bytes_needed(&bytes[..8]).unwrap() as usize;
    assert_eq!(needed, 8 + TABLE.len());
    let size = bytes.len() as u64;
    assert_eq!(SafetensorsHeader::parse(&bytes[..needed], size).unwrap(), parse(TABLE, 26).unwrap());
    for cut in [0, 7, 8, needed - 1] {
        assert_eq!(SafetensorsHeader::parse(&bytes[..cut], size).unwrap_err().kind(), Kind::Corrupt, "{cut}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    let entry = |dtype: &str, shape: &str, from: &str, to: &str| {
        format!(r#"{{"t":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}}}"#)
    };
    let max = u64::MAX.to_string();
    for (table, kind, part) in [
        (entry("F32", "[2]", "0", "4"), Kind::Corrupt, "'t': float32 [2] at bytes 0..4"),
        (entry("F32", "[2]", "8", "0"), Kind::Corrupt, "8..0"),
        (entry("F32", &format!("[{max},{max}]"), "0", "8"), Kind::Corrupt, "'t'"),
        (entry("F32", "[1]", &format!("{}", u64::MAX - 4), &max), Kind::Corrupt, "'t'"),
        (entry("F32", "[-1]", "0", "8"), Kind::Corrupt, "table"),
        (entry("F8_E4M3", "[8]", "0", "8"), Kind::Unsupported, "F8_E4M3"),
        (entry("U8", "[4]", "0", "4"), Kind::Corrupt, "end at byte"),
        (entry("U8", "[7]", "1", "8"), Kind::Corrupt, "gap"),
        (entry("U8", &format!("[{}8]", "1,".repeat(64)), "0", "8"), Kind::Corrupt, "65 dimensions"),
        (r#"{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}"#.into(), Kind::Corrupt, "'b' overlaps"),
        (r#"{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}"#.into(), Kind::Corrupt, "'a' is there twice"),
        (r#"{"a":{"dtype":"U8","shape":[8]}}"#.into(), Kind::Corrupt, "data_offsets"),
        (r#"{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8],"scale":2}}"#.into(), Kind::Corrupt, "scale"),
        (r#"{"__metadata__":{"a":1}}"#.into(), Kind::Corrupt, "table"),
        ("[]".into(), Kind::Corrupt, "table"),
        ("{}{}".into(), Kind::Corrupt, "table"),
        (String::new(), Kind::Corrupt, "table"),
    ] {
        let error = parse(&table, 8).unwrap_err();
        assert!(error.kind() == kind && error.to_string().contains(part), "{table}: {error}");
        assert!(error.next_step().is_some());
    }
    let error = SafetensorsHeader::bytes_needed(&u64::MAX.to_le_bytes()).unwrap_err();
    assert!(error.kind() == Kind::Corrupt && error.to_string().contains("100000000"), "{error}");
    let truncated = SafetensorsHeader::parse(&file(TABLE, 26), 8 + TABLE.len() as u64 + 20).unwrap_err();
    assert!(truncated.is_in_object(), "{truncated}");
}

/// Tensors of any types and shapes, one after the other: table, data bytes, and what is to come out.
fn whole() -> impl Strategy<Value = Vec<(String, Dtype, Vec<usize>)>> {
    let types = prop::sample::select(vec![("U8", Dtype::U8), ("BF16", Dtype::BF16), ("F64", Dtype::F64)]);
    let tensor = (types, prop::collection::vec(0usize..5, 0..4));
    prop::collection::vec(tensor, 0..12).prop_map(|tensors| {
        let named = |(number, ((_, dtype), shape)): (usize, ((&str, Dtype), Vec<usize>))| {
            (format!("layer.{number:02}.weight \"ü\""), dtype, shape)
        };
        tensors.into_iter().enumerate().map(named).collect()
    })
}

proptest! {
    #[test]
    fn what_was_written_is_read(tensors in whole()) {
        let mut at = 0usize;
        let mut table = serde_json::Map::new();
        for (name, dtype, shape) in &tensors {
            let len = shape.iter().product::<usize>() * dtype.bytes();
            let code = match dtype { Dtype::U8 => "U8", Dtype::BF16 => "BF16", _ => "F64" };
            let entry = serde_json::json!({"dtype": code, "shape": shape, "data_offsets": [at, at + len]});
            table.insert(name.clone(), entry);
            at += len;
        }
        let header = parse(&serde_json::Value::Object(table).to_string(), at).unwrap();
        let read: Vec<_> = header.tensors.iter().map(|t| (t.name.clone(), t.dtype, t.shape.clone())).collect();
        let sorted = |mut all: Vec<(String, Dtype, Vec<usize>)>| { all.sort_by(|a, b| a.0.cmp(&b.0)); all };
        prop_assert_eq!(sorted(read), sorted(tensors));
        prop_assert!(header.tensors.windows(2).all(|pair| pair[0].start + pair[0].len == pair[1].start));
    }

    /// Neither a panic nor an allocation by what is claimed: whatever is taken lies inside the file.
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), size: u64) {
        if let Ok(header) = SafetensorsHeader::parse(&bytes, size) {
            prop_assert!(header.tensors.iter().all(|t| t.start + t.len <= size));
        }
    }

    #[test]
    fn a_damaged_header_is_read_or_refused(at in 0usize..TABLE.len(), byte: u8, size in 0u64..1000) {
        let mut bytes = file(TABLE, 26);
        bytes[8 + at] = byte;
        for size in [size, bytes.len() as u64] {
            if let Ok(header) = SafetensorsHeader::parse(&bytes, size) {
                prop_assert!(header.tensors.iter().all(|t| t.start + t.len <= size));
            }
        }
    }
}
