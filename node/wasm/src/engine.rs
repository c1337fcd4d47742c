//! The engine's configuration: one set of facts for the process that compiles and the one that runs.
//!
//! A memory reserves 4 GiB of addresses and a guard, so that compiled code needs no bounds checks;
//! addresses are free, mappings are not. What caps instances on one machine is `vm.max_map_count`:
//! a slot in use costs about 12 mappings (memory with its image, table, stack and their guards).

use std::hash::{Hash, Hasher};

use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig,
};

const MAPPINGS_PER_SLOT: u32 = 12;
/// The host's own: code of images, heap, thread stacks.
const MAPPINGS_RESERVED: u32 = 8192;
/// Slots below which an engine is of no use: the error is the user's to see.
const SLOTS_MIN: u32 = 16;

/// What does and does not shape machine code is kept apart: this is what does.
fn shared_config() -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .wasm_component_model(true)
        .wasm_component_model_async(true)
        .cranelift_opt_level(OptLevel::Speed)
        // A core dump or native debugger is not offered; trap messages need the address map only.
        .debug_info(false)
        .generate_address_map(true)
        // Guests' stacks are their own; 512 KiB is wasmtime's default, twice that is the fiber's.
        .max_wasm_stack(512 << 10)
        .async_stack_size(1 << 20);
    config
}

/// For `wasm-compile`, and for knowing what a cached artifact was made for.
pub(crate) fn compiler() -> wasmtime::Result<Engine> {
    Engine::new(&shared_config())
}

/// Changes whenever machine code of one engine would not run in the other.
pub(crate) fn compatibility(engine: &Engine) -> u64 {
    // SipHash with fixed keys: the same in every process of this binary.
    #[allow(deprecated)]
    let mut hasher = std::hash::SipHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    hasher.finish()
}

/// For a host: pooled slots, as many as asked for or as the machine bears. With the number of slots.
pub(crate) fn host(wanted: u32) -> wasmtime::Result<(Engine, u32)> {
    let mut slots = wanted.min(slots_by_mappings()).max(SLOTS_MIN);
    loop {
        let mut config = shared_config();
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(slots)));
        match Engine::new(&config) {
            // Address space may be short (39-bit machines, RLIMIT_AS).
            Err(_) if slots / 2 >= SLOTS_MIN => slots /= 2,
            other => return other.map(|engine| (engine, slots)),
        }
    }
}

fn pool(slots: u32) -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(slots)
        // A usual component is its module, a shim with a table of its own, a fix-up, at times an
        // adapter. Those that are larger meet the pool's limit sooner, and wait for a slot.
        .total_core_instances(slots.saturating_mul(5))
        .total_memories(slots + slots / 4)
        .total_tables(slots.saturating_mul(3))
        .total_stacks(slots)
        .total_gc_heaps(slots / 4)
        .max_memories_per_module(4)
        .max_tables_per_module(8)
        .table_elements(100_000)
        .max_component_instance_size(2 << 20)
        .max_core_instance_size(2 << 20)
        // What a request dirtied is zeroed in place, not given back to the kernel and faulted in
        // again; the scan finds the dirty pages. Warm slots × these bytes is what it may cost.
        .max_unused_warm_slots(64)
        .linear_memory_keep_resident(256 << 10)
        .table_keep_resident(64 << 10)
        .async_stack_keep_resident(16 << 10)
        .decommit_batch_size(16)
        .pagemap_scan(Enabled::Auto);
    pool
}

/// How many slots `vm.max_map_count` allows, and a word to the log when that is few.
fn slots_by_mappings() -> u32 {
    let count = std::fs::read_to_string("/proc/sys/vm/max_map_count")
        .ok()
        .and_then(|text| text.trim().parse().ok());
    let slots = count.unwrap_or(65_530u32).saturating_sub(MAPPINGS_RESERVED) / MAPPINGS_PER_SLOT;
    if slots < 1024 {
        tracing::warn!(
            "vm.max_map_count allows {slots} guest instances at once; raise it with sysctl -w vm.max_map_count=262144"
        );
    }
    slots
}
