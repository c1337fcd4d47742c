//! Any text as a selector, a quantity, a name: what is accepted prints as something that is accepted again.

#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use rimward_api::quantity::Quantity;
use rimward_api::selector::{FieldSelector, LabelSelector};

fuzz_target!(|text: &str| {
    if let Ok(selector) = LabelSelector::parse(text) {
        let labels = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        let _either = selector.matches(&labels);
    }
    if let Ok(selector) = FieldSelector::parse(text) {
        let _either = selector.matches(|field| (field == "metadata.name").then_some("x"));
    }
    if let Ok(quantity) = Quantity::parse(text) {
        let printed = quantity.to_string();
        let again =
            Quantity::parse(&printed).unwrap_or_else(|_| panic!("{text:?} prints as {printed:?}"));
        assert_eq!(again.to_string(), printed, "{text:?}");
        assert_eq!(again.value(), quantity.value(), "{text:?} prints as {printed:?}");
    }
});
