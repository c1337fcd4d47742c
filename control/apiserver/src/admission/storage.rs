//! Volumes and claims in use are kept by a finalizer until nothing uses them.

use serde_json::json;

use super::Review;
use crate::meta;

pub fn admit(review: &mut Review<'_>) {
    let finalizer = match review.served.is("", "persistentvolumes") {
        true => "kubernetes.io/pv-protection",
        false => "kubernetes.io/pvc-protection",
    };
    let meta = meta::metadata(review.object);
    let list = meta.entry("finalizers").or_insert_with(|| json!([]));
    if let Some(list) = list.as_array_mut()
        && !list.iter().any(|f| f == finalizer)
    {
        list.push(finalizer.into());
    }
}
