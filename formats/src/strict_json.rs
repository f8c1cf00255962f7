//! JSON objects whose duplicate keys are errors, read in file order.
//!
//! `serde_json` keeps the last of two equal keys, so a header could name one tensor twice and hide
//! the first.

use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};

/// The entries of a JSON object in file order, no key twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UniqueEntries<V>(pub Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueEntries<V> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Entries<V>(PhantomData<V>);

        impl<'de, V: Deserialize<'de>> Visitor<'de> for Entries<V> {
            type Value = UniqueEntries<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries: Vec<(String, V)> = Vec::new();
                while let Some(key) = map.next_key::<String>()? {
                    let value = map
                        .next_value()
                        .map_err(|e| A::Error::custom(format!("key {key:?}: {e}")))?;
                    entries.push((key, value));
                }
                check_unique(&entries).map_err(A::Error::custom)?;
                Ok(UniqueEntries(entries))
            }
        }

        from.deserialize_map(Entries(PhantomData))
    }
}

fn check_unique<V>(entries: &[(String, V)]) -> Result<(), String> {
    // as most are written; then no two are equal
    if entries.windows(2).all(|two| two[0].0 < two[1].0) {
        return Ok(());
    }
    let mut seen = HashSet::with_capacity(entries.len());
    for (key, _) in entries {
        if !seen.insert(key.as_str()) {
            return Err(format!("key {key:?} appears twice"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_file_order_and_refuses_a_key_given_twice() {
        let parse = |text: &str| serde_json::from_str::<UniqueEntries<u8>>(text);
        assert_eq!(
            parse(r#"{"b":1,"a":2}"#).unwrap().0,
            [("b".to_owned(), 1), ("a".to_owned(), 2)]
        );
        let error = parse(r#"{"b":1,"a":2,"\u0062":3}"#)
            .unwrap_err()
            .to_string();
        assert!(error.contains(r#"key "b" appears twice"#), "{error}");
        let side_by_side = parse(r#"{"a":1,"b":2,"b":3}"#).unwrap_err();
        assert!(side_by_side.to_string().contains("appears twice"));
        assert!(parse("[]").is_err());
    }
}
