//! How many requests run at once. Reads and writes have places of their own, so that a flood of one
//! leaves the other alone; who finds no place waits a little, then is told to come back.
//! (Priority and fairness after the stored FlowSchemas is a later step of the same pipeline.)

use std::sync::Arc;
use std::time::Duration;

use rimward_api::{Reason, Status};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::request::Attributes;

/// Requests of each sort that may wait.
const WAITING_MAX: usize = 2000;
const WAIT_MAX: Duration = Duration::from_secs(10);

pub struct Flow {
    reads: Lane,
    writes: Lane,
}

struct Lane {
    running: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

impl Lane {
    fn new(max: usize) -> Self {
        Self {
            running: Arc::new(Semaphore::new(max.max(1))),
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
        }
    }

    async fn enter(&self) -> Result<OwnedSemaphorePermit, Status> {
        if let Ok(place) = self.running.clone().try_acquire_owned() {
            return Ok(place);
        }
        let _waiting = self.waiting.clone().try_acquire_owned().map_err(|_| too_many())?;
        match tokio::time::timeout(WAIT_MAX, self.running.clone().acquire_owned()).await {
            Ok(Ok(place)) => Ok(place),
            _ => Err(too_many()),
        }
    }
}

fn too_many() -> Status {
    let mut status = Status::new(
        429,
        Reason::TooManyRequests,
        "the server has received too many requests and has asked us to try again later",
    );
    status.details.get_or_insert_default().retry_after_seconds = 1;
    status
}

impl Flow {
    pub fn new(reads: usize, writes: usize) -> Self {
        Self { reads: Lane::new(reads), writes: Lane::new(writes) }
    }

    /// A place for a request, given back when dropped. Requests that last (watches, logs) take none.
    pub async fn enter(&self, asked: &Attributes) -> Result<Option<OwnedSemaphorePermit>, Status> {
        match (asked.is_long(), asked.is_read()) {
            (true, _) => Ok(None),
            (_, true) => self.reads.enter().await.map(Some),
            (_, false) => self.writes.enter().await.map(Some),
        }
    }
}
