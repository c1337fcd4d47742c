//! Any bytes as what the other end of a tunnel sends.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rimward_tunnel::wire::{Down, FrameReader, Request, Up};

fuzz_target!(|bytes: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let mut reader = FrameReader::new(bytes);
        while let Ok(Some(frame)) = reader.next().await {
            let _malformed = Up::decode(&frame);
            let _malformed = Down::decode(&frame);
            let _malformed = Request::decode(&frame);
        }
    });
});
