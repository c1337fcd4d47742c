//! How far a pull is: a place that images come from, with a count of what came.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use rimward_node_pod::outside::PullProgress;

use crate::fetch::{Blob, FetchError, Source};
use crate::form::Manifest;

/// Of one pull.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    bytes: AtomicU64,
    bytes_all: AtomicU64,
}

impl Counts {
    /// None before it is known what there is to transfer.
    pub fn now(&self) -> Option<PullProgress> {
        let bytes_all = self.bytes_all.load(Ordering::Relaxed);
        let bytes = self.bytes.load(Ordering::Relaxed).min(bytes_all);
        (bytes_all > 0).then_some(PullProgress { bytes, bytes_all })
    }
}

pub(crate) struct Counted<'a> {
    pub source: &'a dyn Source,
    pub counts: Arc<Counts>,
}

#[async_trait]
impl Source for Counted<'_> {
    fn place(&self) -> &str {
        self.source.place()
    }

    async fn manifest(&self, version: &str) -> Result<Bytes, FetchError> {
        let content = self.source.manifest(version).await?;
        // One that cannot be read is told of by who asked for it.
        if let Ok(manifest) = serde_json::from_slice::<Manifest>(&content) {
            let parts = manifest.layers.iter().chain(&manifest.config);
            let all = parts.fold(0_u64, |sum, part| sum.saturating_add(part.size));
            self.counts.bytes_all.store(all, Ordering::Relaxed);
        }
        Ok(content)
    }

    async fn blob(&self, digest: &str, from: u64) -> Result<(u64, Blob), FetchError> {
        let (from, blob) = self.source.blob(digest, from).await?;
        let counts = self.counts.clone();
        // What an earlier transfer had counts too; one that begins anew counts twice, up to all.
        counts.bytes.fetch_add(from, Ordering::Relaxed);
        let counted = blob.inspect(move |chunk| {
            let len = chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
            counts.bytes.fetch_add(len, Ordering::Relaxed);
        });
        Ok((from, counted.boxed()))
    }
}
