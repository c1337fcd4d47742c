//! Quantities by name: few, so a list finds them sooner than a tree, whose smallest node has room for
//! eleven.

use std::fmt;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

/// Each name once, in the order in which they were said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Amounts(Box<[(Box<str>, Quantity)]>);

impl Amounts {
    pub fn get(&self, name: &str) -> Option<&Quantity> {
        self.iter().find(|(n, _)| *n == name).map(|(_, amount)| amount)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Quantity)> {
        self.0.iter().map(|(name, amount)| (&**name, amount))
    }
}

impl<'de> Deserialize<'de> for Amounts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;

        impl<'de> Visitor<'de> for Pairs {
            type Value = Vec<(Box<str>, Quantity)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("quantities by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs: Self::Value = Vec::new();
                while let Some((name, amount)) = map.next_entry::<Box<str>, Quantity>()? {
                    match pairs.iter_mut().find(|(n, _)| *n == name) {
                        Some(again) => again.1 = amount,
                        None => pairs.push((name, amount)),
                    }
                }
                Ok(pairs)
            }
        }

        deserializer.deserialize_map(Pairs).map(|pairs| Self(pairs.into()))
    }
}
