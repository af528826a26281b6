//! Unmaps publishers' shared memory when they are gone.
//!
//! Zenoh maps a publishing process's memory with its first message and keeps it for the life of the session (zenoh
//! 1.10, `ShmReader`): 16 MiB for every process that came and went, which also stay in `/dev/shm`. The client here maps
//! the same memory, but unmaps it when none of it is in use and nothing was received from it between the arrivals of
//! two further publishers. If its publisher writes again, it is mapped again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use zenoh::shm::{
    ChunkID, PosixShmClient, ProtocolID, SegmentID, ShmClient, ShmClientStorage, ShmSegment,
    WithProtocolID,
};

/// Returns a session's clients of shared memory: [`Client`] in place of zenoh's own for POSIX.
pub(super) fn clients() -> Arc<ShmClientStorage> {
    let client = Arc::new(Client::default());
    Arc::new(ShmClientStorage::builder().with_client(client).build())
}

/// References to a segment while none of its messages are in use: the one in zenoh's table.
const HOLDERS_AT_REST: usize = 1;

#[derive(Debug, Default)]
struct Client {
    segments: Mutex<Vec<Weak<Segment>>>,
}

impl WithProtocolID for Client {
    fn id(&self) -> ProtocolID {
        PosixShmClient.id()
    }
}

impl ShmClient for Client {
    fn attach(&self, id: SegmentID) -> zenoh::Result<Arc<dyn ShmSegment>> {
        let segment = Arc::new(Segment {
            id,
            memory: Mutex::new(Some(PosixShmClient.attach(id)?)),
            received: AtomicBool::new(true),
        });
        let mut segments = self.segments.lock().unwrap_or_else(PoisonError::into_inner);
        segments.retain(|other| other.strong_count() > 0);
        for other in &*segments {
            unmap_if_idle(other);
        }
        segments.push(Arc::downgrade(&segment));
        Ok(segment)
    }
}

fn unmap_if_idle(segment: &Weak<Segment>) {
    let Some(held) = segment.upgrade() else {
        return;
    };
    // A message takes its reference to the segment before it asks for its address, which waits for this lock.
    let mut memory = held.memory();
    let idle = !held.received.swap(false, Ordering::Relaxed);
    // `held` is one more reference.
    if idle && segment.strong_count() == HOLDERS_AT_REST + 1 {
        *memory = None;
    }
}

/// A publisher's memory; each message in use holds a reference.
#[derive(Debug)]
struct Segment {
    id: SegmentID,
    memory: Mutex<Option<Arc<dyn ShmSegment>>>,
    /// Whether a message came since the last publisher did.
    received: AtomicBool,
}

impl Segment {
    fn memory(&self) -> std::sync::MutexGuard<'_, Option<Arc<dyn ShmSegment>>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ShmSegment for Segment {
    fn map(&self, chunk: ChunkID) -> zenoh::Result<*mut u8> {
        let mut memory = self.memory();
        self.received.store(true, Ordering::Relaxed);
        let mapped = match &mut *memory {
            Some(mapped) => mapped,
            none => none.insert(PosixShmClient.attach(self.id)?),
        };
        mapped.map(chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zenoh::Wait;
    use zenoh::shm::{PosixShmProviderBackend, ShmProviderBackend};

    /// Creates a publisher's memory, writes `mark` to it and returns where that is.
    fn publisher(mark: u8) -> (PosixShmProviderBackend, SegmentID, ChunkID) {
        let backend = PosixShmProviderBackend::builder(4096).wait().unwrap();
        let chunk = backend.alloc(&16_usize.try_into().unwrap()).unwrap();
        // SAFETY: the pointer is to sixteen bytes that were just allocated and that nobody else knows yet.
        unsafe { chunk.data.ptr().cast_mut().write(mark) };
        (backend, chunk.descriptor.segment, chunk.descriptor.chunk)
    }

    fn is_mapped(client: &Client, index: usize) -> bool {
        let segment = client.segments.lock().unwrap()[index].upgrade();
        segment.unwrap().memory().is_some()
    }

    #[test]
    fn memory_at_rest_is_given_back_and_comes_again() {
        let client = Client::default();
        let (_first, id, chunk) = publisher(7);
        // The reference in zenoh's table.
        let table = client.attach(id).unwrap();
        let read = || {
            let at = table.map(chunk).unwrap();
            // SAFETY: `map` has just returned this address in mapped memory, and `publisher` wrote the byte there.
            unsafe { at.read() }
        };
        assert_eq!(read(), 7);
        let (_second, second_id, _) = publisher(8);
        let _second_in_table = client.attach(second_id).unwrap();
        assert!(is_mapped(&client, 0), "received since it came");
        let message = Arc::clone(&table);
        let (_third, third_id, _) = publisher(9);
        let _third_in_table = client.attach(third_id).unwrap();
        assert!(is_mapped(&client, 0), "a message of it is in use");
        drop(message);
        let (_fourth, fourth_id, _) = publisher(10);
        let _fourth_in_table = client.attach(fourth_id).unwrap();
        assert!(!is_mapped(&client, 0) && !is_mapped(&client, 1));
        assert!(is_mapped(&client, 2) && is_mapped(&client, 3));
        assert_eq!(read(), 7);
        assert!(is_mapped(&client, 0));
    }
}
